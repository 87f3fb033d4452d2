// Text files that are dropped on the page or chosen, to be sent with a message.

/** Bytes of the largest file taken: about the context of a model that fits this server. */
const LARGEST = 256 * 1024;

/**
 * Reads a file as text.
 * @param {File} file @returns {Promise<import('../types.js').TextFile>}
 * @throws {Error} for one that is too large, or not text
 */
export async function readTextFile(file) {
  if (file.size > LARGEST) {
    throw new Error(
      `${file.name} has ${Math.ceil(file.size / 1024)} KiB; at most ${LARGEST / 1024} KiB can be sent.`,
    );
  }
  return { name: file.name, text: decodeText(new Uint8Array(await file.arrayBuffer()), file.name) };
}

/** @param {Uint8Array} bytes @param {string} name */
export function decodeText(bytes, name) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error(`${name} is not a text file in UTF-8.`);
  }
  if (text.includes("\0")) throw new Error(`${name} is not a text file.`);
  return text.replaceAll("\r\n", "\n");
}
