// The result of asking for an answer again with the same seed.

import { replay } from "../generation/replay.js";
import { announce } from "./announcer.js";
import { h, iconButton } from "./dom.js";
import { plural } from "./figures.js";

export class ReplayView {
  #controller = new AbortController();

  /** @param {import("../chats/chat.js").Chat} chat @param {import("../types.js").Message} answer */
  constructor(chat, answer) {
    const seed = answer.runs?.at(-1)?.sampling.seed;
    const bar = h("progress", { max: 1, value: 0, "aria-label": "Replayed" });
    const stop = iconButton("stop", "Stop the replay", () => this.#controller.abort());
    const line = h("span", {}, `Replaying with seed ${seed}`);
    this.element = h("div", { class: "replay" }, bar, line, stop);
    replay(chat, answer, this.#controller.signal, (share) => (bar.value = share)).then(
      (result) => this.#show(result),
      (error) => {
        if (this.#controller.signal.aborted) this.element.remove();
        else this.#say("replay-differs", `The replay broke off: ${error.message}`);
      },
    );
  }

  stop() {
    this.#controller.abort();
  }

  /** @param {import("../generation/replay.js").Replay} result */
  #show({ identical, same, text }) {
    if (identical) {
      this.#say(
        "replay-same",
        `Identical: the same ${plural(text.length, "character")} from the same seed.`,
      );
      return;
    }
    this.#say("replay-differs", `Different after ${plural(same, "character")}.`);
    const start = Math.max(0, same - 40);
    this.element.append(
      h(
        "details",
        {},
        h("summary", {}, "What came this time"),
        h(
          "pre",
          { tabindex: "0", "aria-label": "Replayed text" },
          start ? "…" : "",
          text.slice(start, same),
          h("mark", {}, text.slice(same, same + 400)),
        ),
      ),
    );
  }

  /** @param {string} className @param {string} text */
  #say(className, text) {
    this.element.classList.add(className);
    this.element.replaceChildren(
      h("span", {}, text),
      iconButton("close", "Close", () => this.element.remove()),
    );
    announce(text);
  }
}
