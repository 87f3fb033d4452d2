import assert from "node:assert/strict";
import { test } from "node:test";
import {
  branchFrom,
  percent,
  piecesOf,
  surprise,
  tokenOf,
  visible,
} from "../src/generation/tokens.js";

const encoder = new TextEncoder();

/** @param {string | number[]} value text or bytes @param {number} [logprob] @param {any[]} [top] */
function sent(value, logprob = -0.1, top = []) {
  const bytes = typeof value === "string" ? [...encoder.encode(value)] : value;
  return tokenOf({
    token: typeof value === "string" ? value : "\ufffd",
    logprob,
    bytes,
    top_logprobs: top,
  });
}

/** @param {string} content @param {any[]} runs @returns {import('../src/types.js').Message} */
function answer(content, runs) {
  const filled = runs.map((run) => ({
    model: "m",
    sampling: {},
    system: "",
    finish: "stop",
    timings: null,
    energy: null,
    usage: null,
    ...run,
  }));
  return { id: "a", parent: "q", role: "assistant", content, created: 0, runs: filled };
}

/** @param {import('../src/types.js').Message} message */
function texts(message) {
  const pieces = piecesOf(message);
  assert.equal(pieces.map(({ text }) => text).join(""), message.content);
  for (const { text, start } of pieces)
    assert.equal(message.content.slice(start, start + text.length), text);
  return pieces.map(({ text, tokens }) => [text, tokens.length]);
}

test("a character whose bytes are split over tokens is one piece", () => {
  const [a = 0, b = 0, c = 0, d = 0] = encoder.encode("🧽");
  const tokens = [sent("A "), sent([a, b]), sent([c]), sent([d]), sent("!")];
  assert.deepEqual(texts(answer("A 🧽!", [{ start: 0, tokens }])), [
    ["A ", 1],
    ["🧽", 3],
    ["!", 1],
  ]);
});

test("text that was given, an end token without text, and two runs", () => {
  const message = answer("Given one two", [
    { start: 5, tokens: [sent(" one"), sent("")] },
    { start: 9, tokens: [sent(" two")] },
  ]);
  assert.deepEqual(texts(message), [
    ["Given", 0],
    [" one", 1],
    [" two", 1],
  ]);
});

test("tokens that say more than the text (a stop string was cut off) are left out", () => {
  const message = answer("Hello", [{ start: 0, tokens: [sent("Hel"), sent("lo END")] }]);
  assert.deepEqual(texts(message), [
    ["Hel", 1],
    ["lo", 0],
  ]);
});

test("an answer without tokens is one piece", () => {
  assert.deepEqual(texts(answer("No tokens", [{ start: 0, tokens: [] }])), [["No tokens", 0]]);
  assert.deepEqual(texts(answer("", [])), []);
});

test("a branch keeps the text and tokens before it, and none of the energy", () => {
  const top = [
    { token: " two", logprob: -1, bytes: null },
    { token: " 2", logprob: -2, bytes: null },
  ];
  const energy = { joules: 3, gco2e: 1, boundary: "cpu" };
  const message = answer("One two three", [
    { start: 0, tokens: [sent("One"), sent(" two", -1, top), sent(" three")], energy, usage: {} },
  ]);
  const piece = piecesOf(message)[1];
  assert.ok(piece);
  const branch = branchFrom(message, piece, { text: " 2", logprob: -2 });
  assert.equal(branch.content, "One 2");
  assert.equal(branch.runs.length, 1);
  assert.deepEqual(
    branch.runs[0]?.tokens.map(({ text, chosen }) => [text, chosen ?? false]),
    [
      ["One", false],
      [" 2", true],
    ],
  );
  assert.equal(branch.runs[0]?.energy, null);
  assert.equal(branch.runs[0]?.finish, "branched");
  assert.equal(message.runs?.[0]?.tokens.length, 3, "the old answer is as it was");
  assert.deepEqual(texts({ ...message, ...branch }), [
    ["One", 1],
    [" 2", 1],
  ]);
});

test("how tokens are shown", () => {
  assert.equal(visible({ text: " a\n", logprob: 0 }), "␣a↵");
  assert.equal(visible({ text: "", logprob: 0 }), "∅");
  assert.equal(visible(sent([0xf0, 0x9f])), "<0xF0><0x9F>");
  assert.equal(percent(0), "100%");
  assert.equal(percent(Math.log(0.1234)), "12.3%");
  assert.equal(percent(-20), "<0.1%");
  assert.deepEqual(
    [0.95, 0.7, 0.4, 0.2, 0.01].map((p) => surprise(Math.log(p))),
    [0, 1, 2, 3, 4],
  );
});
