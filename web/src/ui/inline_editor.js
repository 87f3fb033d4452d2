// A message's text, opened for a change in its place.

import { h, uniqueId } from "./dom.js";

/**
 * @param {object} options
 * @param {string} options.text
 * @param {string} options.label
 * @param {string} options.action the name of the button that takes the change
 * @param {(text: string) => void} options.ondone
 * @param {() => void} options.oncancel
 */
export function inlineEditor({ text, label, action, ondone, oncancel }) {
  const id = uniqueId();
  const area = h("textarea", { id, rows: Math.min(16, text.split("\n").length + 1) });
  area.value = text;
  const done = () => ondone(area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      oncancel();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      done();
    }
  });
  const element = h(
    "div",
    { class: "inline-editor" },
    h("label", { for: id, class: "visually-hidden" }, label),
    area,
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "button primary", onclick: done }, action),
      h("button", { type: "button", class: "button", onclick: oncancel }, "Cancel"),
      h("small", { class: "hint" }, "Ctrl+Enter to confirm, Escape to cancel"),
    ),
  );
  return { element, focus: () => area.focus() };
}
