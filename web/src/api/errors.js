// Errors of the API, with what a reader can do about them.

/**
 * An answer with an error status, an error event in a stream, or no answer at all (status null).
 */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number | null, retryAfter?: number | null}} [details] retryAfter: seconds
   */
  constructor(message, { status = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** What the store keeps of it. */
  toStored() {
    return { message: this.message, status: this.status, retryAfter: this.retryAfter };
  }
}

/** The server did not answer: stopped, restarting, or out of reach. */
export function unreachable() {
  return new ApiError("The server does not answer. It may be restarting.");
}

/**
 * Reads the error out of an answer: OpenAI's form, and plain text for what stands in between.
 * @param {Response} response
 */
export async function errorOf(response) {
  const text = await response.text().catch(() => "");
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "");
  return new ApiError(messageOf(text) || `The server answered ${response.status}.`, {
    status: response.status,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

/** @param {string} text */
function messageOf(text) {
  try {
    const message = JSON.parse(text)?.error?.message;
    if (typeof message === "string") return message;
  } catch {
    // Not JSON: a proxy's page or a line of text.
  }
  return text.startsWith("<") ? "" : text.slice(0, 500).trim();
}
