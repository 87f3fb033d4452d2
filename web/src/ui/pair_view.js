// Two answers to one message side by side; the conversation goes on from one of them.

import { h } from "./dom.js";

export class PairView {
  /** @type {HTMLButtonElement[]} */
  #choices;

  /**
   * @param {import("./message_view.js").MessageView[]} views
   * @param {(message: import("../types.js").Message) => void} onselect
   */
  constructor(views, onselect) {
    this.views = views;
    this.#choices = views.map(({ message }) =>
      h("button", { type: "button", class: "button choose", onclick: () => onselect(message) }),
    );
    const columns = views.map(({ element }, index) =>
      h("div", { class: "column" }, element, /** @type {HTMLElement} */ (this.#choices[index])),
    );
    this.element = h("div", { class: "pair" }, ...columns);
  }

  /** @param {import("../types.js").Message} selected */
  update(selected) {
    this.views.forEach(({ message }, index) => {
      const used = message === selected;
      const choice = this.#choices[index];
      if (!choice) return;
      choice.parentElement?.classList.toggle("used", used);
      choice.setAttribute("aria-pressed", String(used));
      choice.textContent = used ? "Goes on from this answer" : "Go on from this answer";
    });
  }
}
