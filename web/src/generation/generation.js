// One answer while it is made: a stream written into a message.

import { chatStream, requestBody } from "../api/chat_stream.js";
import { ApiError } from "../api/errors.js";
import { apiMessages } from "../chats/tree.js";
import { SpeedMeter } from "./speed.js";

/** @typedef {import("../types.js").Message} Message */
/** @typedef {import("../types.js").Run} Run */

/** Milliseconds between two saves of an answer that streams. */
const SAVE_EVERY = 1000;

/** A seed for an answer that nobody gave one, so that it can be replayed. */
function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}

/**
 * A run that starts at the end of what the answer has.
 * @param {Message} answer
 * @param {import("../types.js").Conversation} conversation
 * @param {string} model
 * @returns {Run}
 */
export function startRun(answer, conversation, model) {
  const run = {
    model,
    sampling: { ...conversation.sampling, seed: conversation.sampling.seed ?? randomSeed() },
    system: conversation.system,
    start: answer.content.length,
    tokens: [],
    finish: null,
    timings: null,
    energy: null,
    usage: null,
  };
  answer.runs = [...(answer.runs ?? []), run];
  return run;
}

export class Generation {
  #controller = new AbortController();
  /**
   * Runs while the last save is younger than SAVE_EVERY.
   * @type {ReturnType<typeof setTimeout> | null}
   */
  #timer = null;
  #unsaved = false;

  /**
   * @param {import("../chats/chat.js").Chat} chat
   * @param {Message} answer whose last run is made
   */
  constructor(chat, answer) {
    this.chat = chat;
    this.answer = answer;
    this.meter = new SpeedMeter();
    /** @type {import("../types.js").PromptProgress | null} */
    this.progress = null;
    this.started = performance.now();
    /** Settled when the answer has ended and is saved. @type {Promise<void>} */
    this.ended = Promise.resolve();
    /** Told after every event; the view draws once a frame. */
    this.onchange = () => {};
    /** Told what was added to the answer. @type {(text: string) => void} */
    this.ontext = () => {};
    this.onend = () => {};
  }

  /** Tokens of the context that the answer takes so far. */
  get taken() {
    return (this.progress?.total ?? 0) + this.meter.count;
  }

  /** Stops: the server frees the request when the connection ends. The text so far is kept. */
  stop() {
    this.#controller.abort();
  }

  /**
   * Makes the answer. What goes wrong is kept in the message, nothing is thrown.
   * @param {boolean} logprobs ask for token probabilities
   */
  async run(logprobs) {
    const { chat, answer } = this;
    const run = /** @type {Run} */ (answer.runs?.at(-1));
    answer.error = null;
    const before = chat.tree.ancestry(answer).slice(0, -1);
    const goOn = answer.content !== "";
    const messages = apiMessages(run.system, goOn ? [...before, answer] : before);
    const body = requestBody({
      model: run.model,
      messages,
      sampling: run.sampling,
      goOn,
      logprobs,
    });
    try {
      await chat.save(answer);
      for await (const event of chatStream(body, this.#controller.signal)) this.#take(run, event);
      run.finish ??= "stop";
    } catch (error) {
      if (this.#controller.signal.aborted) run.finish = "cancelled";
      else {
        run.finish = "error";
        answer.error = (error instanceof ApiError ? error : new ApiError(String(error))).toStored();
      }
    }
    if (!run.usage && this.progress) run.taken = this.taken;
    if (this.#timer) clearTimeout(this.#timer);
    await chat.save(answer).catch((error) => {
      answer.error = {
        message: `Not saved in this browser: ${error}`,
        status: null,
        retryAfter: null,
      };
    });
    this.onend();
  }

  /** Saves what there is; whether that works is seen at the end. */
  saveSoFar() {
    this.#unsaved = false;
    this.chat.saveText(this.answer).catch(() => {});
  }

  /** At once, or when the last save is old enough: also if nothing more comes for a while. */
  #saveSoon() {
    this.#unsaved = true;
    if (this.#timer) return;
    this.saveSoFar();
    this.#timer = setTimeout(() => {
      this.#timer = null;
      if (this.#unsaved) this.#saveSoon();
    }, SAVE_EVERY);
  }

  /** @param {Run} run @param {import("../types.js").StreamEvent} event */
  #take(run, event) {
    const now = performance.now();
    let text = "";
    switch (event.type) {
      case "text":
        text = event.text;
        this.answer.content += text;
        run.tokens.push(...event.tokens);
        this.meter.add(event.tokens.length || 1, now);
        break;
      case "progress":
        this.progress = event.progress;
        break;
      case "finish":
        run.finish = event.reason;
        run.timings = event.timings;
        run.energy = event.energy;
        break;
      case "usage":
        run.usage = event.usage;
    }
    this.#saveSoon();
    if (text) this.ontext(text);
    this.onchange();
  }
}
