// What the server does now, out of /metrics; asked for only while it is looked at.

import { fetchMetrics } from "../api/client.js";
import { liveFigures, samplesOf } from "../api/prometheus.js";
import { h } from "./dom.js";
import { count, short } from "./figures.js";

const EVERY = 2000;

export class LiveFigures {
  #list = h("dl", { class: "facts" });
  #timer = 0;
  /** @type {{samples: import("../api/prometheus.js").Samples, time: number} | null} */
  #before = null;

  constructor() {
    this.element = h(
      "details",
      { class: "live" },
      h("summary", {}, "Live figures of the server"),
      this.#list,
    );
    this.element.addEventListener("toggle", () => {
      clearTimeout(this.#timer);
      this.#before = null;
      if (this.element.open) this.#read();
    });
  }

  async #read() {
    // Nobody sees it in a closed panel or a hidden tab.
    if (this.element.checkVisibility() && !document.hidden) {
      try {
        const samples = samplesOf(await fetchMetrics());
        const time = performance.now();
        const seconds = this.#before ? (time - this.#before.time) / 1000 : 0;
        this.#show(liveFigures(samples, this.#before?.samples ?? null, seconds));
        this.#before = { samples, time };
      } catch (error) {
        this.#list.replaceChildren(
          h(
            "div",
            {},
            h("dt", {}, "Not available"),
            h("dd", {}, error instanceof Error ? error.message : String(error)),
          ),
        );
      }
    }
    if (this.element.open) this.#timer = window.setTimeout(() => this.#read(), EVERY);
  }

  /** @param {import("../api/prometheus.js").LiveFigures} figures */
  #show(figures) {
    /** @param {number | null} value @param {(value: number) => string} text */
    const or = (value, text) => (value === null ? "–" : text(value));
    const share = (/** @type {number} */ value) => `${Math.round(100 * value)}%`;
    /** @type {[string, string][]} */
    const rows = [
      ["Answering", or(figures.running, count)],
      ["Waiting", or(figures.waiting, count)],
      ["Tokens/s", or(figures.tokensPerSecond, short)],
      ["KV cache in use", share(figures.cacheUsage)],
      ["Prompt tokens from the cache", or(figures.cacheHits, share)],
      ["Power", or(figures.watts, (value) => `${short(value)} W`)],
      ["Energy since the start, idle included", or(figures.joules, (value) => `${short(value)} J`)],
      ["Answers since the start", or(figures.answered, count)],
    ];
    this.#list.replaceChildren(
      ...rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
    );
  }
}
