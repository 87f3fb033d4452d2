// One message of the transcript: who says it, the text, what can be done with it.

import { copyText } from "../clipboard.js";
import { canReplay } from "../generation/replay.js";
import { announce, notify } from "./announcer.js";
import { AnswerView } from "./answer_view.js";
import { h, iconButton, uniqueId } from "./dom.js";
import { inlineEditor } from "./inline_editor.js";
import { ReplayView } from "./replay_view.js";
import { userContent } from "./user_view.js";

/** @typedef {import("../types.js").Message} Message */

/**
 * What a message can ask of the page.
 * @typedef {object} MessageActions
 * @property {(message: Message) => void} onregenerate
 * @property {(message: Message, text: string) => void} onedit
 * @property {(message: Message) => void} ondelete
 * @property {(message: Message) => void} onselect show this sibling
 */

/** @typedef {MessageActions & import("./answer_view.js").AnswerActions} Actions */

export class MessageView {
  #state;
  #actions;
  #switcher = h("div", {
    class: "switcher",
    role: "group",
    "aria-label": "Versions",
    hidden: true,
  });
  #buttons = h("div", { class: "actions" });
  #content = h("div");
  #below = h("div");
  /** @type {{element: HTMLElement} | null} */
  #editor = null;
  #ongrow = () => {};
  /** @type {ReplayView | null} */
  #replay = null;
  /** @type {HTMLButtonElement | null} */
  #replayButton = null;
  /** @type {HTMLButtonElement | null} */
  #continueButton = null;
  /** @type {AnswerView | null} */
  answer = null;

  /**
   * @param {import("../app_state.js").AppState} state
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(state, message, actions) {
    this.#state = state;
    this.#actions = actions;
    this.message = message;
    const id = uniqueId();
    const user = message.role === "user";
    if (!user) {
      const { markdown } = state.preferences;
      this.answer = new AnswerView(message, actions, markdown, () => state.isFull(message));
    }
    this.#content.append(this.answer?.element ?? userContent(message));
    this.element = h(
      "article",
      {
        class: `message ${message.role}`,
        "data-id": message.id,
        "aria-labelledby": id,
        tabindex: "-1",
      },
      h("h2", { id, class: user ? "visually-hidden" : "" }, user ? "You" : modelOf(message)),
      this.#content,
      this.#below,
      h("footer", {}, this.#switcher, this.#buttons),
    );
    this.#buttons.append(...this.#makeButtons());
  }

  #makeButtons() {
    const { message, answer } = this;
    const { onregenerate, oncontinue, ondelete } = this.#actions;
    const copy = iconButton("copy", "Copy message", () =>
      copyText(message.content).then((done) =>
        announce(done ? "Copied" : "The browser refused to copy"),
      ),
    );
    copy.addEventListener("click", () => {
      copy.classList.add("done");
      setTimeout(() => copy.classList.remove("done"), 1500);
    });
    const edit = iconButton(
      "edit",
      message.role === "user" ? "Edit and send again" : "Edit answer",
      () => this.edit(),
    );
    const remove = iconButton("trash", "Delete from here on", () => ondelete(message));
    if (!answer) return [copy, edit, remove];
    const tokens = iconButton(
      "tokens",
      "Token probabilities",
      () => {
        answer.toggleTokens();
        this.#ongrow();
        tokens.setAttribute("aria-pressed", String(answer.showsTokens));
      },
      { "aria-pressed": "false" },
    );
    this.#replayButton = iconButton("replay", "Replay with the same seed", () =>
      this.#startReplay(),
    );
    this.#continueButton = iconButton("play", "Continue the answer", () => oncontinue(message));
    return [
      copy,
      iconButton("regenerate", message.pair ? "Ask both again" : "Answer again", () =>
        onregenerate(message),
      ),
      this.#continueButton,
      edit,
      tokens,
      this.#replayButton,
      remove,
    ];
  }

  /**
   * Brings what may have changed up to date.
   * @param {Message[][]} versions the siblings; answers asked for together are one version
   * @param {() => void} ongrow
   */
  update(versions, ongrow) {
    this.#ongrow = ongrow;
    const generation = this.#state.generations.get(this.message.id) ?? null;
    this.answer?.follow(generation, ongrow);
    this.#buttons.hidden = generation !== null || this.#editor !== null;
    this.#replayButton?.classList.toggle("unavailable", !canReplay(this.message));
    this.#continueButton?.classList.toggle("unavailable", this.#state.isFull(this.message));
    this.#updateSwitcher(versions);
  }

  /** @param {Message[][]} versions */
  #updateSwitcher(versions) {
    this.#switcher.hidden = versions.length < 2;
    if (versions.length < 2) return;
    const at = versions.findIndex((version) => version.includes(this.message));
    /** @param {number} to */
    const go = (to) => {
      const [target] = versions[to] ?? [];
      if (!target) return;
      this.#actions.onselect(target);
      focusSwitcher(target, to > at ? "Next version" : "Previous version");
    };
    const previous = iconButton("previous", "Previous version", () => go(at - 1), {
      disabled: at === 0,
    });
    const next = iconButton("next", "Next version", () => go(at + 1), {
      disabled: at === versions.length - 1,
    });
    const place = h(
      "span",
      {},
      h("span", { class: "visually-hidden" }, "Version "),
      `${at + 1} / ${versions.length}`,
    );
    this.#switcher.replaceChildren(previous, place, next);
  }

  edit() {
    if (this.#editor) return;
    const user = this.message.role === "user";
    const close = () => {
      this.#editor?.element.replaceWith(this.#content);
      this.#editor = null;
      this.element.classList.remove("editing");
      this.#buttons.hidden = false;
      this.element.focus({ preventScroll: true });
    };
    const editor = inlineEditor({
      text: this.message.content,
      label: user ? "Your message" : "The answer",
      action: user ? "Send" : "Keep as a new version",
      ondone: (text) => {
        close();
        if (text !== this.message.content || user) this.#actions.onedit(this.message, text);
      },
      oncancel: close,
    });
    this.#editor = editor;
    this.element.classList.add("editing");
    this.#buttons.hidden = true;
    this.#content.replaceWith(editor.element);
    editor.focus();
  }

  #startReplay() {
    if (!canReplay(this.message)) {
      return notify(
        this.message.edited
          ? "You changed this answer: there is nothing to compare a replay with."
          : "Only an answer that came to its end can be replayed.",
      );
    }
    this.#replay?.stop();
    this.#replay = new ReplayView(this.#state.chat, this.message);
    this.#below.replaceChildren(this.#replay.element);
  }
}

/** @param {Message} message */
function modelOf(message) {
  return message.runs?.at(-1)?.model ?? "Answer";
}

/**
 * Another version has another switcher: the focus goes to the same button there, or at the end of the
 * row to the other one.
 * @param {Message} message @param {string} label
 */
function focusSwitcher({ id }, label) {
  const switcher = document.querySelector(`[data-id="${id}"] .switcher`);
  /** @type {HTMLButtonElement | null | undefined} */
  const button =
    switcher?.querySelector(`[aria-label="${label}"]:enabled`) ??
    switcher?.querySelector("button:enabled");
  button?.focus();
}
