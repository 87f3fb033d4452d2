// A panel at the side: beside the conversation where there is room, over it where there is not.

import { iconButton } from "./dom.js";

/** Below this width a panel lies over the conversation. */
const WIDE = matchMedia("(min-width: 68rem)");

export class Drawer {
  #main;
  #onsettle;

  /**
   * @param {object} options
   * @param {HTMLElement} options.element the panel
   * @param {HTMLElement} options.main what it lies over
   * @param {Parameters<typeof iconButton>[0]} options.icon
   * @param {string} options.label of the button that opens and closes it
   * @param {boolean} options.open whether it is open at first, where there is room
   * @param {(drawer: Drawer) => void} options.onsettle told before it opens
   */
  constructor({ element, main, icon, label, open, onsettle }) {
    this.element = element;
    this.#main = main;
    this.#onsettle = onsettle;
    this.button = iconButton(icon, label, () => this.toggle(), { "aria-controls": element.id });
    const close = iconButton("close", "Close", () => this.close(), {
      class: "button icon-button close-drawer",
    });
    element.prepend(close);
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || WIDE.matches || event.defaultPrevented) return;
      event.stopPropagation();
      this.close();
    });
    WIDE.addEventListener("change", () => this.#set(open && WIDE.matches));
    this.#set(open && WIDE.matches);
  }

  get isOpen() {
    return !this.element.hidden;
  }

  toggle() {
    if (this.isOpen) this.close();
    else this.open();
  }

  open() {
    this.#onsettle(this);
    this.#set(true);
    this.element.querySelector("button")?.focus();
  }

  close() {
    if (!this.isOpen) return;
    const inside = this.element.contains(document.activeElement);
    this.#set(false);
    if (inside) this.button.focus();
  }

  /** Closes it if it lies over the conversation. */
  giveWay() {
    if (!WIDE.matches) this.close();
  }

  /** @param {boolean} open */
  #set(open) {
    this.element.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    this.#main.inert = open && !WIDE.matches;
  }
}
