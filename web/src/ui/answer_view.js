// An answer of a model: its text, what it took, what went wrong.

import { markdownView } from "../markdown/view.js";
import { announce } from "./announcer.js";
import { answerFigures, endOf, runningFigures } from "./answer_figures.js";
import { frame, h, iconButton } from "./dom.js";
import { plainView } from "./plain_view.js";
import { tokenView } from "./token_view.js";

/** @typedef {import("../types.js").Message} Message */

/**
 * @typedef {object} AnswerActions
 * @property {(answer: Message) => void} onretry
 * @property {(answer: Message) => void} oncontinue
 * @property {(answer: Message, piece: import("../generation/tokens.js").Piece, choice: import("../types.js").TokenChoice) => void} onbranch
 */

export class AnswerView {
  #body = h("div", { class: "markdown" });
  #below = h("div", { class: "below" });
  #text;
  #answer;
  #actions;
  #isFull;
  #tokens = false;
  #drawn = false;
  #followed = false;
  /** @type {import("../generation/generation.js").Generation | null} */
  #generation = null;

  /**
   * @param {Message} answer
   * @param {AnswerActions} actions
   * @param {boolean} markdown whether its text is drawn as markdown
   * @param {() => boolean} isFull whether nothing can follow, as the context is full
   */
  constructor(answer, actions, markdown, isFull) {
    this.#text = markdown ? markdownView(this.#body, { announce }) : plainView(this.#body);
    this.#answer = answer;
    this.#actions = actions;
    this.#isFull = isFull;
    this.element = h("div", { class: "answer" }, this.#body, this.#below);
    // Space for a text that is drawn later, so that the page does not jump.
    this.#body.append(h("p", {}, answer.content.slice(0, 400)));
  }

  /**
   * Follows a generation, or shows the answer as it is.
   * @param {import("../generation/generation.js").Generation | null} generation
   * @param {() => void} ongrow told after each drawing that may have made the answer longer
   */
  follow(generation, ongrow) {
    if (this.#followed && generation === this.#generation) return;
    const ended = this.#generation !== null;
    this.#followed = true;
    this.#generation = generation;
    this.element.setAttribute("aria-busy", String(generation !== null));
    if (!generation) {
      if (ended) this.draw();
      this.#below.replaceChildren(answerFigures(this.#answer), ...this.#trouble());
      return;
    }
    this.#drawn = false;
    this.#showText();
    this.#text.update(this.#answer.content);
    const figures = runningFigures(generation);
    this.#below.replaceChildren(figures.element);
    const draw = frame(() => {
      if (this.#generation !== generation) return;
      figures.update();
      ongrow();
    });
    generation.onchange = () => {
      this.#text.update(this.#answer.content);
      draw();
    };
    const clock = setInterval(
      () => (this.#generation === generation ? draw() : clearInterval(clock)),
      1000,
    );
  }

  /** Draws the text of an answer that does not stream, once. */
  draw() {
    if (this.#drawn || this.#generation) return;
    this.#drawn = true;
    this.#text.finish(this.#answer.content);
  }

  get showsTokens() {
    return this.#tokens;
  }

  toggleTokens() {
    this.#tokens = !this.#tokens;
    if (!this.#tokens) return this.#showText();
    const view = tokenView(this.#answer, (piece, choice) =>
      this.#actions.onbranch(this.#answer, piece, choice),
    );
    this.element.firstElementChild?.replaceWith(view);
  }

  #showText() {
    this.#tokens = false;
    const { firstElementChild } = this.element;
    if (firstElementChild !== this.#body) firstElementChild?.replaceWith(this.#body);
  }

  /** What can be done about an answer that is not whole. */
  #trouble() {
    const { error } = this.#answer;
    const end = endOf(this.#answer, false);
    if (error) {
      const wait = error.retryAfter ? ` It may work in ${Math.ceil(error.retryAfter)} s.` : "";
      return [
        h(
          "div",
          { class: "error", role: "group", "aria-label": "Error" },
          h("p", {}, error.message, wait),
          iconButton("regenerate", "Try again", () => this.#actions.onretry(this.#answer), {
            text: true,
          }),
        ),
      ];
    }
    if (end === null || end === "stop") return [];
    if (this.#isFull()) return [h("p", { class: "figures" }, "The context is full.")];
    const again = iconButton(
      "play",
      "Continue the answer",
      () => this.#actions.oncontinue(this.#answer),
      { text: true },
    );
    return [h("div", { class: "row" }, again)];
  }
}
