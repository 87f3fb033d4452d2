// An element that shows markdown, and goes on showing it while the text grows.

import MarkdownIt from "markdown-it";
import DOMPurify from "dompurify";

const parser = new MarkdownIt({ html: false, linkify: true });

/**
 * @typedef {object} MarkdownView
 * @property {(text: string) => void} update The whole text so far; drawn with the next frame.
 * @property {(text: string) => void} finish The whole text, drawn at once; nothing more follows.
 */

/** Shows markdown in `container`, whose content it owns from now on.
 * @param {HTMLElement} container
 * @returns {MarkdownView}
 */
export function markdownView(container) {
  let text = "";
  let frame = 0;
  const draw = () => {
    frame = 0;
    container.replaceChildren(
      DOMPurify.sanitize(parser.render(text), { RETURN_DOM_FRAGMENT: true }),
    );
  };
  return {
    update(whole) {
      text = whole;
      frame ||= requestAnimationFrame(draw);
    },
    finish(whole) {
      text = whole;
      cancelAnimationFrame(frame);
      draw();
    },
  };
}
