// What an answer took: tokens, speed, prompt, energy; and while it runs, how far it is.

import { h } from "./dom.js";
import { count, energyText, plural, short } from "./figures.js";
import { explained } from "./tooltip.js";

/** @typedef {import("../types.js").Message} Message */

/** How an answer ended, where that needs saying. @type {Record<string, string>} */
const ENDS = {
  length: "Stopped at the token limit",
  cancelled: "Stopped by you",
  interrupted: "Interrupted: the page was closed",
  error: "Broke off",
};

/** How the answer's last run ended. @param {Message} answer @param {boolean} running */
export function endOf(answer, running) {
  const run = answer.runs?.at(-1);
  if (!run || running) return null;
  return run.finish ?? "interrupted"; // Nothing runs it: the page was closed while it did.
}

/** @param {Message} answer whose runs have ended */
export function answerFigures(answer) {
  const runs = answer.runs ?? [];
  const run = runs.at(-1);
  if (!run) return h("p", { class: "figures" }, answer.edited && "Written by you");
  // The error below says it all.
  if (run.finish === "error" && answer.content.length === run.start)
    return h("p", { hidden: true });
  /** @type {(Node | string)[]} */
  const parts = [];
  const made = run.timings?.predicted_n ?? run.usage?.completion_tokens;
  if (made !== undefined) parts.push(plural(made, "token"));
  const speed = run.timings?.predicted_per_second;
  if (speed) parts.push(explained(`${short(speed)} tokens/s`, speedText(run)));
  const energy = totalEnergy(runs);
  if (energy) parts.push(explained(energyText(energy), boundaryText(energy, runs.length)));
  const seed = run.sampling.seed;
  if (seed !== undefined && run.finish !== "branched") parts.push(`seed ${seed}`);
  const end = ENDS[endOf(answer, false) ?? ""];
  if (end) parts.push(h("strong", {}, end));
  if (answer.edited) parts.push("edited by you");
  return h("p", { class: "figures" }, ...parts.map((part) => h("span", {}, part)));
}

/** @param {import("../types.js").Run} run */
function speedText({ timings, usage }) {
  const read = timings?.prompt_n ?? 0;
  const cached = timings?.cache_n ?? usage?.prompt_tokens_details?.cached_tokens ?? 0;
  const seconds = ((timings?.prompt_ms ?? 0) + (timings?.predicted_ms ?? 0)) / 1000;
  const prompt = usage
    ? `Prompt: ${plural(usage.prompt_tokens, "token")}, ${count(cached)} of them from the cache. `
    : "";
  const rate = timings?.prompt_per_second ? ` at ${short(timings.prompt_per_second)} tokens/s` : "";
  return `${prompt}Read ${plural(read, "token")}${rate}. ${short(seconds)} s in all.`;
}

/**
 * Sum over an answer's runs; unknown as soon as one is.
 * @param {import("../types.js").Run[]} runs
 */
function totalEnergy(runs) {
  const measured = runs.flatMap(({ energy }) => energy ?? []);
  const last = measured.at(-1);
  if (!last) return null;
  /** @param {"joules" | "gco2e"} name */
  const sum = (name) =>
    measured.reduce(
      (/** @type {number | null} */ total, energy) =>
        total === null || energy[name] === null ? null : total + energy[name],
      0,
    );
  return { joules: sum("joules"), gco2e: sum("gco2e"), boundary: last.boundary };
}

/** @param {import("../types.js").Energy} energy @param {number} runs */
function boundaryText({ joules, boundary }, runs) {
  const lines = [joules === null ? "Why it is not measured:" : "What is counted:"];
  // The server's text is a list that semicolons divide, save for those in parentheses.
  lines.push(...(boundary ? boundary.split(/; (?![^(]*\))/) : ["The server does not say."]));
  if (runs > 1) lines.push(`Sum over the ${runs} requests of this answer.`);
  return lines.join("\n");
}

/**
 * A line about an answer that is being made, drawn again with `update`.
 * @param {import("../generation/generation.js").Generation} generation
 */
export function runningFigures(generation) {
  const text = h("span");
  const bar = h("progress", { "aria-label": "Prompt read" });
  const element = h("p", { class: "figures running" }, h("span", { class: "pulse" }), bar, text);
  function update() {
    const { progress, meter } = generation;
    const now = performance.now();
    const seconds = (now - generation.started) / 1000;
    bar.hidden = meter.count > 0 || !progress;
    if (meter.count) {
      const rate = meter.rate(now);
      text.textContent = plural(meter.count, "token") + (rate ? ` · ${short(rate)} tokens/s` : "");
    } else if (progress) {
      bar.max = progress.total || 1;
      bar.value = progress.processed;
      const cached = progress.cache ? `, ${count(progress.cache)} from the cache` : "";
      text.textContent = `Reading the prompt: ${count(progress.processed)} of ${plural(progress.total, "token")}${cached}`;
    } else {
      text.textContent = seconds < 1 ? "Sent" : `Waiting for the model · ${Math.floor(seconds)} s`;
    }
  }
  update();
  return { element, update };
}
