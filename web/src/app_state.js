// What all parts of the page share: the store, the models, the open conversation, what runs.

import { fetchModels, isHealthy } from "./api/client.js";
import { ApiError } from "./api/errors.js";
import { Chat, newConversation, newId } from "./chats/chat.js";
import { Generation, startRun } from "./generation/generation.js";

/** @typedef {import("./types.js").Message} Message */
/** @typedef {import("./types.js").ModelInfo} ModelInfo */

const PREFERENCES = "gemmule.preferences";
/** Milliseconds between two looks whether a server that went away is back. */
const LOOK_EVERY = 2000;

/**
 * Settings that are not a conversation's.
 * @typedef {object} Preferences
 * @property {boolean} logprobs ask for token probabilities
 * @property {boolean} markdown draw answers as markdown
 */

export class AppState extends EventTarget {
  /** @type {ModelInfo[]} */
  models = [];
  /** @type {"connecting" | "ready" | "lost"} */
  server = "connecting";
  /** Answers being made, by the id of their message. @type {Map<string, Generation>} */
  generations = new Map();
  /** @type {Preferences} */
  preferences = { logprobs: true, markdown: true, ...readPreferences() };
  #channel = new BroadcastChannel("gemmule");

  /** @param {import("./chats/store.js").Store} store */
  constructor(store) {
    super();
    this.store = store;
    /** The open conversation. @type {Chat} */
    this.chat = this.#fresh(readPreferences().last);
    this.#channel.onmessage = () => this.emit("list");
  }

  /**
   * Events: "models", "server", "chat" (another conversation), "path" (other messages are shown),
   * "list" (conversations changed), "running" (an answer started or ended), "settings",
   * "redraw" (texts are drawn in another way).
   * @param {string} type
   */
  emit(type) {
    this.dispatchEvent(new Event(type));
  }

  /** @param {string[]} types @param {() => void} listener */
  on(types, listener) {
    for (const type of types) this.addEventListener(type, listener);
  }

  /** Models chosen for the open conversation that the server has; its first if none. @returns {string[]} */
  get chosenModels() {
    const names = this.models.map(({ id }) => id);
    const chosen = this.chat.conversation.models.filter((name) => names.includes(name));
    return chosen.length ? chosen : names.slice(0, 1);
  }

  /** @param {string | undefined} name @returns {ModelInfo | undefined} */
  model(name) {
    return this.models.find(({ id }) => id === name);
  }

  /** Asks for the models until the server answers. */
  async connect() {
    for (;;) {
      try {
        this.models = await fetchModels();
        this.server = "ready";
        this.emit("models");
        this.emit("server");
        return;
      } catch (error) {
        this.server = "lost";
        this.emit("server");
        // A key that was not given: the user asks again by sending.
        if (error instanceof ApiError && error.status === 401) return;
        await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY));
        if (error instanceof ApiError && error.status === null) await this.#untilHealthy();
      }
    }
  }

  async #untilHealthy() {
    while (!(await isHealthy())) await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY));
  }

  /** @param {Partial<import("./types.js").Conversation>} [settings] */
  #fresh(settings) {
    return this.#watch(new Chat(this.store, newConversation(settings), [], false));
  }

  /** @param {Chat} chat */
  #watch(chat) {
    chat.onsaved = () => {
      this.emit("list");
      this.#channel.postMessage(chat.conversation.id);
    };
    return chat;
  }

  /** Opens an empty conversation with the settings of the one before. */
  startChat() {
    this.chat = this.#fresh(this.chat.conversation);
    this.emit("chat");
  }

  /** @param {string} id @returns {Promise<boolean>} false if there is none */
  async openChat(id) {
    if (this.chat.conversation.id === id) return true;
    // One that is being answered is in memory already, newer than in the store.
    const running = [...this.generations.values()].find(({ chat }) => chat.conversation.id === id);
    if (running) this.chat = running.chat;
    else {
      const conversation = (await this.store.conversations()).find((stored) => stored.id === id);
      if (!conversation) return false;
      const messages = await this.store.messages(id);
      this.chat = this.#watch(new Chat(this.store, conversation, messages, true));
    }
    this.emit("chat");
    return true;
  }

  /** @param {string} id */
  async deleteChat(id) {
    await Promise.all(this.stop(id));
    await this.store.remove(id);
    if (this.chat.conversation.id === id) this.startChat();
    this.emit("list");
    this.#channel.postMessage(id);
  }

  /** Saves a change of the open conversation's settings; new conversations start with them. */
  async saveSettings() {
    const { system, sampling, models } = this.chat.conversation;
    this.savePreferences({ last: { system, sampling, models } });
    this.emit("settings");
    await this.chat.saveSettings();
  }

  /** @param {Record<string, unknown>} changes */
  savePreferences(changes) {
    localStorage.setItem(PREFERENCES, JSON.stringify({ ...readPreferences(), ...changes }));
    Object.assign(this.preferences, changes);
  }

  /** Generations of a conversation, the open one if none is named. */
  running(id = this.chat.conversation.id) {
    return [...this.generations.values()].filter(({ chat }) => chat.conversation.id === id);
  }

  /** Stops a conversation's answers. @returns {Promise<void>[]} settled once they have been saved */
  stop(id = this.chat.conversation.id) {
    return this.running(id).map((generation) => {
      generation.stop();
      return generation.ended;
    });
  }

  /**
   * Adds a message of the user after another and has it answered.
   * @param {string | null} parent @param {import("./types.js").Draft} draft
   */
  async send(parent, { text, files }) {
    const { chat } = this;
    const message = chat.add({
      parent,
      role: "user",
      content: text,
      ...(files.length && { files }),
    });
    await chat.save(message);
    await this.answer(message);
  }

  /** Answers a message of the user with each of the chosen models. @param {Message} message */
  async answer(message, models = this.chosenModels) {
    const { chat } = this;
    const pair = models.length > 1 ? { pair: newId() } : {};
    // Added from the last to the first, so that the first is the one selected.
    const answers = models.map((model) => {
      const answer = chat.add({ parent: message.id, role: "assistant", content: "", ...pair });
      startRun(answer, chat.conversation, model);
      return answer;
    });
    const [first] = answers;
    if (first) chat.tree.select(chat.conversation.selected, first);
    // The same seed for both, so that they differ in the model only.
    const seed = first?.runs?.[0]?.sampling.seed;
    for (const { runs } of answers)
      if (runs?.[0] && seed !== undefined) runs[0].sampling.seed = seed;
    const generations = answers.map((answer) => this.#register(chat, answer));
    // A server that has one model loaded at a time is asked for one at a time.
    const apart = models.some((name) => this.model(name)?.gemmule?.loaded === false);
    for (const generation of generations) {
      const ended = this.#run(generation);
      if (apart) await ended;
    }
  }

  /** Goes on with an answer from where it ends. @param {Message} answer */
  async goOn(answer) {
    const model = answer.runs?.at(-1)?.model;
    startRun(
      answer,
      this.chat.conversation,
      model && this.model(model) ? model : (this.chosenModels[0] ?? ""),
    );
    await this.#run(this.#register(this.chat, answer));
  }

  /** Asks for an answer's last run once more: after an error. @param {Message} answer */
  async retry(answer) {
    const run = answer.runs?.at(-1);
    if (!run) return;
    answer.content = answer.content.slice(0, run.start);
    Object.assign(run, { tokens: [], finish: null, timings: null, energy: null, usage: null });
    await this.#run(this.#register(this.chat, answer));
  }

  /** @param {Chat} chat @param {Message} answer */
  #register(chat, answer) {
    const generation = new Generation(chat, answer);
    this.generations.set(answer.id, generation);
    this.emit("path");
    this.emit("running");
    return generation;
  }

  /** @param {Generation} generation */
  #run(generation) {
    const { answer } = generation;
    generation.ended = generation.run(this.preferences.logprobs).then(() => {
      this.generations.delete(answer.id);
      this.emit("path");
      this.emit("running");
      if (answer.error?.status === null && this.server === "ready") this.connect();
    });
    return generation.ended;
  }
}

/** @returns {Partial<Preferences> & {last?: Partial<import("./types.js").Conversation>}} */
function readPreferences() {
  try {
    return JSON.parse(localStorage.getItem(PREFERENCES) ?? "{}");
  } catch {
    return {};
  }
}
