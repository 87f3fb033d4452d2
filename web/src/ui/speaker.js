// Reads answers to users of screen readers, a sentence at a time.

import { SentenceReader } from "../generation/sentences.js";
import { announce } from "./announcer.js";

/**
 * What is said at the end, where it is not that the answer is complete.
 * @type {Record<string, string>}
 */
const ENDS = { cancelled: "Stopped.", length: "Stopped at the token limit." };

/**
 * Follows the answers of the open conversation as they start. Of two side by side the first is read;
 * of the other only its end is said.
 * @param {import("../app_state.js").AppState} state
 */
export function speakAnswers(state) {
  /** @type {WeakSet<object>} */
  const known = new WeakSet();
  state.on(["running"], () => {
    for (const generation of state.generations.values()) {
      if (known.has(generation)) continue;
      known.add(generation);
      if (generation.chat === state.chat) speak(state, generation);
    }
  });
}

/**
 * @param {import("../app_state.js").AppState} state
 * @param {import("../generation/generation.js").Generation} generation
 */
function speak(state, generation) {
  const { answer, chat } = generation;
  const model = answer.runs?.at(-1)?.model ?? "The model";
  const aloud = chat.tree.pairOf(answer)[0] === answer;
  const reader = new SentenceReader();
  announce(`${model} is answering.`);
  generation.ontext = (text) => {
    if (aloud && state.chat === chat) for (const sentence of reader.feed(text)) announce(sentence);
  };
  generation.onend = () => {
    if (state.chat !== chat)
      return announce(`The answer in “${chat.conversation.title}” is complete.`);
    if (aloud) for (const sentence of reader.finish()) announce(sentence);
    const end =
      answer.error?.message ?? ENDS[answer.runs?.at(-1)?.finish ?? ""] ?? "Answer complete.";
    announce(aloud ? end : `${model}: ${end}`);
  };
}
