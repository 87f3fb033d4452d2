// An answer's text as it is, for models that write code or prose without marks.

import { frame, h } from "./dom.js";

/**
 * Shows text in `container`, as markdownView does markdown.
 * @param {HTMLElement} container
 */
export function plainView(container) {
  let text = "";
  const shown = h("p", { class: "plain", dir: "auto" });
  const draw = () => {
    if (shown.parentNode !== container) container.replaceChildren(shown);
    shown.textContent = text;
  };
  const drawSoon = frame(draw);
  return {
    /** @param {string} whole */
    update(whole) {
      text = whole;
      drawSoon();
    },
    /** @param {string} whole */
    finish(whole) {
      text = whole;
      draw();
    },
  };
}
