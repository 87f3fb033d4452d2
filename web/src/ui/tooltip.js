// A short text explained: shown on hover and on focus, closed by Escape, and it stays while the
// pointer is on it (WCAG 1.4.13).

import { h, uniqueId } from "./dom.js";

/**
 * @param {string} text the button's text
 * @param {string} explanation
 */
export function explained(text, explanation) {
  const id = uniqueId();
  const bubble = h("span", { role: "tooltip", id, class: "bubble", hidden: true }, explanation);
  const show = () => {
    bubble.hidden = false;
    // Kept inside the window, which may be 360 px wide.
    bubble.style.setProperty("--shift", "0px");
    const { left, right } = bubble.getBoundingClientRect();
    const over = Math.max(0, right + 8 - document.documentElement.clientWidth);
    bubble.style.setProperty("--shift", `${-Math.min(over, Math.max(0, left - 8))}px`);
  };
  const hide = () => {
    bubble.hidden = true;
  };
  const button = h("button", { type: "button", class: "explained", "aria-describedby": id }, text);
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || bubble.hidden) return;
    event.stopPropagation();
    hide();
  };
  return h(
    "span",
    {
      class: "tooltip",
      onpointerenter: show,
      onpointerleave: hide,
      onfocusin: show,
      onfocusout: hide,
      onkeydown,
    },
    button,
    bubble,
  );
}
