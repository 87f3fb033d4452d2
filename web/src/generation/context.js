// How much of a model's context an answer takes.

/** @typedef {import("../types.js").Run} Run */

/**
 * Tokens of the context that a run has taken; 0 if it is not known.
 * @param {Run} run
 */
export function taken(run) {
  return run.usage ? run.usage.prompt_tokens + run.usage.completion_tokens : (run.taken ?? 0);
}

/**
 * Whether a run has ended because the context is full: there is nothing to go on with.
 * @param {Run | undefined} run
 * @param {number | undefined} size of the model's context
 */
export function isFull(run, size) {
  return run !== undefined && size !== undefined && taken(run) >= size;
}
