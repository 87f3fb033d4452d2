// Settings of the open conversation and of the page, and what is known about the model.

import { showCard } from "./dialogs/card.js";
import { field, h } from "./dom.js";
import { count, parameters } from "./figures.js";
import { LiveFigures } from "./live_figures.js";
import { setTheme, theme } from "./theme.js";

/** @typedef {import("../types.js").Sampling} Sampling */

/**
 * @typedef {object} Setting
 * @property {keyof Sampling} name as the API has it
 * @property {string} label
 * @property {number} min
 * @property {number} max
 * @property {boolean} [integer]
 * @property {string} hint
 */

/** @type {Setting[]} */
const SETTINGS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    hint: "0: always the most likely token",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0,
    max: 1,
    hint: "Smallest set of tokens with this probability",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 0,
    max: 1e6,
    integer: true,
    hint: "Only so many tokens; 0: all",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    hint: "Share of the likeliest token's probability",
  },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 10, hint: "1: none" },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: 2 ** 53 - 1,
    integer: true,
    hint: "Empty: a new one for every answer",
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    min: 1,
    max: 1e7,
    integer: true,
    hint: "Longest answer",
  },
];

export class SettingsPanel {
  #state;
  #system = h("textarea", { rows: 4, dir: "auto" });
  /** @type {Map<keyof Sampling, HTMLInputElement>} */
  #inputs = new Map();
  #model = h("div", { class: "model-info" });

  /** @param {import("../app_state.js").AppState} state */
  constructor(state) {
    this.#state = state;
    this.#system.addEventListener("change", () => {
      state.chat.conversation.system = this.#system.value;
      state.saveSettings();
    });
    const live = new LiveFigures();
    this.element = h(
      "div",
      { class: "settings" },
      h("h2", {}, "Settings"),
      field("System prompt", this.#system, "For this conversation, from the next answer on"),
      h(
        "section",
        { "aria-label": "Sampling" },
        h("h3", {}, "Sampling"),
        h("div", { class: "settings-grid" }, ...SETTINGS.map((setting) => this.#number(setting))),
        this.#reset(),
      ),
      h("section", { "aria-label": "Model" }, h("h3", {}, "Model"), this.#model),
      live.element,
      h(
        "section",
        { "aria-label": "Page" },
        h("h3", {}, "Page"),
        this.#check("logprobs", "Ask for token probabilities"),
        this.#check("markdown", "Show answers as markdown"),
        this.#theme(),
      ),
    );
    state.on(["chat", "models", "settings"], () => this.#update());
    this.#update();
  }

  /** @param {Setting} setting */
  #number({ name, label, min, max, integer, hint }) {
    const input = h("input", {
      type: "number",
      min,
      max,
      step: integer ? 1 : "any",
      inputmode: "decimal",
    });
    this.#inputs.set(name, input);
    const box = field(label, input, hint);
    const wrong = h("small", { class: "wrong", role: "alert" });
    box.append(wrong);
    input.addEventListener("change", () => {
      const ok = input.checkValidity();
      input.setAttribute("aria-invalid", String(!ok));
      wrong.textContent = ok
        ? ""
        : `Not used: ${integer ? "a whole number" : "a number"} from ${min} to ${count(max)} is needed.`;
      if (!ok) return;
      const { sampling } = this.#state.chat.conversation;
      if (input.value === "") delete sampling[name];
      else sampling[name] = input.valueAsNumber;
      this.#state.saveSettings();
    });
    return box;
  }

  #reset() {
    const reset = () => {
      this.#state.chat.conversation.sampling = {};
      this.#state.saveSettings();
    };
    return h(
      "button",
      { type: "button", class: "button", onclick: reset },
      "Back to the server's defaults",
    );
  }

  /** @param {"logprobs" | "markdown"} name @param {string} label */
  #check(name, label) {
    const box = h("input", { type: "checkbox" });
    box.checked = this.#state.preferences[name];
    box.addEventListener("change", () => {
      this.#state.savePreferences({ [name]: box.checked });
      if (name === "markdown") this.#state.emit("redraw");
    });
    return h("label", { class: "check" }, box, label);
  }

  #theme() {
    const select = h(
      "select",
      {},
      h("option", { value: "system" }, "As the system"),
      h("option", { value: "light" }, "Light"),
      h("option", { value: "dark" }, "Dark"),
    );
    select.value = theme();
    select.addEventListener("change", () =>
      setTheme(/** @type {import("./theme.js").Theme} */ (select.value)),
    );
    return field("Colors", select);
  }

  #update() {
    const { system, sampling } = this.#state.chat.conversation;
    this.#system.value = system;
    const model = this.#state.model(this.#state.chosenModels[0]);
    const defaults = model?.gemmule?.defaults ?? {};
    for (const [name, input] of this.#inputs) {
      input.value = sampling[name] === undefined ? "" : String(sampling[name]);
      const value =
        name === "seed"
          ? "random"
          : (defaults[name] ?? (name === "max_tokens" ? "what fits" : "default"));
      input.placeholder = String(value);
    }
    this.#model.replaceChildren(...this.#state.chosenModels.map((name) => this.#modelFacts(name)));
  }

  /** @param {string} name */
  #modelFacts(name) {
    const facts = this.#state.model(name)?.gemmule;
    /** @type {[string, string][]} */
    const rows = [];
    if (facts?.parameters) rows.push(["Parameters", parameters(facts.parameters)]);
    if (facts?.context_length) rows.push(["Context", `${count(facts.context_length)} tokens`]);
    if (facts) rows.push(["Weights", facts.quantization || "not quantized"]);
    const card = h(
      "button",
      { type: "button", class: "button", onclick: () => showCard(name) },
      "Model card",
    );
    card.setAttribute("aria-label", `Model card of ${name}`);
    return h(
      "div",
      {},
      h("p", {}, h("strong", {}, name)),
      h(
        "dl",
        { class: "facts" },
        ...rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
      ),
      facts?.card ? card : h("p", { class: "hint" }, "No model card."),
    );
  }
}
