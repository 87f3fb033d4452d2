// What all parts of the page share: the store, the models, the open conversation, what runs.

import { fetchModels, isHealthy } from "./api/client.js";
import { ApiError } from "./api/errors.js";
import { Chat, newConversation, newId } from "./chats/chat.js";
import { isFull } from "./generation/context.js";
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
  /**
   * @type {"connecting" | "ready" | "lost" | "locked"} locked: it wants a key that was not given
   */
  server = "connecting";
  /** Answers being made, by the id of their message. @type {Map<string, Generation>} */
  generations = new Map();
  /** @type {Preferences} */
  preferences = { logprobs: true, markdown: true, ...readPreferences() };
  #channel = new BroadcastChannel("gemmule");
  /** Another tab has changed the open conversation. */
  #stale = false;
  /** @type {Promise<void> | null} */
  #connecting = null;

  /** @param {import("./chats/store.js").Store} store */
  constructor(store) {
    super();
    this.store = store;
    /** The open conversation. @type {Chat} */
    this.chat = this.#fresh(readPreferences().last);
    this.#channel.onmessage = ({ data }) => {
      this.emit("list");
      if (data === this.chat.conversation.id) this.#stale = true;
    };
    addEventListener("focus", () => this.#refresh());
    addEventListener("pagehide", () => {
      for (const generation of this.generations.values()) generation.saveSoFar();
    });
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

  /**
   * Models chosen for the open conversation that the server has; its first if none.
   * @returns {string[]}
   */
  get chosenModels() {
    const names = this.models.map(({ id }) => id);
    const chosen = this.chat.conversation.models.filter((name) => names.includes(name));
    return chosen.length ? chosen : names.slice(0, 1);
  }

  /** @param {string | undefined} name @returns {ModelInfo | undefined} */
  model(name) {
    return this.models.find(({ id }) => id === name);
  }

  /** Whether an answer fills its model's context, so that nothing can follow. @param {Message} answer */
  isFull({ runs }) {
    const run = runs?.at(-1);
    return isFull(run, this.model(run?.model)?.gemmule?.context_length);
  }

  /** Asks for the models until the server answers. */
  connect() {
    this.#connecting ??= this.#connect().finally(() => (this.#connecting = null));
    return this.#connecting;
  }

  async #connect() {
    for (;;) {
      try {
        this.models = await fetchModels();
        this.server = "ready";
        this.emit("models");
        this.emit("server");
        return;
      } catch (error) {
        const locked = error instanceof ApiError && error.status === 401;
        this.server = locked ? "locked" : "lost";
        this.emit("server");
        if (locked) return; // The user is asked again when they send something.
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
    const chat = running?.chat ?? (await this.#read(id));
    if (!chat) return false;
    this.chat = chat;
    this.emit("chat");
    return true;
  }

  /** @param {string} id */
  async #read(id) {
    const conversation = (await this.store.conversations()).find((stored) => stored.id === id);
    if (!conversation) return null;
    const messages = await this.store.messages(id);
    return this.#watch(new Chat(this.store, conversation, messages, true));
  }

  /** Reads the open conversation again if another tab has changed it. */
  async #refresh() {
    if (!this.#stale || this.running().length) return;
    this.#stale = false;
    const chat = await this.#read(this.chat.conversation.id);
    if (!chat) return this.startChat();
    this.chat = chat;
    this.emit("chat");
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

  /**
   * Stops a conversation's answers.
   * @returns {Promise<void>[]} settled once they have been saved
   */
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

  /** Goes on with an answer from where it ends. @param {Message} message */
  async goOn(message) {
    const answer = this.#freeToChange(message);
    const model = answer.runs?.at(-1)?.model;
    const known = model !== undefined && this.model(model);
    startRun(answer, this.chat.conversation, known ? model : (this.chosenModels[0] ?? ""));
    await this.#run(this.#register(this.chat, answer));
  }

  /** Asks for an answer's last run once more: after an error. @param {Message} message */
  async retry(message) {
    const answer = this.#freeToChange(message);
    const run = answer.runs?.at(-1);
    if (!run) return;
    answer.content = answer.content.slice(0, run.start);
    const { taken: _, ...asked } = run;
    const fresh = { ...asked, tokens: [], finish: null, timings: null, energy: null, usage: null };
    answer.runs = [...(answer.runs ?? []).slice(0, -1), fresh];
    await this.#run(this.#register(this.chat, answer));
  }

  /**
   * The answer, or a new version of it if messages follow: what they follow must stay.
   * @param {Message} answer
   */
  #freeToChange(answer) {
    const { tree } = this.chat;
    if (!tree.children(answer.id).length) return answer;
    const { id: _, created: __, pair: ___, ...fields } = answer;
    return this.chat.add(fields);
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
      const away = answer.error?.status === null;
      const model = this.model(answer.runs?.at(-1)?.model);
      // It may be loaded by now, in the place of another.
      if (this.server === "ready" && (away || model?.gemmule?.loaded === false)) this.connect();
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
