// The messages on the path that is shown. Views are kept by message, so that a change of the path
// draws only what is new.

import { h, iconButton } from "./dom.js";
import { MessageView } from "./message_view.js";
import { PairView } from "./pair_view.js";

/** @typedef {import("../types.js").Message} Message */

/**
 * Messages drawn at once when a conversation is opened; older ones follow while nothing else runs.
 */
const FIRST = 12;
/** Milliseconds of drawing older messages between two frames. */
const SLICE = 6;
/** Pixels from the end within which the view counts as at the end. */
const NEAR = 60;

export class Transcript {
  #state;
  #actions;
  /** @type {Map<string, MessageView>} */
  #views = new Map();
  /** @type {Map<string, PairView>} */
  #pairs = new Map();
  #list = h("div", { class: "messages" });
  #latest = iconButton("down", "To the latest message", () => this.toEnd(), {
    class: "button icon-button to-end",
    hidden: true,
  });
  #scroller = h(
    "div",
    {
      class: "scroller",
      role: "log",
      "aria-live": "off",
      "aria-label": "Conversation",
      tabindex: "0",
    },
    this.#list,
  );
  #atEnd = true;
  #top = 0;
  /** @type {string | undefined} */
  #lastId;
  #chat;

  /**
   * @param {import("../app_state.js").AppState} state
   * @param {import("./message_view.js").Actions} actions
   * @param {HTMLElement} welcome shown while there are no messages
   */
  constructor(state, actions, welcome) {
    this.#state = state;
    this.#actions = actions;
    this.#chat = state.chat;
    this.welcome = welcome;
    this.onfocuslost = () => {};
    this.element = h("div", { class: "transcript" }, this.#scroller, this.#latest);
    this.#scroller.addEventListener("scroll", () => this.#noteEnd(), { passive: true });
    new ResizeObserver(this.#followEnd).observe(this.#list);
    state.on(["chat", "path"], () => this.update());
    state.on(["redraw"], () => {
      this.#forget();
      this.update();
    });
    this.update();
  }

  #forget() {
    this.#views.clear();
    this.#pairs.clear();
  }

  #noteEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    // Messages that come into sight are laid out and get another height: only going up leaves the end.
    if (near || scrollTop < this.#top) this.#atEnd = near;
    this.#top = scrollTop;
    this.#latest.hidden = this.#atEnd;
  }

  toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#atEnd = true;
    this.#latest.hidden = true;
  }

  #followEnd = () => {
    if (this.#atEnd) this.toEnd();
    else this.#noteEnd();
  };

  /** The view of the last message of a role. @param {"user" | "assistant"} role */
  last(role) {
    const message = this.#state.chat.path.findLast((candidate) => candidate.role === role);
    return message && this.#views.get(message.id);
  }

  /** Moves the focus from message to message. @param {1 | -1} step */
  walk(step) {
    const articles = [...this.#list.querySelectorAll("article")];
    const at = articles.findIndex((article) => article.contains(document.activeElement));
    const to = at < 0 ? (step < 0 ? articles.length - 1 : 0) : at + step;
    articles[to]?.focus();
    articles[to]?.scrollIntoView({ block: "nearest" });
  }

  /** Brings the messages up to date; tells `onfocuslost` if what had the focus is gone. */
  update() {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    this.#update();
    if (focused && !(focused.isConnected && focused.checkVisibility())) this.onfocuslost();
  }

  #update() {
    const { chat } = this.#state;
    if (chat !== this.#chat) {
      this.#chat = chat;
      this.#forget();
      this.#atEnd = true;
    }
    const { path, tree } = chat;
    // A new answer is shown, wherever one was reading.
    const lastId = path.at(-1)?.id;
    if (lastId && lastId !== this.#lastId && this.#state.generations.has(lastId))
      this.#atEnd = true;
    this.#lastId = lastId;
    const shown = new Set();
    /** @type {HTMLElement[]} */
    const rows = [];
    for (const message of path) {
      const pair = tree.pairOf(message);
      const views = pair.map((member) => this.#view(member));
      for (const view of views) {
        shown.add(view.message.id);
        view.update(versionsOf(tree, view.message), this.#followEnd);
      }
      const [only] = views;
      if (views.length === 1 && only) rows.push(only.element);
      else {
        const together = this.#pair(message.pair ?? "", views);
        together.update(message);
        rows.push(together.element);
      }
    }
    // A view that is made again is another element: a pair that holds it has to go as well.
    for (const [id, { message }] of this.#views) {
      if (shown.has(id)) continue;
      this.#views.delete(id);
      if (message.pair) this.#pairs.delete(message.pair);
    }
    if (!rows.length) rows.push(this.welcome);
    place(this.#list, rows);
    // Not by :has() in the style, which would look at all messages with every token.
    this.#list.classList.toggle("wide", this.#pairs.size > 0);
    this.#draw(path);
    if (this.#atEnd) requestAnimationFrame(() => this.toEnd());
  }

  /** @param {Message} message */
  #view(message) {
    let view = this.#views.get(message.id);
    if (!view)
      this.#views.set(message.id, (view = new MessageView(this.#state, message, this.#actions)));
    return view;
  }

  /** @param {string} id @param {MessageView[]} views */
  #pair(id, views) {
    let pair = this.#pairs.get(id);
    if (pair?.views.length !== views.length) {
      this.#pairs.set(id, (pair = new PairView(views, this.#actions.onselect)));
    }
    return pair;
  }

  /**
   * Draws the newest messages now and older ones in the time that is left.
   * @param {Message[]} path
   */
  #draw(path) {
    const answers = path
      .flatMap((message) => this.#state.chat.tree.pairOf(message))
      .flatMap(({ id }) => this.#views.get(id)?.answer ?? []);
    for (const answer of answers.splice(-FIRST)) answer.draw();
    const chat = this.#chat;
    const more = () => {
      if (chat !== this.#chat) return;
      const start = performance.now();
      while (answers.length && performance.now() - start < SLICE) answers.pop()?.draw();
      if (answers.length) setTimeout(more, SLICE);
    };
    if (answers.length) setTimeout(more, SLICE);
  }
}

/**
 * Siblings of a message; answers asked for together are one version.
 * @param {import("../chats/tree.js").Tree} tree
 * @param {Message} message
 */
function versionsOf(tree, message) {
  /** @type {Message[][]} */
  const versions = [];
  for (const sibling of tree.siblings(message)) {
    const last = versions.find(([first]) => sibling.pair && first?.pair === sibling.pair);
    if (last) last.push(sibling);
    else versions.push([sibling]);
  }
  return versions;
}

/**
 * Makes `rows` the children of `list` and leaves alone those that are in their place.
 * @param {HTMLElement} list
 * @param {HTMLElement[]} rows
 */
function place(list, rows) {
  const wanted = new Set(rows);
  for (const child of [...list.children])
    if (!wanted.has(/** @type {HTMLElement} */ (child))) child.remove();
  rows.forEach((row, index) => {
    const there = list.children[index] ?? null;
    if (there !== row) list.insertBefore(row, there);
  });
}
