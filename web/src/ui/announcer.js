// What a screen reader is told. The log itself is not live: it changes with every token.

import { h } from "./dom.js";

/** Milliseconds after which a text leaves the page; by then it has been taken over. */
const KEPT = 10_000;

const region = h("div", {
  class: "visually-hidden",
  role: "status",
  "aria-live": "polite",
  "aria-atomic": "false",
});

/** The live region, to be put into the page once. */
export function announcements() {
  return region;
}

/** @param {string} text */
export function announce(text) {
  const line = h("p", {}, text);
  region.append(line);
  setTimeout(() => line.remove(), KEPT);
}

/** @param {string} text something that just happened, shown for a few seconds and read out */
export function notify(text) {
  announce(text);
  const note = h("p", { class: "toast", "aria-hidden": "true" }, text);
  document.body.append(note);
  setTimeout(() => note.remove(), 4000);
}
