// While an answer grows, the same is drawn as at its end, and closed blocks are left alone.
import assert from "node:assert/strict";
import { test } from "node:test";
import { nextFrame } from "./browser_globals.js";
const { markdownView } = await import("../src/markdown/view.js");

const ANSWER = `# Title

A paragraph with *emphasis*, \`code\`
and a [link](https://example.org).
Setext
---

> quote
lazy

- one

- two
  - [x] three

      code in a list

1. a
2. b

\`\`\`python
def f(x):

    return x  # $not maths$
\`\`\`

| a | b |
|---|--:|
| 1 | 2 |
text after

$$
x = 1
- y
$$

\\[
z

no maths
\\]

***
~~~~
open \`\`\` code
~~~~
    indented

Emoji 👩‍👩‍👧 and é.\r\nWindows line ends\r\n\r\nlast`;

const view = () => {
  const element = document.createElement("div");
  return { element, ...markdownView(element) };
};

/** @typedef {{ element: HTMLElement }} Shown */
/** @param {Shown} actual @param {Shown} expected @param {string} when */
function assertSame(actual, expected, when) {
  // The order of attributes may differ.
  if (actual.element.isEqualNode(expected.element)) return;
  assert.equal(actual.element.innerHTML, expected.element.innerHTML, when);
}

test("however it is cut, the end is as if drawn at once", () => {
  const whole = view();
  whole.finish(ANSWER);
  for (const step of [1, 2, 3, 7, 31]) {
    const grown = view();
    for (let end = 0; end < ANSWER.length; end += step) {
      grown.update(ANSWER.slice(0, end));
      nextFrame();
    }
    grown.finish(ANSWER);
    assertSame(grown, whole, `step ${step}`);
  }
});

test("before the end, too, it is what that much text gives", () => {
  const grown = view();
  for (let end = 1; end < ANSWER.length; end += 1) {
    grown.update(ANSWER.slice(0, end));
    nextFrame();
    const once = view();
    once.update(ANSWER.slice(0, end));
    nextFrame();
    assertSame(grown, once, JSON.stringify(ANSWER.slice(0, end)));
  }
});

test("links that are defined elsewhere", () => {
  const text = "[a] and [b]\n\n[a]: https://example.org/first\n\n[a] again\n\n[b]: https://example.org/b\n";
  const whole = view();
  whole.finish(text);
  assert.equal(whole.element.querySelectorAll("a").length, 3);
  const grown = view();
  for (let end = 0; end < text.length; end += 1) {
    grown.update(text.slice(0, end));
    nextFrame();
  }
  grown.finish(text);
  assertSame(grown, whole, "");
});

test("each token draws one block again, not all of them", () => {
  const { element, update, counts } = view();
  let text = "";
  for (let i = 0; i < 200; i += 1) {
    text += `Paragraph ${i}.\n\n`;
    update(text);
    nextFrame();
  }
  assert.equal(element.children.length, 200);
  assert.ok(counts.drawn <= 400, `${counts.drawn} blocks were drawn`);
});

test("closed blocks keep their nodes, and an open one its beginning", () => {
  const { element, update } = view();
  update("First.\n\nSecond **bold** and");
  nextFrame();
  const [first, second] = [...element.children];
  const bold = second?.querySelector("strong");
  update("First.\n\nSecond **bold** and more\n\nThird");
  nextFrame();
  assert.equal(element.children[0], first);
  assert.equal(element.children[1], second);
  assert.equal(second?.querySelector("strong"), bold);
});

test("many updates in a frame are drawn once", () => {
  const { update, counts } = view();
  for (let i = 1; i < 50; i += 1) update("word ".repeat(i));
  nextFrame();
  assert.equal(counts.drawn, 1);
});

test("another text replaces the first one", () => {
  const { element, update, finish } = view();
  update("One.\n\nTwo.\n\nThree");
  nextFrame();
  finish("Other");
  assert.equal(element.textContent, "Other");
  finish("");
  assert.equal(element.childNodes.length, 0);
});

test("what stood in the container before the first drawing goes", () => {
  const element = document.createElement("div");
  element.textContent = "soon";
  markdownView(element).finish("Text");
  assert.equal(element.innerHTML, '<p dir="auto">Text</p>');
});

test("code is colored when its last fence has come", () => {
  const { element, update } = view();
  update("```js\nconst a = 1;\n");
  nextFrame();
  assert.equal(element.querySelector(".hljs-keyword"), null);
  const pre = element.querySelector("pre");
  update("```js\nconst a = 1;\n```");
  nextFrame();
  assert.equal(element.querySelector(".hljs-keyword")?.textContent, "const");
  assert.equal(element.querySelector("pre"), pre);
});

test("a disposed view draws no more", () => {
  const { element, update, dispose } = view();
  update("text");
  dispose();
  nextFrame();
  assert.equal(element.childNodes.length, 0);
});
