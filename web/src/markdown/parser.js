// The dialect of markdown that answers are read as: CommonMark with tables, strikethrough, task
// lists, bare addresses and maths; without HTML, and with images as links.

import MarkdownIt from "markdown-it";
import { math } from "./math_rules.js";

/** @typedef {import("markdown-it").Token} Token */

export const parser = new MarkdownIt("default", {
  html: false,
  linkify: true,
  typographer: false, // what the model wrote, letter by letter
  breaks: false,
});

// Only whole addresses: "main.py" and "it.Then" are not links.
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
parser.validateLink = isSafeLink;
parser.use(math);
parser.core.ruler.push("images_as_links", (state) => eachInline(state.tokens, imagesAsLinks));
parser.core.ruler.push("task_lists", (state) => taskLists(state.tokens));
parser.core.ruler.push("classes_for_styles", (state) => {
  for (const token of state.tokens) {
    // The page's policy allows no style attributes.
    const side = /text-align:(\w+)/.exec(String(token.attrGet("style")))?.[1];
    if (side) token.attrs = [["class", `align-${side}`]];
  }
});

/** Whether an address is absolute and of a scheme that cannot run code.
 * @param {string} address
 */
export function isSafeLink(address) {
  if (!URL.canParse(address)) return false;
  return ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
}

/** @param {Token[]} tokens @param {(children: Token[]) => Token[]} change */
function eachInline(tokens, change) {
  for (const token of tokens) if (token.children) token.children = change(token.children);
}

/** An image would be fetched without being asked for, and its address can carry the conversation
 * away; a link is followed only by choice. In a link it becomes its text.
 * @param {Token[]} tokens
 * @returns {Token[]}
 */
function imagesAsLinks(tokens) {
  let depth = 0;
  return tokens.flatMap((token) => {
    if (token.type === "link_open") depth += 1;
    if (token.type === "link_close") depth -= 1;
    if (token.type !== "image") return [token];
    const address = String(token.attrGet("src") ?? "");
    const text = new (constructorOf(token))("text", "", 0);
    text.content = plainText(token.children ?? []) || (depth ? "image" : address);
    if (depth) return [text];
    const open = new (constructorOf(token))("link_open", "a", 1);
    open.attrs = [
      ["href", address],
      ["class", "image-link"],
    ];
    return [open, text, new (constructorOf(token))("link_close", "a", -1)];
  });
}

/** @param {Token} token */
function constructorOf(token) {
  return /** @type {typeof import("markdown-it").Token} */ (token.constructor);
}

/** @param {Token[]} tokens @returns {string} */
function plainText(tokens) {
  return tokens.map((t) => (t.children ? plainText(t.children) : t.content)).join("");
}

/** "[ ] " and "[x] " at the start of a list item become boxes.
 * @param {Token[]} tokens
 */
function taskLists(tokens) {
  tokens.forEach((token, i) => {
    if (token.type !== "list_item_open" || tokens[i + 1]?.type !== "paragraph_open") return;
    const first = tokens[i + 2]?.children?.[0];
    const mark = first?.type === "text" && /^\[([ xX])\](?: |$)/.exec(first.content);
    if (!first || !mark) return;
    first.content = first.content.slice(mark[0].length);
    const box = new (constructorOf(token))("task_box", "", 0);
    box.info = mark[1] === " " ? "to do" : "done";
    tokens[i + 2]?.children?.unshift(box);
    token.attrJoin("class", "task");
  });
}

parser.renderer.rules.task_box = (tokens, i) =>
  tokens[i]?.info === "done"
    ? '<span role="img" aria-label="done:" class="task-box">☑</span> '
    : '<span role="img" aria-label="to do:" class="task-box">☐</span> ';
