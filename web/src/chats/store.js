// Conversations in this browser's IndexedDB. Messages are records of their own, so that saving a
// streaming answer never rewrites the rest of a long conversation.

/** @typedef {import('../types.js').Message} Message */
/** @typedef {import('../types.js').Conversation} Conversation */
/** @typedef {import('../types.js').Draft} Draft */
/** @typedef {Message & {conversation: string}} StoredMessage */

const VERSION = 1;

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
function done(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

/**
 * Opens the store, and creates it the first time.
 * @param {IDBFactory} [factory]
 * @returns {Promise<Store>}
 */
export async function openStore(factory = indexedDB) {
  const request = factory.open("gemmule", VERSION);
  request.onupgradeneeded = () => {
    const db = request.result;
    db.createObjectStore("conversations", { keyPath: "id" });
    db.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    db.createObjectStore("drafts");
  };
  const db = await result(request);
  // A newer page in another tab must be able to change the store.
  db.onversionchange = () => db.close();
  return new Store(db);
}

export class Store {
  #db;

  /** @param {IDBDatabase} db */
  constructor(db) {
    this.#db = db;
  }

  /** @returns {Promise<Conversation[]>} the last used first */
  async conversations() {
    const all = await result(this.#read("conversations").getAll());
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** @param {string} conversation @returns {Promise<Message[]>} */
  async messages(conversation) {
    /** @type {StoredMessage[]} */
    const stored = await result(this.#read("messages").index("conversation").getAll(conversation));
    return stored.map(({ conversation: _, ...message }) => message);
  }

  /**
   * The texts of all messages, for the search.
   * @param {(conversation: string, text: string) => void} visit
   */
  async visitTexts(visit) {
    const request = this.#read("messages").openCursor();
    await new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(undefined);
        visit(cursor.value.conversation, cursor.value.content);
        cursor.continue();
      };
    });
  }

  /**
   * Saves a conversation and some of its messages at once: all or nothing.
   * @param {Conversation} conversation @param {Message[]} [messages]
   */
  async save(conversation, messages = []) {
    const transaction = this.#db.transaction(["conversations", "messages"], "readwrite");
    transaction.objectStore("conversations").put(conversation);
    for (const message of messages) {
      transaction.objectStore("messages").put({ ...message, conversation: conversation.id });
    }
    await done(transaction);
  }

  /** @param {Conversation} conversation @param {Message[]} messages to be deleted */
  async removeMessages(conversation, messages) {
    const transaction = this.#db.transaction(["conversations", "messages"], "readwrite");
    transaction.objectStore("conversations").put(conversation);
    for (const { id } of messages) transaction.objectStore("messages").delete(id);
    await done(transaction);
  }

  /** Deletes a conversation with its messages and its draft. @param {string} id */
  async remove(id) {
    const transaction = this.#db.transaction(["conversations", "messages", "drafts"], "readwrite");
    transaction.objectStore("conversations").delete(id);
    transaction.objectStore("drafts").delete(id);
    const messages = transaction.objectStore("messages");
    for (const key of await result(messages.index("conversation").getAllKeys(id)))
      messages.delete(key);
    await done(transaction);
  }

  /**
   * What was typed and not sent. The key of a conversation that does not exist yet is "".
   * @param {string} id
   * @returns {Promise<Draft | undefined>}
   */
  draft(id) {
    return result(this.#read("drafts").get(id));
  }

  /** @param {string} id @param {Draft} draft an empty one is deleted */
  async saveDraft(id, draft) {
    const transaction = this.#db.transaction("drafts", "readwrite");
    const drafts = transaction.objectStore("drafts");
    if (draft.text || draft.files.length) drafts.put(draft, id);
    else drafts.delete(id);
    await done(transaction);
  }

  /** @param {string} name */
  #read(name) {
    return this.#db.transaction(name).objectStore(name);
  }
}
