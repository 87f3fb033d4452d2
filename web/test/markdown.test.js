// What a model may write is drawn as text, marks and safe links: nothing else.
import assert from "node:assert/strict";
import { test } from "node:test";
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!doctype html><body></body>");
Object.assign(globalThis, { window, document: window.document, Node: window.Node });
Object.assign(globalThis, { requestAnimationFrame: setImmediate, cancelAnimationFrame: clearImmediate });
const { markdownView } = await import("../src/markdown/view.js");

/** @param {string} text */
function drawn(text) {
  const element = window.document.createElement("div");
  markdownView(element).finish(text);
  return element;
}

test("raw HTML is text", () => {
  const element = drawn("<img src=x onerror=alert(1)> <script>alert(1)</script>");
  assert.equal(element.querySelector("img, script"), null);
  assert.match(element.textContent ?? "", /<script>/);
});
