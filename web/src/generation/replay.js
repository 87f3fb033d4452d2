// The same request once more, with the same seed, to see that the text is the same.

import { chatStream, requestBody } from "../api/chat_stream.js";
import { apiMessages } from "../chats/tree.js";

/** @typedef {import("../types.js").Message} Message */

/**
 * @typedef {object} Replay
 * @property {boolean} identical
 * @property {number} same UTF-16 units that are the same, from the start of the last run
 * @property {string} text what came this time
 */

/**
 * How many units two texts have in common at their beginning.
 * @param {string} a
 * @param {string} b
 */
export function commonPrefix(a, b) {
  const end = Math.min(a.length, b.length);
  let at = 0;
  while (at < end && a.charCodeAt(at) === b.charCodeAt(at)) at++;
  return at;
}

/**
 * Whether the last run of an answer can be asked for again: it came to its end.
 * @param {Message} answer
 */
export function canReplay(answer) {
  const finish = answer.runs?.at(-1)?.finish;
  return !answer.edited && (finish === "stop" || finish === "length");
}

/**
 * @param {import("../chats/chat.js").Chat} chat
 * @param {Message} answer
 * @param {AbortSignal} signal
 * @param {(share: number) => void} onprogress the part of the old text that has been compared
 * @returns {Promise<Replay>}
 */
export async function replay(chat, answer, signal, onprogress) {
  const run = /** @type {import("../types.js").Run} */ (answer.runs?.at(-1));
  const wanted = answer.content.slice(run.start);
  const path = chat.tree.ancestry(answer).slice(0, -1);
  const goOn = run.start > 0;
  if (goOn) path.push({ ...answer, content: answer.content.slice(0, run.start) });
  const messages = apiMessages(run.system, path);
  // With the same fields as the first time, token probabilities included.
  const logprobs = run.tokens.length > 0;
  const body = requestBody({ model: run.model, messages, sampling: run.sampling, goOn, logprobs });
  let text = "";
  for await (const event of chatStream(body, signal)) {
    if (event.type !== "text") continue;
    text += event.text;
    onprogress(Math.min(1, text.length / (wanted.length || 1)));
  }
  return { identical: text === wanted, same: commonPrefix(text, wanted), text };
}
