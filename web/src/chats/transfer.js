// Export and import of conversations as JSON. A file may come from anywhere: everything in it is
// checked, and what is not known is left out.

/** @typedef {import('../types.js').Message} Message */
/** @typedef {import('../types.js').Conversation} Conversation */
/** @typedef {import('../types.js').Run} Run */
/** @typedef {{conversation: Conversation, messages: Message[]}} Chat */

const FORMAT = "gemmule-conversations";
const VERSION = 1;
const SAMPLING = /** @type {const} */ ([
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "seed",
  "max_tokens",
]);

/** What is wrong with a file, said so that its owner can find the place. */
export class ImportError extends Error {}

/** @param {Chat[]} chats @returns {string} */
export function exportText(chats) {
  const conversations = chats.map(({ conversation, messages }) => ({ ...conversation, messages }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/**
 * Reads an exported file. All ids are new ones, so importing a file twice gives two copies and never
 * overwrites anything.
 * @param {string} text @param {() => string} newId @returns {Chat[]}
 * @throws {ImportError}
 */
export function importText(text, newId) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new ImportError("This is not a JSON file.");
  }
  if (file?.format !== FORMAT) {
    throw new ImportError(
      `This is not a file of conversations exported from here: "format" is not "${FORMAT}".`,
    );
  }
  if (file.version !== VERSION) {
    throw new ImportError(
      `The file has version ${JSON.stringify(file.version)}; this page reads version ${VERSION}.`,
    );
  }
  return list(file.conversations, "conversations").map((sent, index) =>
    readChat(record(sent, `conversations[${index}]`), `conversations[${index}]`, newId),
  );
}

/**
 * @param {Record<string, unknown>} sent
 * @param {string} at
 * @param {() => string} newId
 * @returns {Chat}
 */
function readChat(sent, at, newId) {
  const sentMessages = list(sent.messages, `${at}.messages`).map((message, index) =>
    record(message, `${at}.messages[${index}]`),
  );
  /** @type {Map<string, string>} */
  const ids = new Map();
  sentMessages.forEach((message, index) => {
    const id = string(message.id, `${at}.messages[${index}].id`);
    if (ids.has(id)) throw new ImportError(`${at}.messages[${index}].id: "${id}" is there twice.`);
    ids.set(id, newId());
  });
  const messages = sentMessages.map((message, index) =>
    readMessage(message, `${at}.messages[${index}]`, ids),
  );
  refuseCycles(messages, at);
  /** @type {Record<string, string>} */
  const selected = {};
  for (const [parent, child] of Object.entries(record(sent.selected ?? {}, `${at}.selected`))) {
    const key = parent === "" ? "" : ids.get(parent);
    const value = typeof child === "string" ? ids.get(child) : undefined;
    if (key !== undefined && value !== undefined) selected[key] = value;
  }
  const conversation = {
    id: newId(),
    title: string(sent.title, `${at}.title`),
    named: sent.named === true,
    created: number(sent.created, `${at}.created`),
    updated: number(sent.updated, `${at}.updated`),
    system: optional(sent.system, string, `${at}.system`) ?? "",
    sampling: readSampling(sent.sampling ?? {}, `${at}.sampling`),
    models: list(sent.models ?? [], `${at}.models`)
      .map((name) => string(name, `${at}.models`))
      .slice(0, 2),
    selected,
  };
  return { conversation, messages };
}

/**
 * @param {Record<string, unknown>} sent
 * @param {string} at
 * @param {Map<string, string>} ids
 * @returns {Message}
 */
function readMessage(sent, at, ids) {
  const role = string(sent.role, `${at}.role`);
  if (role !== "user" && role !== "assistant") {
    throw new ImportError(`${at}.role is "${role}"; it has to be "user" or "assistant".`);
  }
  const parent = sent.parent === null ? null : ids.get(string(sent.parent, `${at}.parent`));
  if (parent === undefined)
    throw new ImportError(`${at}.parent is not the id of a message in the conversation.`);
  const content = string(sent.content, `${at}.content`);
  /** @type {Message} */
  const message = {
    id: /** @type {string} */ (ids.get(/** @type {string} */ (sent.id))),
    parent,
    role,
    content,
    created: number(sent.created, `${at}.created`),
  };
  if (sent.files !== undefined) {
    message.files = list(sent.files, `${at}.files`).map((file, index) => {
      const { name, text } = record(file, `${at}.files[${index}]`);
      return {
        name: string(name, `${at}.files[${index}].name`),
        text: string(text, `${at}.files[${index}].text`),
      };
    });
  }
  if (sent.runs !== undefined) {
    message.runs = list(sent.runs, `${at}.runs`).map((run, index) =>
      readRun(record(run, `${at}.runs[${index}]`), `${at}.runs[${index}]`, content.length),
    );
  }
  if (sent.pair !== undefined) message.pair = string(sent.pair, `${at}.pair`);
  if (sent.edited === true) message.edited = true;
  return message;
}

/**
 * @param {Record<string, unknown>} sent
 * @param {string} at
 * @param {number} length
 * @returns {Run}
 */
function readRun(sent, at, length) {
  return {
    model: string(sent.model, `${at}.model`),
    sampling: readSampling(sent.sampling ?? {}, `${at}.sampling`),
    system: optional(sent.system, string, `${at}.system`) ?? "",
    start: Math.min(number(sent.start, `${at}.start`), length),
    tokens: list(sent.tokens ?? [], `${at}.tokens`).map((token, index) => {
      const fields = record(token, `${at}.tokens[${index}]`);
      return {
        ...readChoice(fields, `${at}.tokens[${index}]`),
        ...(fields.chosen === true && { chosen: true }),
        alternatives: list(fields.alternatives ?? [], `${at}.tokens[${index}].alternatives`).map(
          (choice) =>
            readChoice(
              record(choice, `${at}.tokens[${index}].alternatives`),
              `${at}.tokens[${index}].alternatives`,
            ),
        ),
      };
    }),
    finish: optional(sent.finish, string, `${at}.finish`) ?? "interrupted",
    timings: numbers(sent.timings, `${at}.timings`),
    energy: readEnergy(sent.energy, `${at}.energy`),
    usage: readUsage(sent.usage, `${at}.usage`),
    ...(sent.taken !== undefined && { taken: number(sent.taken, `${at}.taken`) }),
  };
}

/** @param {Record<string, unknown>} sent @param {string} at */
function readChoice(sent, at) {
  const choice = {
    text: string(sent.text, `${at}.text`),
    logprob: number(sent.logprob, `${at}.logprob`),
  };
  if (sent.bytes === undefined) return choice;
  return {
    ...choice,
    bytes: list(sent.bytes, `${at}.bytes`).map((byte) => number(byte, `${at}.bytes`) & 255),
  };
}

/** @param {unknown} sent @param {string} at @returns {import('../types.js').Sampling} */
function readSampling(sent, at) {
  const fields = record(sent, at);
  /** @type {import('../types.js').Sampling} */
  const sampling = {};
  for (const name of SAMPLING) {
    if (fields[name] !== undefined) sampling[name] = number(fields[name], `${at}.${name}`);
  }
  return sampling;
}

/** @param {unknown} sent @param {string} at */
function readEnergy(sent, at) {
  if (sent === undefined || sent === null) return null;
  const fields = record(sent, at);
  return {
    joules: optional(fields.joules, number, `${at}.joules`),
    gco2e: optional(fields.gco2e, number, `${at}.gco2e`),
    boundary: optional(fields.boundary, string, `${at}.boundary`),
  };
}

/** @param {unknown} sent @param {string} at */
function readUsage(sent, at) {
  if (sent === undefined || sent === null) return null;
  const fields = record(sent, at);
  return {
    prompt_tokens: number(fields.prompt_tokens, `${at}.prompt_tokens`),
    completion_tokens: number(fields.completion_tokens, `${at}.completion_tokens`),
  };
}

/** The numbers of an object; null for none. @param {unknown} sent @param {string} at */
function numbers(sent, at) {
  if (sent === undefined || sent === null) return null;
  return Object.fromEntries(
    Object.entries(record(sent, at)).filter(([, value]) => typeof value === "number"),
  );
}

/** Every message has to lead back to a first one. @param {Message[]} messages @param {string} at */
function refuseCycles(messages, at) {
  const parents = new Map(messages.map((message) => [message.id, message.parent]));
  /** @type {Set<string>} */
  const rooted = new Set();
  for (const { id } of messages) {
    const walk = new Set();
    /** @type {string | null | undefined} */
    let step = id;
    while (step && !rooted.has(step)) {
      if (walk.has(step))
        throw new ImportError(`${at}.messages: some messages follow each other in a circle.`);
      walk.add(step);
      step = parents.get(step);
    }
    for (const seen of walk) rooted.add(seen);
  }
}

/** @param {unknown} value @param {string} at @returns {Record<string, unknown>} */
function record(value, at) {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return /** @type {Record<string, unknown>} */ (value);
  }
  throw new ImportError(`${at} has to be an object.`);
}

/** @param {unknown} value @param {string} at @returns {unknown[]} */
function list(value, at) {
  if (Array.isArray(value)) return value;
  throw new ImportError(`${at} has to be a list.`);
}

/** @param {unknown} value @param {string} at */
function string(value, at) {
  if (typeof value === "string") return value;
  throw new ImportError(`${at} has to be a text.`);
}

/** @param {unknown} value @param {string} at */
function number(value, at) {
  if (typeof value === "number") return value;
  throw new ImportError(`${at} has to be a number.`);
}

/**
 * @template T
 * @param {unknown} value @param {(value: unknown, at: string) => T} read @param {string} at
 * @returns {T | null}
 */
function optional(value, read, at) {
  return value === undefined || value === null ? null : read(value, at);
}
