// A short text explained: shown on hover and on focus, closed by Escape, and it stays while the
// pointer is on it (WCAG 1.4.13).

import { h, uniqueId } from "./dom.js";

/** Pixels that stay free at the window's edges. */
const MARGIN = 8;

/**
 * @param {string} text the button's text
 * @param {string} explanation
 */
export function explained(text, explanation) {
  const id = uniqueId();
  // A popover lies above everything: no panel or message cuts it off.
  const bubble = h(
    "span",
    { role: "tooltip", id, class: "bubble", popover: "manual" },
    explanation,
  );
  const button = h("button", { type: "button", class: "explained", "aria-describedby": id }, text);
  const show = () => {
    if (bubble.matches(":popover-open")) return;
    bubble.showPopover();
    place(bubble, button.getBoundingClientRect());
    addEventListener("scroll", hide, { capture: true, once: true });
  };
  const hide = () => bubble.matches(":popover-open") && bubble.hidePopover();
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || !bubble.matches(":popover-open")) return;
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

/**
 * Above the button, or below where there is more room.
 * @param {HTMLElement} bubble
 * @param {DOMRect} at
 */
function place(bubble, at) {
  const { clientWidth, clientHeight } = document.documentElement;
  const { width, height } = bubble.getBoundingClientRect();
  const above = at.top - MARGIN >= height || at.top > clientHeight - at.bottom;
  const top = above ? Math.max(MARGIN, at.top - height) : at.bottom;
  const left = Math.max(MARGIN, Math.min(at.left, clientWidth - width - MARGIN));
  bubble.style.setProperty("top", `${top}px`);
  bubble.style.setProperty("left", `${left}px`);
}
