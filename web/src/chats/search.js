// The search in the list of conversations: every word has to occur, in the title or in a message.

/** @param {string} text */
function folded(text) {
  // Without accents and case, so that "resume" finds "Résumé".
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/** @param {string} query @returns {string[]} */
export function wordsOf(query) {
  return folded(query).split(/\s+/).filter(Boolean);
}

/** Collects, conversation by conversation, which words of a query occur. */
export class Search {
  #words;
  /** @type {Map<string, Set<string>>} */
  #missing = new Map();

  /** @param {string} query */
  constructor(query) {
    this.#words = wordsOf(query);
  }

  /** @param {string} conversation @param {string} text of its title or of one of its messages */
  visit(conversation, text) {
    let missing = this.#missing.get(conversation);
    if (!missing) this.#missing.set(conversation, (missing = new Set(this.#words)));
    if (!missing.size) return;
    const searched = folded(text);
    for (const word of missing) if (searched.includes(word)) missing.delete(word);
  }

  /** @param {string} conversation */
  found(conversation) {
    return this.#missing.get(conversation)?.size === 0;
  }
}
