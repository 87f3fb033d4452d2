// An open conversation: its tree of messages, and that it is saved.

import { titleOf, Tree } from "./tree.js";

/** @typedef {import("../types.js").Message} Message */
/** @typedef {import("../types.js").Conversation} Conversation */

/** Random, also where the page came over plain http and crypto.randomUUID is missing. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * A conversation without messages.
 * @param {Partial<Conversation>} settings those taken over from the one before
 * @returns {Conversation}
 */
export function newConversation({ system = "", sampling = {}, models = [] } = {}) {
  const now = Date.now();
  return {
    id: newId(),
    title: "New conversation",
    named: false,
    created: now,
    updated: now,
    system,
    sampling: { ...sampling },
    models: [...models],
    selected: {},
  };
}

export class Chat {
  #store;
  #stored;
  #lastTime = 0;

  /**
   * @param {import("./store.js").Store} store
   * @param {Conversation} conversation
   * @param {Message[]} messages
   * @param {boolean} stored false for a new one: it is saved with its first message
   */
  constructor(store, conversation, messages, stored) {
    this.#store = store;
    this.#stored = stored;
    this.conversation = conversation;
    this.tree = new Tree(messages);
    /** Told after every change of a conversation that is in the store. */
    this.onsaved = () => {};
  }

  get isStored() {
    return this.#stored;
  }

  get path() {
    return this.tree.path(this.conversation.selected);
  }

  /**
   * Adds a message after another and selects it.
   * @param {Omit<Message, "id" | "created">} fields
   */
  add(fields) {
    // Siblings are ordered by time: two of the same millisecond are kept apart.
    this.#lastTime = Math.max(Date.now(), this.#lastTime + 1);
    /** @type {Message} */
    const message = { ...fields, id: newId(), created: this.#lastTime };
    this.tree.add(message);
    this.tree.select(this.conversation.selected, message);
    if (message.role === "user" && message.parent === null && !this.conversation.named) {
      this.conversation.title = titleOf(message.content || (message.files?.[0]?.name ?? ""));
    }
    return message;
  }

  /** @param {Message[]} messages those that changed */
  async save(...messages) {
    this.#stored = true;
    this.conversation.updated = Date.now();
    await this.#store.save(this.conversation, messages);
    this.onsaved();
  }

  /**
   * Saves an answer that grows: nothing that the list of conversations shows.
   * @param {Message} answer
   */
  async saveText(answer) {
    await this.#store.save(this.conversation, [answer]);
  }

  /** Saves settings of a conversation that is in the store; a new one keeps them until then. */
  async saveSettings() {
    if (!this.#stored) return;
    await this.#store.save(this.conversation);
    this.onsaved();
  }

  /** @param {Message} message shown from now on @returns {Promise<void>} */
  async select(message) {
    this.tree.select(this.conversation.selected, message);
    await this.saveSettings();
  }

  /** Deletes a message and all that follows it. @param {Message} message */
  async remove(message) {
    const removed = this.tree.remove(message);
    for (const { id } of removed) delete this.conversation.selected[id];
    await this.#store.removeMessages(this.conversation, removed);
    this.onsaved();
  }
}
