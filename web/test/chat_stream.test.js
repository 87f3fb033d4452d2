import assert from "node:assert/strict";
import { test } from "node:test";
import { chatStream, eventsOf, requestBody } from "../src/api/chat_stream.js";
import { ApiError } from "../src/api/errors.js";

globalThis.sessionStorage = /** @type {any} */ ({ getItem: () => null });

/** Serves the bytes in pieces of the given size. @param {string} text @param {number} size */
function serve(text, size) {
  const bytes = new TextEncoder().encode(text);
  globalThis.fetch = async () => {
    let at = 0;
    return new Response(
      new ReadableStream({
        pull(controller) {
          if (at >= bytes.length) return controller.close();
          controller.enqueue(bytes.slice(at, (at += size)));
        },
      }),
    );
  };
}

const BODY = requestBody({
  model: "m",
  messages: [{ role: "user", content: "x" }],
  sampling: { seed: 3 },
  goOn: false,
  logprobs: false,
});

async function all() {
  const events = [];
  for await (const event of chatStream(BODY, new AbortController().signal)) events.push(event);
  return events;
}

test("an emoji split over network pieces arrives whole", async () => {
  const chunk = { choices: [{ delta: { content: "Sponge 🧽!" }, finish_reason: null }] };
  for (const size of [1, 2, 3, 5]) {
    serve(`data: ${JSON.stringify(chunk)}\n\ndata: [DONE]\n\n`, size);
    assert.deepEqual(await all(), [{ type: "text", text: "Sponge 🧽!", tokens: [] }]);
  }
});

test("a stream that ends without [DONE] is an error, not a short answer", async () => {
  serve('data: {"choices":[{"delta":{"content":"cut"}}]}\n\n', 100);
  await assert.rejects(all(), /before the answer was complete/);
});

test("an error event in the stream is thrown with its message and status", async () => {
  serve(
    'data: {"error":{"message":"Out of pages.","type":"server_error","code":503}}\n\ndata: [DONE]\n\n',
    100,
  );
  await assert.rejects(
    all(),
    (error) => error instanceof ApiError && error.status === 503 && /pages/.test(error.message),
  );
});

test("an error status carries the wait the server asks for", async () => {
  globalThis.fetch = async () =>
    new Response('{"error":{"message":"Busy."}}', { status: 429, headers: { "retry-after": "4" } });
  await assert.rejects(
    all(),
    (error) => error instanceof ApiError && error.status === 429 && error.retryAfter === 4,
  );
});

test("a server that does not answer is said so", async () => {
  globalThis.fetch = async () => {
    throw new TypeError("fetch failed");
  };
  await assert.rejects(all(), /does not answer/);
});

test("the last chunks: finish reason with times and energy, then usage without choices", () => {
  const timings = { predicted_n: 5 };
  const energy = { joules: 1.5, gco2e: 0.1, boundary: "package" };
  assert.deepEqual(
    [...eventsOf({ choices: [{ delta: {}, finish_reason: "stop" }], timings, energy })],
    [{ type: "finish", reason: "stop", timings, energy }],
  );
  const usage = { prompt_tokens: 3, completion_tokens: 5 };
  assert.deepEqual([...eventsOf({ choices: [], usage })], [{ type: "usage", usage }]);
});

test("prompt progress", () => {
  const [event] = eventsOf({ choices: [], prompt_progress: { total: 10, cache: 4, processed: 8 } });
  assert.deepEqual(event, { type: "progress", progress: { total: 10, cache: 4, processed: 8 } });
});

test("unset settings are not sent; going on asks for it", () => {
  assert.equal("temperature" in BODY, false);
  assert.equal(BODY.seed, 3);
  assert.equal("continue_final_message" in BODY, false);
  const goOn = requestBody({ model: "m", messages: [], sampling: {}, goOn: true, logprobs: true });
  assert.equal(goOn.continue_final_message, true);
  assert.equal(goOn.add_generation_prompt, false);
  assert.equal(goOn.logprobs, true);
});
