// Where maths starts and ends: $…$ and \(…\) in a line, $$…$$ and \[…\] as blocks.

/**
 * @typedef {import("markdown-it").MarkdownIt} MarkdownIt
 * @typedef {import("markdown-it").StateInline} StateInline
 * @typedef {import("markdown-it").StateBlock} StateBlock
 */

const LONGEST = 4000; // letters of one formula; what is longer stays text
const CLOSING = new Map([
  ["$$", "$$"],
  ["\\[", "\\]"],
  ["\\(", "\\)"],
]);

/** Adds the rules and how the tokens are written: the source in an element of class "math" or
 * "math display", from which elements.js makes MathML.
 * @param {MarkdownIt} parser
 */
export function math(parser) {
  parser.inline.ruler.before("escape", "math_inline", inlineMath);
  parser.block.ruler.before("fence", "math_block", blockMath, {
    alt: ["paragraph", "reference", "blockquote", "list"],
  });
  const { escapeHtml } = parser.utils;
  parser.renderer.rules.math_inline = (tokens, i) => {
    const { content = "", markup = "" } = tokens[i] ?? {};
    const display = markup === "$$" || markup === "\\[" ? " display" : "";
    return `<span class="math${display}">${escapeHtml(content)}</span>`;
  };
  parser.renderer.rules.math_block = (tokens, i) =>
    `<div class="math display">${escapeHtml(tokens[i]?.content ?? "")}</div>\n`;
}

/** @param {StateInline} state @param {boolean} silent */
function inlineMath(state, silent) {
  const { src, pos } = state;
  let open = src.slice(pos, pos + 2);
  let close = CLOSING.get(open);
  if (!close) {
    if (src[pos] !== "$") return false;
    open = close = "$";
  }
  const start = pos + open.length;
  const end = src.indexOf(close, start);
  if (end < 0 || end - start > LONGEST || end >= state.posMax) return false;
  const content = src.slice(start, end);
  if (!content.trim()) return false;
  // Amounts of money are not maths: "$5 and $6" (the rule of Pandoc).
  if (open === "$" && (/^\s|\s$/.test(content) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) {
    const token = state.push("math_inline", "", 0);
    token.content = content.trim();
    token.markup = open;
  }
  state.pos = end + close.length;
  return true;
}

/** A block from a line that starts with $$ or \[ to one that ends with its counterpart. As in TeX
 * it has no empty line. At the end of the text a block may be open: more of it can follow.
 * @param {StateBlock} state @param {number} startLine @param {number} endLine
 * @param {boolean} silent
 */
function blockMath(state, startLine, endLine, silent) {
  const lineOf = (/** @type {number} */ line) =>
    state.src.slice((state.bMarks[line] ?? 0) + (state.tShift[line] ?? 0), state.eMarks[line]).trim();
  if ((state.sCount[startLine] ?? 0) - state.blkIndent >= 4) return false;
  const first = lineOf(startLine);
  const open = first.slice(0, 2);
  const close = CLOSING.get(open);
  if (!close || open === "\\(") return false;
  const lines = [];
  let line = startLine;
  for (let text = first.slice(2); ; text = lineOf(line)) {
    const end = text.indexOf(close);
    if (end >= 0) {
      if (text.slice(end + 2).trim()) return false; // text follows: maths within a paragraph
      lines.push(text.slice(0, end));
      break;
    }
    lines.push(text);
    line += 1;
    if (line >= endLine) {
      if (state.level > 0 || endLine < state.lineMax) return false;
      break; // open
    }
    const outdented = (state.sCount[line] ?? 0) < state.blkIndent;
    if (state.isEmpty(line) || outdented) return false;
  }
  const content = lines.join("\n").trim();
  if (!content || content.length > LONGEST) return false;
  if (silent) return true;
  const token = state.push("math_block", "", 0);
  token.block = true;
  token.content = content;
  token.markup = open;
  token.map = [startLine, Math.min(line + 1, endLine)];
  state.line = Math.min(line + 1, endLine);
  return true;
}
