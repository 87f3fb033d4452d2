// One streamed chat completion.

import { request } from "./client.js";
import { ApiError, unreachable } from "./errors.js";
import { sseParser } from "./sse.js";
import { tokenOf } from "../generation/tokens.js";

/** Alternatives asked for with each token. */
const ALTERNATIVES = 5;

/**
 * The body of a request. An unset sampling field is not sent, so that the server's default holds.
 * @param {object} options
 * @param {string} options.model
 * @param {import('../types.js').ApiMessage[]} options.messages
 * @param {import('../types.js').Sampling} options.sampling
 * @param {boolean} options.goOn the last message is an answer to be continued
 * @param {boolean} options.logprobs
 */
export function requestBody({ model, messages, sampling, goOn, logprobs }) {
  return {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    ...sampling,
    ...(logprobs && { logprobs: true, top_logprobs: ALTERNATIVES }),
    ...(goOn && { continue_final_message: true, add_generation_prompt: false }),
  };
}

/**
 * Sends a request and yields what happens, until `[DONE]`.
 *
 * @param {ReturnType<typeof requestBody>} body
 * @param {AbortSignal} signal aborting ends the connection, which frees the request on the server
 * @returns {AsyncGenerator<import('../types.js').StreamEvent>}
 * @throws {ApiError} for an error status, an error event, or a stream that breaks off
 */
export async function* chatStream(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.body) throw new ApiError("The server sent no stream.");
  const reader = response.body.getReader();
  // stream: true keeps the beginning of a character until its other bytes have come.
  const decoder = new TextDecoder();
  const parse = sseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw signal.aborted ? error : unreachable();
      });
      if (done) throw new ApiError("The connection ended before the answer was complete.");
      for (const data of parse(decoder.decode(value, { stream: true }))) {
        if (data === "[DONE]") return;
        yield* eventsOf(JSON.parse(data));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * The events in one chunk.
 * @param {any} chunk a parsed chat.completion.chunk, or {error}
 * @returns {Generator<import('../types.js').StreamEvent>}
 */
export function* eventsOf(chunk) {
  if (chunk.error) {
    const code = Number(chunk.error.code);
    throw new ApiError(String(chunk.error.message ?? "The server reported an error."), {
      status: Number.isInteger(code) ? code : null,
    });
  }
  if (chunk.prompt_progress)
    yield { type: "progress", progress: progressOf(chunk.prompt_progress) };
  for (const choice of chunk.choices ?? []) {
    const text = choice.delta?.content ?? "";
    const tokens = (choice.logprobs?.content ?? []).map(tokenOf);
    if (text || tokens.length) yield { type: "text", text, tokens };
    if (choice.finish_reason) {
      yield {
        type: "finish",
        reason: choice.finish_reason,
        timings: chunk.timings ?? null,
        energy: chunk.energy ?? null,
      };
    }
  }
  if (chunk.usage) yield { type: "usage", usage: chunk.usage };
}

/** @param {any} sent */
function progressOf(sent) {
  return {
    total: sent.total ?? 0,
    cache: sent.cache ?? sent.cached ?? 0,
    processed: sent.processed ?? 0,
  };
}
