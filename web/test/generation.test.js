// An answer written from a stream, over a store and a server that are made up here.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Chat, newConversation, newId } from "../src/chats/chat.js";
import { isFull, taken } from "../src/generation/context.js";
import { Generation, startRun } from "../src/generation/generation.js";
import { canReplay, commonPrefix, replay } from "../src/generation/replay.js";

globalThis.sessionStorage = /** @type {any} */ ({ getItem: () => null });

/** @type {any[]} */
let saved = [];
/** @type {any} */
let asked = null;
const store = /** @type {any} */ ({
  /** @param {any} conversation @param {any[]} messages */
  save: async (conversation, messages = []) => {
    saved.push(structuredClone({ conversation, messages }));
  },
  removeMessages: async () => {},
});

beforeEach(() => {
  saved = [];
  asked = null;
});

/** @param {object[]} chunks @param {string} [end] */
function serve(chunks, end = "data: [DONE]\n\n") {
  globalThis.fetch = async (_, init) => {
    asked = JSON.parse(String(init?.body));
    return new Response(chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("") + end);
  };
}

/** @param {string} content */
const text = (content) => ({ choices: [{ delta: { content }, finish_reason: null }] });
const energy = { joules: 2, gco2e: null, boundary: "cpu" };
const END = {
  choices: [{ delta: {}, finish_reason: "stop" }],
  timings: { predicted_n: 2 },
  energy,
};
const USAGE = { choices: [], usage: { prompt_tokens: 3, completion_tokens: 2 } };

function conversation() {
  const chat = new Chat(
    store,
    newConversation({ system: "Be brief.", sampling: { seed: 7 } }),
    [],
    false,
  );
  const question = chat.add({ parent: null, role: "user", content: "Hi" });
  const answer = chat.add({ parent: question.id, role: "assistant", content: "" });
  startRun(answer, chat.conversation, "student");
  return { chat, question, answer };
}

test("an answer is asked for, written and saved with what it took", async () => {
  serve([
    { choices: [], prompt_progress: { total: 3, cache: 0, processed: 3 } },
    text("Hel"),
    text("lo"),
    END,
    USAGE,
  ]);
  const { chat, answer } = conversation();
  const generation = new Generation(chat, answer);
  /** @type {string[]} */
  const texts = [];
  generation.ontext = (piece) => texts.push(piece);
  await generation.run(false);
  assert.deepEqual(asked.messages, [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Hi" },
  ]);
  assert.equal(asked.seed, 7);
  assert.deepEqual(texts, ["Hel", "lo"]);
  assert.equal(answer.content, "Hello");
  assert.deepEqual(answer.runs?.[0]?.energy, energy);
  assert.equal(answer.runs?.[0]?.finish, "stop");
  assert.equal(answer.runs?.[0]?.usage?.prompt_tokens, 3);
  assert.equal(generation.progress?.total, 3);
  assert.equal(saved.at(-1).messages[0].content, "Hello");
  assert.equal(saved[0].messages[0].runs[0].finish, null, "what is running is saved as such");
});

test("what came before an error is kept, with the error", async () => {
  serve([text("Hel"), { error: { message: "Out of pages.", code: 503 } }]);
  const { chat, answer } = conversation();
  await new Generation(chat, answer).run(false);
  assert.equal(answer.content, "Hel");
  assert.equal(answer.runs?.[0]?.finish, "error");
  assert.deepEqual(saved.at(-1).messages[0].error, {
    message: "Out of pages.",
    status: 503,
    retryAfter: null,
  });
});

test("stopping keeps the text and is no error", async () => {
  globalThis.fetch = async (_, init) => {
    const bytes = new TextEncoder().encode(`data: ${JSON.stringify(text("Hel"))}\n\n`);
    return new Response(
      new ReadableStream({
        start(controller) {
          controller.enqueue(bytes);
          init?.signal?.addEventListener("abort", () =>
            controller.error(new DOMException("", "AbortError")),
          );
        },
      }),
    );
  };
  const { chat, answer } = conversation();
  const generation = new Generation(chat, answer);
  generation.ontext = () => generation.stop();
  await generation.run(false);
  assert.equal(answer.content, "Hel");
  assert.equal(answer.runs?.[0]?.finish, "cancelled");
  assert.equal(answer.error, null);
});

test("going on sends what there is and adds to it", async () => {
  const { chat, answer } = conversation();
  serve([text("Hello"), END]);
  await new Generation(chat, answer).run(false);
  startRun(answer, chat.conversation, "student");
  serve([text(" you"), END]);
  await new Generation(chat, answer).run(false);
  assert.equal(asked.continue_final_message, true);
  assert.deepEqual(asked.messages.at(-1), { role: "assistant", content: "Hello" });
  assert.equal(answer.content, "Hello you");
  assert.equal(answer.runs?.[1]?.start, 5);
});

test("a replay sends the same request and says where the texts part", async () => {
  const { chat, answer } = conversation();
  serve([text("Hello"), END]);
  await new Generation(chat, answer).run(false);
  startRun(answer, chat.conversation, "student");
  serve([text(" you all"), END]);
  await new Generation(chat, answer).run(false);
  const first = asked;
  chat.conversation.system = "Changed since.";
  const { signal } = new AbortController();
  const same = await replay(chat, answer, signal, () => {});
  assert.deepEqual(asked, first);
  assert.equal(same.identical, true);
  serve([text(" you there"), END]);
  const other = await replay(chat, answer, signal, () => {});
  assert.deepEqual([other.identical, other.same], [false, 5]);
  assert.equal(canReplay(answer), true);
  assert.equal(canReplay({ ...answer, edited: true }), false);
  assert.equal(commonPrefix("abc", "abd"), 2);
});

test("a conversation is named by its first message, until the user names it", async () => {
  const { chat } = conversation();
  assert.equal(chat.conversation.title, "Hi");
  chat.conversation.named = true;
  chat.add({ parent: null, role: "user", content: "Other" });
  assert.equal(chat.conversation.title, "Hi");
});

test("messages of one millisecond keep their order; a removed one is not selected", async () => {
  const { chat, question, answer } = conversation();
  const second = chat.add({ parent: question.id, role: "assistant", content: "" });
  assert.ok(second.created > answer.created);
  assert.equal(chat.path.at(-1), second);
  await chat.remove(second);
  assert.equal(chat.path.at(-1), answer);
  assert.notEqual(newId(), newId());
});

test("an answer that breaks off keeps how much of the context it took", async () => {
  serve([{ choices: [], prompt_progress: { total: 30, cache: 0, processed: 30 } }, text("a")], "");
  const { chat, answer } = conversation();
  await new Generation(chat, answer).run(false);
  assert.equal(answer.runs?.[0]?.finish, "error");
  assert.equal(taken(/** @type {any} */ (answer.runs?.[0])), 31);
});

test("a context is full once an answer has reached its end", () => {
  const run = { usage: { prompt_tokens: 200, completion_tokens: 56 } };
  assert.equal(isFull(/** @type {any} */ (run), 256), true);
  assert.equal(isFull(/** @type {any} */ (run), 257), false);
  assert.equal(isFull(/** @type {any} */ (run), undefined), false);
  assert.equal(isFull(undefined, 256), false);
});
