// An element that shows markdown, and goes on showing it while the text grows.
//
// A block that another one follows can no longer change, so its nodes are left alone; only the last
// block is parsed and drawn again, at most once a frame, and of its nodes only those that differ.

import { headingsOf, parseBlocks } from "./blocks.js";
import { blockElement } from "./elements.js";
import { patch } from "./patch.js";

/**
 * @typedef {object} ViewOptions
 * @property {(message: string) => void} [announce] Tells users of screen readers that code was
 *   copied.
 *
 * @typedef {object} MarkdownView
 * @property {(text: string) => void} update Shows the whole text so far, with the next frame.
 * @property {(text: string) => void} finish Shows the whole text at once; it is complete.
 * @property {() => void} dispose Drops a frame that is still to come.
 * @property {{ drawn: number }} counts How many blocks were drawn, again or for the first time.
 */

/** Shows markdown in `container`, whose content it owns from now on.
 * @param {HTMLElement} container
 * @param {ViewOptions} [options]
 * @returns {MarkdownView}
 */
export function markdownView(container, options = {}) {
  container.classList.add("markdown"); // its styles: markdown.css
  const counts = { drawn: 0 };
  let text = "";
  let frame = 0;
  let closedEnd = 0; // where in the text the open block starts
  let closedText = "";
  let closedCount = 0; // how many of the container's children are closed
  /** @type {number[]} */
  let headings = []; // levels of the headings around the open block
  /** @type {import("./blocks.js").References} */
  let references = {};

  function reset() {
    closedEnd = closedCount = 0;
    closedText = "";
    headings = [];
    references = {};
  }

  /** @param {boolean} complete */
  function draw(complete) {
    frame = 0;
    if (!text.startsWith(closedText)) reset(); // another text, not a longer one
    if (counts.drawn === 0) container.replaceChildren(); // what stood there until now
    const tail = text.slice(closedEnd);
    const { blocks, lastStart, closedReferences } = parseBlocks(tail, references, complete);
    blocks.forEach((block, i) => {
      const open = i === blocks.length - 1;
      const element = blockElement(block, headings, open && !complete, options);
      counts.drawn += 1;
      const old = container.children[closedCount + i];
      if (old) patch(old, element);
      else container.append(element);
      if (!open) headings = headingsOf(block, headings);
    });
    while (container.children.length > closedCount + blocks.length) container.lastChild?.remove();
    if (blocks.length > 1) {
      closedCount += blocks.length - 1;
      closedEnd += lastStart;
      closedText = text.slice(0, closedEnd);
      references = closedReferences;
    }
  }

  return {
    counts,
    update(whole) {
      text = normalized(whole);
      frame ||= requestAnimationFrame(() => draw(false));
    },
    finish(whole) {
      cancelAnimationFrame(frame);
      text = normalized(whole);
      // A link may be defined below its use.
      if (/^ {0,3}\[[^\]]+\]:/m.test(text)) reset();
      draw(true);
    },
    dispose() {
      cancelAnimationFrame(frame);
      frame = 0;
    },
  };
}

/** The text with the line ends that markdown-it works with, so that offsets agree.
 * @param {string} text
 */
function normalized(text) {
  return text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
}
