// Tokens with their probabilities, and the text they make together.

/** @typedef {import('../types.js').Token} Token */
/** @typedef {import('../types.js').TokenChoice} TokenChoice */
/** @typedef {import('../types.js').Message} Message */

/**
 * A piece of an answer's text that can be pointed at. Mostly one token; several where a character's
 * bytes are split over them; none for text that has no tokens (written by the user).
 * @typedef {object} Piece
 * @property {string} text
 * @property {number} start UTF-16 offset in the answer's content
 * @property {Token[]} tokens
 * @property {number} run index of the run the tokens are from; -1 if none
 * @property {number} first index of the first token in that run; -1 if none
 */

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** @param {number[]} bytes @returns {string | null} null if they are not whole characters */
function decode(bytes) {
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** @param {import('../types.js').ApiTokenChoice} sent @returns {TokenChoice} */
function choiceOf({ token, logprob, bytes }) {
  const text = bytes ? decode(bytes) : token;
  return text === null ? { text: "", logprob, bytes: bytes ?? [] } : { text, logprob };
}

/**
 * What is kept of a token the server sent.
 * @param {import('../types.js').ApiToken} sent
 * @returns {Token}
 */
export function tokenOf(sent) {
  return { ...choiceOf(sent), alternatives: (sent.top_logprobs ?? []).map(choiceOf) };
}

/** @param {TokenChoice} choice @returns {number[] | Uint8Array} */
const bytesOf = (choice) => choice.bytes ?? encoder.encode(choice.text);

/**
 * How a choice is shown: invisible characters by a sign, lone bytes in hexadecimal.
 * @param {TokenChoice} choice
 */
export function visible(choice) {
  if (choice.bytes)
    return choice.bytes.map((b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
  return choice.text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

/** A probability for reading, from its logarithm. @param {number} logprob */
export function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return "100%";
  return p >= 0.1 ? `${p.toFixed(1)}%` : "<0.1%";
}

/** 0 for a token that was nearly certain to 4 for an unlikely one. @param {number} logprob */
export function surprise(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.9 ? 0 : p >= 0.6 ? 1 : p >= 0.3 ? 2 : p >= 0.1 ? 3 : 4;
}

/**
 * An answer's text in pieces. Their texts joined are exactly its content.
 *
 * Where a run's tokens say something else than its text (a stop string cut off, tokens not asked
 * for), the rest of that run is one piece without tokens.
 * @param {Message} message @returns {Piece[]}
 */
export function piecesOf(message) {
  const runs = message.runs ?? [];
  /** @type {Piece[]} */
  const pieces = [];
  const plain = (/** @type {number} */ start, /** @type {number} */ end) => {
    if (end > start) {
      pieces.push({
        text: message.content.slice(start, end),
        start,
        tokens: [],
        run: -1,
        first: -1,
      });
    }
  };
  let at = 0;
  runs.forEach((run, index) => {
    plain(at, run.start);
    at = Math.max(at, run.start);
    const end = runs[index + 1]?.start ?? message.content.length;
    for (const piece of runPieces(run.tokens, index)) {
      if (at + piece.text.length > end || !message.content.startsWith(piece.text, at)) break;
      pieces.push({ ...piece, start: at });
      at += piece.text.length;
    }
    plain(at, end);
    at = Math.max(at, end);
  });
  plain(at, message.content.length);
  return pieces;
}

/**
 * @param {Token[]} tokens @param {number} run
 * @returns {Generator<Omit<Piece, 'start'>>}
 */
function* runPieces(tokens, run) {
  /** @type {Token[]} */
  let open = [];
  /** @type {number[]} */
  let bytes = [];
  for (const [index, token] of tokens.entries()) {
    open.push(token);
    bytes.push(...bytesOf(token));
    const text = open.length === 1 && !token.bytes ? token.text : decode(bytes);
    if (text === null) continue;
    // Tokens without text (an end token) belong to no piece.
    if (text) yield { text, tokens: open, run, first: index - open.length + 1 };
    open = [];
    bytes = [];
  }
}

/**
 * The beginning of a new answer: the text before `piece`, then `choice` in the place of its first
 * token. The tokens before keep their probabilities; energy and times stay with the old answer.
 * @param {Message} message @param {Piece} piece @param {TokenChoice} choice
 * @returns {{content: string, runs: import('../types.js').Run[]}}
 */
export function branchFrom(message, piece, choice) {
  const old = message.runs ?? [];
  const runs = old.slice(0, piece.run + 1).map((run, index) => ({
    ...run,
    tokens: index < piece.run ? run.tokens : run.tokens.slice(0, piece.first),
    finish: "branched",
    timings: null,
    energy: null,
    usage: null,
  }));
  const last = runs[runs.length - 1];
  const before = old[piece.run]?.tokens[piece.first];
  last?.tokens.push({ ...choice, alternatives: before?.alternatives ?? [], chosen: true });
  return { content: message.content.slice(0, piece.start) + choice.text, runs };
}
