// An answer in sentences for a screen reader: spoken one at a time, not token by token.

/** The longest text that is held back while no sentence ends. */
const LONGEST = 300;

/**
 * Takes an answer's text as it grows and returns the sentences that became complete.
 *
 * Code is named, not read out: the reader can walk to it in the answer itself.
 */
export class SentenceReader {
  #open = "";
  #fence = "";

  /** @param {string} text @returns {string[]} */
  feed(text) {
    this.#open += text;
    /** @type {string[]} */
    const sentences = [];
    for (;;) {
      const end = this.#nextEnd();
      if (end < 0) return sentences;
      this.#take(end, sentences);
    }
  }

  /** What is left at the answer's end. @returns {string[]} */
  finish() {
    /** @type {string[]} */
    const sentences = [];
    this.#take(this.#open.length, sentences);
    return sentences;
  }

  /** Offset after the next whole line (in code) or sentence; -1 if none is complete. */
  #nextEnd() {
    const newline = this.#open.indexOf("\n");
    // A line that may be a fence, or is code, is judged whole.
    if (this.#fence || /^\s*(`|~|$)/.test(this.#open)) return newline < 0 ? -1 : newline + 1;
    const stop = /[.!?…][)"'”’\]*_]*\s|[。！？]/.exec(this.#open);
    const end = stop ? stop.index + stop[0].length : -1;
    if (newline >= 0 && (end < 0 || newline < end)) return newline + 1;
    if (end >= 0 || this.#open.length <= LONGEST) return end;
    return this.#open.lastIndexOf(" ", LONGEST) + 1 || LONGEST;
  }

  /** @param {number} end @param {string[]} sentences */
  #take(end, sentences) {
    const piece = this.#open.slice(0, end);
    this.#open = this.#open.slice(end);
    const fence = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(piece);
    if (this.#fence) {
      if (fence && (fence[1] ?? "").startsWith(this.#fence)) {
        this.#fence = "";
        sentences.push("End of code.");
      }
      return;
    }
    if (fence) {
      this.#fence = fence[1] ?? "```";
      sentences.push(fence[2] ? `Code in ${fence[2]}.` : "Code.");
      return;
    }
    const spoken = plainText(piece);
    if (spoken) sentences.push(spoken);
  }
}

/** Markdown's marks taken off. @param {string} text */
function plainText(text) {
  return text
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/^\s*(#{1,6}|[-*+]|>|\d+[.)])\s+/, "")
    .replace(/[*_`|]+/g, " ")
    .replace(/\s+/g, " ")
    .replace(/^[\s:-]+$/, "")
    .trim();
}
