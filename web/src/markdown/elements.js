// From a block's tokens to what the page shows: code with a bar, links with their host, maths.

import { copyText } from "../clipboard.js";
import { underHeading } from "./blocks.js";
import { highlight } from "./highlight.js";
import { mathElement } from "./math.js";
import { isSafeLink, parser } from "./parser.js";
import { safeNodes } from "./sanitize.js";

/** @typedef {import("./blocks.js").Block} Block */

const SHORT_MATH = 30; // letters of TeX that fit on a phone
const FIRST_HEADING = 3; // the page's own are level 1 and 2

/** One element for a block.
 * @param {Block} block
 * @param {number[]} headings levels of the headings that the block is under
 * @param {boolean} open more of the block may follow
 * @param {import("./view.js").ViewOptions} options
 * @returns {Element}
 */
export function blockElement(block, headings, open, options) {
  const html = parser.renderer.render(block.tokens, parser.options, block.env);
  const root = document.createElement("div");
  root.append(safeNodes(html));
  // While code grows its colors would change with each letter.
  const colored = !open || block.closedCode;
  for (const pre of root.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre, colored, options));
  for (const table of root.querySelectorAll("table")) table.replaceWith(scrolling(table));
  for (const source of root.querySelectorAll(".math")) {
    const math = mathElement(source, open);
    source.replaceWith(math);
    const wide = math.classList.contains("display") || (source.textContent ?? "").length > SHORT_MATH;
    if (wide) makeScrollable(math, "Formula");
  }
  for (const link of root.querySelectorAll("a")) finishLink(link);
  let under = headings;
  for (const heading of root.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    under = underHeading(under, Number(heading.tagName.slice(1)));
    heading.replaceWith(renamed(heading, `h${Math.min(FIRST_HEADING - 1 + under.length, 6)}`));
  }
  for (const part of root.querySelectorAll("p, li, td, th, h3, h4, h5, h6")) {
    part.setAttribute("dir", "auto"); // Arabic and Hebrew read from the right
  }
  const [only, second] = root.children;
  return only && !second ? only : root;
}

/** Models use any level of heading; the page's outline has no gaps.
 * @param {Element} element @param {string} name
 */
function renamed(element, name) {
  const other = document.createElement(name);
  other.append(...element.childNodes);
  return other;
}

/** @param {HTMLAnchorElement} link */
function finishLink(link) {
  const address = link.getAttribute("href") ?? "";
  if (!isSafeLink(address)) {
    link.replaceWith(...link.childNodes);
    return;
  }
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  // A link's text can say anything; where it leads is always seen.
  if (link.textContent !== address) {
    const { host, pathname } = new URL(address);
    const where = document.createElement("span");
    where.className = "link-host";
    where.dir = "ltr"; // also after characters that turn the direction of the link's text
    where.textContent = ` (${host || pathname})`; // mail addresses have no host
    link.append(where);
  }
}

/** @param {HTMLElement} pre @param {boolean} colored @param {import("./view.js").ViewOptions} options */
function codeBlock(pre, colored, options) {
  const code = pre.querySelector("code") ?? pre;
  const text = code.textContent ?? "";
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const html = colored && language ? highlight(text, language) : null;
  if (html !== null) code.replaceChildren(safeNodes(html));
  code.removeAttribute("class");

  const box = document.createElement("div");
  box.className = "code-block";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const name = document.createElement("span");
  name.className = "code-language";
  name.textContent = language || "text";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy-code";
  button.textContent = "Copy code";
  button.addEventListener("click", async () => {
    // Of the block on the page: the one made here may have been patched into an older one.
    const shown = button.closest(".code-block")?.querySelector("code")?.textContent ?? text;
    const done = await copyText(shown);
    button.textContent = done ? "Copied" : "Could not copy";
    options.announce?.(done ? "Code copied" : "The browser did not allow copying");
    setTimeout(() => (button.textContent = "Copy code"), 2000);
  });
  bar.append(name, button);
  const scroller = document.createElement("pre");
  makeScrollable(scroller, language ? `Code, ${language}` : "Code");
  scroller.append(code);
  box.append(bar, scroller);
  return box;
}

/** @param {HTMLElement} table */
function scrolling(table) {
  const box = document.createElement("div");
  box.className = "table-box";
  makeScrollable(box, "Table");
  box.append(table.cloneNode(true));
  return box;
}

/** What may be wider than the page scrolls by itself, with the keyboard too.
 * @param {Element} element @param {string} label
 */
function makeScrollable(element, label) {
  element.setAttribute("tabindex", "0");
  element.classList.add("scrolls");
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
}
