// A conversation is a tree: editing a message or asking again adds a sibling, nothing is replaced.

/** @typedef {import('../types.js').Message} Message */
/** @typedef {import('../types.js').Conversation} Conversation */

/** Key of the first messages in `selected` and in the index of children. */
const ROOT = "";

/** The messages of one conversation, indexed by id and by parent. */
export class Tree {
  /** @param {Iterable<Message>} messages */
  constructor(messages = []) {
    /** @type {Map<string, Message>} */
    this.byId = new Map();
    /** @type {Map<string, Message[]>} */
    this.byParent = new Map();
    for (const message of messages) this.add(message);
    for (const siblings of this.byParent.values()) siblings.sort((a, b) => a.created - b.created);
  }

  /** @param {Message} message */
  add(message) {
    this.byId.set(message.id, message);
    const parent = message.parent ?? ROOT;
    const siblings = this.byParent.get(parent);
    if (siblings) siblings.push(message);
    else this.byParent.set(parent, [message]);
  }

  /** @param {string | null} parent @returns {Message[]} oldest first */
  children(parent) {
    return this.byParent.get(parent ?? ROOT) ?? [];
  }

  /** @param {Message} message @returns {Message[]} itself included */
  siblings(message) {
    return this.children(message.parent);
  }

  /**
   * The messages shown: at every fork the selected child, or else the newest.
   * @param {Record<string, string>} selected @returns {Message[]}
   */
  path(selected) {
    /** @type {Message[]} */
    const path = [];
    let at = ROOT;
    for (;;) {
      const children = this.byParent.get(at);
      if (!children?.length) return path;
      const next =
        children.find((child) => child.id === selected[at]) ?? children[children.length - 1];
      if (!next) return path;
      path.push(next);
      at = next.id;
    }
  }

  /** From the first message down to this one. @param {Message} message @returns {Message[]} */
  ancestry(message) {
    const path = [message];
    for (let at = message; at.parent !== null;) {
      const parent = this.byId.get(at.parent);
      if (!parent) break;
      path.unshift(parent);
      at = parent;
    }
    return path;
  }

  /**
   * Selects every message from the first down to this one, and leaves what is below as it was.
   * @param {Record<string, string>} selected @param {Message} message
   */
  select(selected, message) {
    for (const step of this.ancestry(message)) selected[step.parent ?? ROOT] = step.id;
  }

  /**
   * Takes a message and all that follows it out, and returns them.
   * @param {Message} message @returns {Message[]}
   */
  remove(message) {
    const removed = [message];
    for (const child of [...this.children(message.id)]) removed.push(...this.remove(child));
    const siblings = this.siblings(message);
    siblings.splice(siblings.indexOf(message), 1);
    this.byId.delete(message.id);
    this.byParent.delete(message.id);
    return removed;
  }

  /** Answers asked for together with this one, itself included. @param {Message} message */
  pairOf(message) {
    if (!message.pair) return [message];
    return this.siblings(message).filter((sibling) => sibling.pair === message.pair);
  }
}

/**
 * What is sent for a path of messages.
 * @param {string} system @param {Message[]} path
 * @returns {import('../types.js').ApiMessage[]}
 */
export function apiMessages(system, path) {
  /** @type {import('../types.js').ApiMessage[]} */
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of path) messages.push({ role: message.role, content: sentContent(message) });
  return messages;
}

/**
 * A message's text with its files, each under its name in a fence longer than any inside.
 * @param {Message} message
 */
function sentContent(message) {
  if (!message.files?.length) return message.content;
  const files = message.files.map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`{3,}/g)].map((match) => match[0].length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...files, message.content].filter(Boolean).join("\n\n");
}

/** A conversation's title from its first message: one line, cut at a word. @param {string} text */
export function titleOf(text, limit = 60) {
  const line = text.replace(/\s+/g, " ").trim();
  if (line.length <= limit) return line || "New conversation";
  const cut = line.slice(0, limit);
  const space = cut.lastIndexOf(" ");
  return `${cut.slice(0, space > limit / 2 ? space : limit).replace(/[\ud800-\udbff]$/, "")}…`;
}
