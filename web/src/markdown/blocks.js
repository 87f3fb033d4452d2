// The text of an answer as top-level blocks: paragraphs, lists, tables, code, …

import { parser } from "./parser.js";

/**
 * @typedef {import("markdown-it").Token} Token
 * @typedef {Record<string, { title: string, href: string }>} References
 *
 * @typedef {object} Block
 * @property {Token[]} tokens
 * @property {import("markdown-it").Env} env What rendering the tokens needs.
 * @property {boolean} closedCode It is a code block with its last fence: no more code follows.
 */

/** Splits text into blocks.
 *
 * The text starts where a block does. Blocks do not look back, so parsing may start at any of them;
 * the exception is links that are defined elsewhere (`[name]: address`), which `references` has.
 * @param {string} text
 * @param {References} references those defined before this text
 * @param {boolean} complete no more text follows
 * @returns {{ blocks: Block[], lastStart: number, closedReferences: References }} the blocks, where
 *   the last one starts in the text, and all references defined before that
 */
export function parseBlocks(text, references, complete) {
  const env = { references: { ...references } };
  /** @type {Block[]} */
  const blocks = [];
  let line = 0;
  let level = 0;
  /** @type {Token[]} */
  let tokens = [];
  for (const token of parser.parse(text, env)) {
    if (level === 0 && token.map) line = token.map[0];
    level += token.nesting;
    tokens.push(token);
    if (level === 0) {
      blocks.push({ tokens, env, closedCode: complete || isClosedCode(token, text) });
      tokens = [];
    }
  }
  const lastStart = offsetOfLine(text, line);
  let closedReferences = references;
  if (Object.keys(env.references).length > Object.keys(references).length) {
    // Only those before the last block: one that is still being written is not yet whole.
    const before = { references: { ...references } };
    parser.parse(text.slice(0, lastStart), before);
    closedReferences = before.references;
  }
  return { blocks, lastStart, closedReferences };
}

/** @param {string} text @param {number} line */
function offsetOfLine(text, line) {
  let offset = 0;
  for (; line > 0; line -= 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

/** @param {Token} token @param {string} text */
function isClosedCode(token, text) {
  if (token.type !== "fence" || !token.map) return false;
  const [start, end] = token.map;
  if (end - start < 2) return false;
  const last = text.slice(offsetOfLine(text, end - 1)).split("\n", 1)[0] ?? "";
  return last.trim().startsWith(token.markup) && last.trim().replaceAll(token.markup[0] ?? "", "") === "";
}

/** Levels of the headings that the text after a block is under.
 * @param {Block} block
 * @param {number[]} headings those the block itself is under
 */
export function headingsOf(block, headings) {
  return block.tokens
    .filter((token) => token.type === "heading_open")
    .reduce((under, token) => underHeading(under, Number(token.tag.slice(1))), headings);
}

/** @param {number[]} headings @param {number} level */
export function underHeading(headings, level) {
  return [...headings.filter((other) => other < level), level];
}
