import assert from "node:assert/strict";
import { test } from "node:test";
import { exportText, ImportError, importText } from "../src/chats/transfer.js";

let last = 0;
const newId = () => `new${last++}`;

/** @returns {import('../src/chats/transfer.js').Chat} */
function chat() {
  return {
    conversation: {
      id: "c",
      title: "Sponges",
      named: true,
      created: 1,
      updated: 2,
      system: "Be brief.",
      sampling: { temperature: 0.5, seed: 7 },
      models: ["student"],
      selected: { "": "q", q: "a" },
    },
    messages: [
      {
        id: "q",
        parent: null,
        role: "user",
        content: "Hi",
        created: 1,
        files: [{ name: "f", text: "t" }],
      },
      {
        id: "a",
        parent: "q",
        role: "assistant",
        content: "Hello",
        created: 2,
        pair: "p",
        edited: true,
        runs: [
          {
            model: "student",
            sampling: { seed: 7 },
            system: "",
            start: 0,
            finish: "stop",
            tokens: [
              {
                text: "Hello",
                logprob: -0.5,
                alternatives: [{ text: "", logprob: -1, bytes: [240] }],
              },
            ],
            timings: { predicted_n: 1 },
            energy: { joules: 1, gco2e: null, boundary: "cpu" },
            usage: { prompt_tokens: 3, completion_tokens: 1 },
          },
        ],
      },
    ],
  };
}

/** @param {(file: any) => void} change */
function changed(change) {
  const file = JSON.parse(exportText([chat()]));
  change(file);
  return JSON.stringify(file);
}

test("what is exported comes back whole, under new ids", () => {
  last = 0;
  const [back] = importText(exportText([chat()]), newId);
  const wanted = chat();
  wanted.conversation.id = "new2";
  wanted.conversation.selected = { "": "new0", new0: "new1" };
  wanted.messages[0] = { .../** @type {any} */ (wanted.messages[0]), id: "new0" };
  wanted.messages[1] = { .../** @type {any} */ (wanted.messages[1]), id: "new1", parent: "new0" };
  assert.deepEqual(back, wanted);
});

test("every wrong file is refused, with the place", () => {
  /** @type {[string, RegExp][]} */
  const cases = [
    ["{", /not a JSON file/],
    ["[]", /"format" is not/],
    [changed((file) => (file.version = 2)), /version 2/],
    [changed((file) => (file.conversations = {})), /conversations has to be a list/],
    [
      changed((file) => (file.conversations[0].messages[1].role = "system")),
      /messages\[1\]\.role is "system"/,
    ],
    [changed((file) => (file.conversations[0].messages[1].parent = "x")), /messages\[1\]\.parent/],
    [changed((file) => (file.conversations[0].messages[1].id = "q")), /"q" is there twice/],
    [changed((file) => (file.conversations[0].messages[0].parent = "a")), /in a circle/],
    [
      changed((file) => (file.conversations[0].messages[0].content = 5)),
      /content has to be a text/,
    ],
    [
      changed((file) => (file.conversations[0].sampling.temperature = "hot")),
      /sampling\.temperature has to be a number/,
    ],
  ];
  for (const [text, message] of cases) {
    assert.throws(
      () => importText(text, newId),
      (error) => error instanceof ImportError && message.test(error.message),
    );
  }
});

test("what is not known is left out", () => {
  const text = changed((file) => {
    file.conversations[0].extra = { __proto__: 1 };
    file.conversations[0].sampling.evil = 1;
    file.conversations[0].selected.nowhere = "q";
  });
  const [back] = importText(text, newId);
  assert.ok(back);
  assert.equal("extra" in back.conversation, false);
  assert.equal("evil" in back.conversation.sampling, false);
  assert.equal(Object.keys(back.conversation.selected).length, 2);
});

test("a long chain of messages is read without deep recursion", () => {
  const text = changed((file) => {
    file.conversations[0].messages = Array.from({ length: 20000 }, (_, i) => ({
      id: `m${i}`,
      parent: i ? `m${i - 1}` : null,
      role: "user",
      content: "x",
      created: i,
    }));
  });
  assert.equal(importText(text, newId)[0]?.messages.length, 20000);
});
