// Which model answers, or which two side by side.

import { h, iconButton } from "./dom.js";

export class ModelPicker {
  #state;
  #first = h("select", { "aria-label": "Model" });
  #second = h("select", { "aria-label": "Second model", hidden: true });
  #compare = iconButton("compare", "Two models side by side", () => this.#toggle(), {
    "aria-pressed": "false",
  });

  /** @param {import("../app_state.js").AppState} state */
  constructor(state) {
    this.#state = state;
    this.element = h("div", { class: "model-picker" }, this.#first, this.#second, this.#compare);
    for (const select of [this.#first, this.#second])
      select.addEventListener("change", () => this.#choose());
    state.on(["models", "chat", "settings"], () => this.#update());
    this.#update();
  }

  #choose() {
    const models = [this.#first.value];
    if (!this.#second.hidden) models.push(this.#second.value);
    this.#state.chat.conversation.models = models;
    this.#state.saveSettings();
  }

  #toggle() {
    const { chosenModels, models } = this.#state;
    const [first] = chosenModels;
    const other = models.find(({ id }) => id !== first)?.id;
    if (!first || !other) return;
    this.#state.chat.conversation.models = chosenModels.length > 1 ? [first] : [first, other];
    this.#state.saveSettings();
  }

  #update() {
    const { models, chosenModels } = this.#state;
    const options = () => models.map(({ id }) => h("option", { value: id }, id));
    this.#first.replaceChildren(...options());
    this.#second.replaceChildren(...options());
    const [first = "", second] = chosenModels;
    this.#first.value = first;
    this.#second.hidden = second === undefined;
    this.#second.value = second ?? "";
    this.#compare.hidden = models.length < 2;
    this.#compare.setAttribute("aria-pressed", String(second !== undefined));
  }
}
