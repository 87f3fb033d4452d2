// Modal questions. The browser's own <dialog> keeps the focus inside and gives it back.

import { field, h, iconButton, uniqueId } from "../dom.js";

/**
 * A dialog with a title and a button to close it; it leaves the page when it is closed.
 * @param {string} title
 * @param {(Node | null)[]} children
 * @param {string} [className]
 */
export function openDialog(title, children, className = "") {
  const id = uniqueId();
  const dialog = h(
    "dialog",
    { "aria-labelledby": id, class: className },
    h(
      "header",
      {},
      h("h2", { id }, title),
      iconButton("close", "Close", () => dialog.close()),
    ),
    ...children,
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * @param {string} title @param {string} text
 * @param {string | null} action the button that agrees; null: there is only something to be read
 * @returns {Promise<boolean>}
 */
export function confirmDialog(title, text, action) {
  return new Promise((resolve) => {
    const finish = (/** @type {string} */ value) => () => dialog.close(value);
    const agree =
      action &&
      h("button", { type: "button", class: "button danger", onclick: finish("yes") }, action);
    const close = h(
      "button",
      { type: "button", class: "button", autofocus: true, onclick: finish("") },
      action ? "Cancel" : "Close",
    );
    const dialog = openDialog(title, [
      h("p", {}, text),
      h("div", { class: "row end" }, close, agree),
    ]);
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
    close.focus();
  });
}

/**
 * @param {string} title @param {string} label @param {string} value
 * @param {{type?: string, hint?: string, action?: string}} [options]
 * @returns {Promise<string | null>} null if the user declined
 */
export function promptDialog(title, label, value, { type = "text", hint, action = "Save" } = {}) {
  return new Promise((resolve) => {
    const input = h("input", { type, autocomplete: "off", spellcheck: "false" });
    input.value = value;
    const form = h(
      "form",
      { method: "dialog" },
      field(label, input, hint),
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { type: "submit", class: "button primary", value: "yes" }, action),
      ),
    );
    const dialog = openDialog(title, [form]);
    dialog.addEventListener("close", () =>
      resolve(dialog.returnValue === "yes" ? input.value : null),
    );
    input.focus();
    input.select();
  });
}
