// Server-sent events, as far as the API uses them: `data:` lines, events ended by a blank line.

/**
 * Returns a function that takes a piece of the stream and returns the data of the events it ended.
 *
 * Pieces may be cut anywhere: inside a line, between \r and \n. Comments (keep-alive lines) and
 * other fields are skipped. An event without its blank line is never reported, as the standard has
 * it: its data may be incomplete.
 */
export function sseParser() {
  let rest = "";
  /** @type {string[]} */
  let data = [];
  let atStart = true;

  /** @param {string} piece @returns {string[]} */
  return (piece) => {
    /** @type {string[]} */
    const events = [];
    rest += piece;
    if (atStart && rest) {
      atStart = false;
      if (rest.charCodeAt(0) === 0xfeff) rest = rest.slice(1);
    }
    let from = 0;
    for (;;) {
      const end = lineEnd(rest, from);
      if (!end) break;
      const line = rest.slice(from, end.at);
      from = end.next;
      if (line === "") {
        if (data.length) events.push(data.join("\n"));
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line.charCodeAt(5) === 0x20 ? 6 : 5));
      } else if (line === "data") {
        data.push("");
      }
    }
    rest = rest.slice(from);
    return events;
  };
}

/**
 * Where the line that starts at `from` ends and the next begins, or null while it is not whole. A
 * \r at the end of what has come may be half of \r\n: it has to wait.
 * @param {string} text @param {number} from
 */
function lineEnd(text, from) {
  for (let at = from; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === 0x0a) return { at, next: at + 1 };
    if (code === 0x0d) {
      if (at + 1 === text.length) return null;
      return { at, next: text.charCodeAt(at + 1) === 0x0a ? at + 2 : at + 1 };
    }
  }
  return null;
}
