// Keyboard shortcuts. All have a modifier, so that no single letter acts by itself (WCAG 2.1.4).

import { h } from "./dom.js";
import { openDialog } from "./dialogs/ask.js";

/**
 * @typedef {object} Shortcut
 * @property {string} keys as shown
 * @property {string} does
 * @property {(event: KeyboardEvent) => boolean} matches
 * @property {() => void} run
 */

/** There Option with a letter types a character, so Control and Shift are taken. */
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);

/**
 * A shortcut by the key's place, as Alt changes what many keyboards type.
 * @param {string} code @param {string} shown @param {string} does @param {() => void} run
 * @returns {Shortcut}
 */
export function shortcut(code, shown, does, run) {
  return {
    keys: `${MAC ? "Ctrl+Shift" : "Alt"}+${shown}`,
    does,
    matches: (event) =>
      event.altKey === !MAC &&
      event.ctrlKey === MAC &&
      event.shiftKey === MAC &&
      !event.metaKey &&
      event.code === code,
    run,
  };
}

/** @param {Shortcut[]} shortcuts */
export function listen(shortcuts) {
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const shortcut = shortcuts.find(({ matches }) => matches(event));
    if (!shortcut) return;
    event.preventDefault();
    shortcut.run();
  });
}

/** Keys that work in one place only. @type {[string, string][]} */
const LOCAL = [
  ["Enter", "Send the message"],
  ["Shift+Enter", "New line in the message"],
  ["Arrow keys", "In token probabilities: walk through the tokens"],
];

/** @param {Shortcut[]} shortcuts */
export function showHelp(shortcuts) {
  const rows = [
    ...shortcuts.map(({ keys, does }) => /** @type {const} */ ([keys, does])),
    ...LOCAL,
  ];
  const list = rows.map(([keys, does]) =>
    h("div", {}, h("dt", {}, h("kbd", {}, keys)), h("dd", {}, does)),
  );
  openDialog("Keyboard shortcuts", [h("dl", { class: "shortcuts" }, ...list)]);
}
