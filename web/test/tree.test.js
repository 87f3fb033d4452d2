import assert from "node:assert/strict";
import { test } from "node:test";
import { apiMessages, titleOf, Tree } from "../src/chats/tree.js";

let clock = 0;
/** @param {string} id @param {string | null} parent @param {Partial<import('../src/types.js').Message>} [more] */
function message(id, parent, more = {}) {
  /** @type {import('../src/types.js').Message} */
  return {
    id,
    parent,
    role: /** @type {'user'} */ ("user"),
    content: id,
    created: clock++,
    ...more,
  };
}

function sample() {
  return new Tree([
    message("q1", null),
    message("a1", "q1"),
    message("a2", "q1"),
    message("q2", "a1"),
    message("a3", "q2"),
  ]);
}

/** @param {import('../src/types.js').Message[]} path */
const ids = (path) => path.map(({ id }) => id);

test("the newest sibling is shown unless another is selected", () => {
  const tree = sample();
  assert.deepEqual(ids(tree.path({})), ["q1", "a2"]);
  assert.deepEqual(ids(tree.path({ q1: "a1" })), ["q1", "a1", "q2", "a3"]);
  assert.deepEqual(ids(tree.path({ q1: "gone" })), ["q1", "a2"]);
});

test("selecting a message leads to it and keeps the choices below", () => {
  const tree = sample();
  /** @type {Record<string, string>} */
  const selected = { a1: "q2" };
  tree.select(selected, /** @type {any} */ (tree.byId.get("a1")));
  assert.deepEqual(selected, { "": "q1", q1: "a1", a1: "q2" });
  assert.deepEqual(ids(tree.ancestry(/** @type {any} */ (tree.byId.get("a3")))), [
    "q1",
    "a1",
    "q2",
    "a3",
  ]);
});

test("removing takes what follows along", () => {
  const tree = sample();
  const removed = tree.remove(/** @type {any} */ (tree.byId.get("a1")));
  assert.deepEqual(ids(removed).sort(), ["a1", "a3", "q2"]);
  assert.deepEqual(ids(tree.path({ q1: "a1" })), ["q1", "a2"]);
  assert.equal(tree.byId.size, 2);
});

test("messages are put in order of time, whatever order they are read in", () => {
  const tree = new Tree([
    message("late", null, { created: 9 }),
    message("early", null, { created: 1 }),
  ]);
  assert.deepEqual(ids(tree.children(null)), ["early", "late"]);
});

test("answers asked for together", () => {
  const tree = new Tree([
    message("q", null),
    message("t", "q", { pair: "p" }),
    message("s", "q", { pair: "p" }),
    message("x", "q"),
  ]);
  assert.deepEqual(ids(tree.pairOf(/** @type {any} */ (tree.byId.get("s")))), ["t", "s"]);
  assert.deepEqual(ids(tree.pairOf(/** @type {any} */ (tree.byId.get("x")))), ["x"]);
});

test("files are sent in a fence longer than any in them", () => {
  const file = { name: "notes.md", text: "a\n````\nb\n" };
  const [system, user] = apiMessages("Be brief.", [message("Read this.", null, { files: [file] })]);
  assert.deepEqual(system, { role: "system", content: "Be brief." });
  assert.equal(user?.content, "notes.md:\n`````\na\n````\nb\n`````\n\nRead this.");
  assert.equal(apiMessages("  ", []).length, 0);
});

test("a title is one line, cut at a word, never inside a character", () => {
  assert.equal(titleOf("  What is\n a gemmule? "), "What is a gemmule?");
  assert.equal(titleOf(""), "New conversation");
  assert.equal(titleOf(`${"word ".repeat(30)}`), `${"word ".repeat(11)}word…`);
  assert.equal(titleOf("🧽".repeat(50), 61), `${"🧽".repeat(30)}…`);
});
