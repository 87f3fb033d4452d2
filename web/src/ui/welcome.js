// What stands in place of the messages in an empty conversation.

import { h } from "./dom.js";
import { logo } from "./logo.js";

/** They are put into the box, not sent. */
const STARTERS = [
  "Write a Python function that reverses a list.",
  "Explain what a hash table is, with a small example.",
  "def add(a, b):",
];

/** @param {(text: string) => void} onchoose */
export function welcome(onchoose) {
  return h(
    "div",
    { class: "welcome" },
    logo(),
    h("h2", { class: "lead" }, "Start a conversation"),
    h(
      "p",
      { class: "hint" },
      "Answers are made on the machine that serves this page. Conversations stay in this browser.",
    ),
    h(
      "ul",
      {},
      ...STARTERS.map((text) =>
        h(
          "li",
          {},
          h("button", { type: "button", class: "button", onclick: () => onchoose(text) }, text),
        ),
      ),
    ),
  );
}
