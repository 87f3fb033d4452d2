// What a model may write is drawn as text, marks and safe links: nothing else.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import "./browser_globals.js";
const { markdownView } = await import("../src/markdown/view.js");

/** @type {string[]} */
const hostile = JSON.parse(
  readFileSync(new URL("hostile_markdown.json", import.meta.url), "utf8"),
);

/** @param {string} text */
export function drawn(text) {
  const element = document.createElement("div");
  markdownView(element).finish(text);
  return element;
}

const TAGS = new Set(
  ("a blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th " +
    "thead tr ul").split(" "),
);
const ATTRIBUTES = new Set(
  "href target rel class start dir tabindex role aria-label type title".split(" "),
);

for (const text of hostile) {
  test(`hostile: ${JSON.stringify(text)}`, () => {
    const root = drawn(text);
    for (const element of root.querySelectorAll("*")) {
      if (element.closest("math")) continue; // tests/serve/browser looks at maths
      assert.ok(TAGS.has(element.localName), element.outerHTML);
      for (const { name, value } of element.attributes) {
        assert.ok(ATTRIBUTES.has(name), `${name} in ${element.outerHTML}`);
        if (name === "href") assert.match(value, /^(https?|mailto):/);
        if (name === "class") assert.match(value, /^[\w -]*$/);
      }
    }
    for (const link of root.querySelectorAll("a")) {
      assert.equal(link.rel, "noopener noreferrer");
      assert.equal(link.target, "_blank");
      const address = new URL(link.href);
      assert.ok(link.textContent?.includes(address.host || address.pathname), link.outerHTML);
    }
  });
}

test("what looks like HTML is text", () => {
  assert.equal(drawn("<b>a</b> &amp; <!-- c -->").textContent?.trim(), "<b>a</b> & <!-- c -->");
});

test("an image is a link with its text", () => {
  const link = drawn("![a *cat*](https://example.org/cat.png)").querySelector("a");
  assert.equal(link?.getAttribute("href"), "https://example.org/cat.png");
  assert.equal(link?.textContent, "a cat (example.org)");
});

test("no direction of the text turns the host", () => {
  const link = drawn("[x \u202e](https://evil.example/)").querySelector("a");
  assert.equal(link?.querySelector(".link-host")?.getAttribute("dir"), "ltr");
});

test("file names and abbreviations are not links", () => {
  assert.equal(drawn("main.py, e.g.this, me@example.org").querySelector("a"), null);
  assert.equal(drawn("see https://example.org.").querySelector("a")?.href, "https://example.org/");
});

test("tables keep their alignment without style attributes", () => {
  const root = drawn("| a | b |\n|:-:|--:|\n| 1 | 2 |");
  assert.deepEqual(
    [...root.querySelectorAll("td")].map((cell) => cell.className),
    ["align-center", "align-right"],
  );
  assert.equal(root.querySelector(".table-box")?.getAttribute("tabindex"), "0");
});

test("task lists have boxes that are read aloud", () => {
  const boxes = [...drawn("- [x] one\n- [ ] two\n- three").querySelectorAll("[role=img]")];
  assert.deepEqual(boxes.map((box) => box.getAttribute("aria-label")), ["done:", "to do:"]);
});

test("code has its language, colors and a button", () => {
  const root = drawn("```python\ndef f(): pass\n```");
  assert.equal(root.querySelector(".code-language")?.textContent, "python");
  assert.equal(root.querySelector(".hljs-keyword")?.textContent, "def");
  assert.equal(root.querySelector("button")?.textContent, "Copy code");
});

test("headings of any level leave no gap in the outline", () => {
  const levels = (/** @type {string} */ text) =>
    [...drawn(text).querySelectorAll("h1, h2, h3, h4, h5, h6")].map((h) => h.localName);
  assert.deepEqual(levels("# a\n\n### b\n\n### c\n\n## d\n\n# e"), ["h3", "h4", "h4", "h4", "h3"]);
  assert.deepEqual(levels("###### a\n\ntext\n\n# b"), ["h3", "h3"]);
});

test("money is not maths", () => {
  for (const text of ["$5 and $6", "costs $5, not $ 6", "a$b and $2", "\\$a\\$"]) {
    assert.equal(drawn(text).querySelector(".math"), null, text);
  }
});

test("maths in lines and in blocks", () => {
  const math = (/** @type {string} */ text) =>
    [...drawn(text).querySelectorAll(".math")].map((m) => [m.localName, m.className]);
  assert.deepEqual(math("so $x^2$ and \\(y\\)"), [["span", "math"], ["span", "math"]]);
  assert.deepEqual(math("$$\nx\n+ y\n$$"), [["div", "math display scrolls"]]);
  assert.deepEqual(math("\\[ x \\]"), [["div", "math display scrolls"]]);
  assert.deepEqual(math("a $$x$$ b"), [["span", "math display scrolls"]]);
  assert.deepEqual(math("$$\n\nx$$"), []);
  assert.deepEqual(math("```\n$x$\n```\n\n`$y$`"), []);
});

test("maths that is not valid TeX shows its source", () => {
  const math = drawn("$\\frac{1$").querySelector(".math");
  assert.equal(math?.textContent, "\\frac{1");
  assert.equal(math?.getAttribute("title"), "not valid TeX");
});

test("deep and long input ends", () => {
  for (const text of [">".repeat(3000), "[".repeat(20_000), "*a ".repeat(5000), "- ".repeat(3000),
    "`".repeat(9999) + "a", "$x".repeat(5000), "|a".repeat(2000) + "\n" + "|-".repeat(2000),
    "![".repeat(5000), "<a ".repeat(9000), "$" + "{".repeat(3000) + "}".repeat(3000) + "$"]) {
    assert.ok(drawn(text).childNodes.length > 0);
  }
});
