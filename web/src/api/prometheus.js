// The Prometheus text format, as far as the live figures need it.

/** @typedef {Map<string, number[]>} Samples by name, one for each set of labels */

/** @param {string} text @returns {Samples} */
export function samplesOf(text) {
  /** @type {Samples} */
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const [, name = "", number = ""] = match;
    const value = Number(number.replace("Inf", "Infinity"));
    if (Number.isNaN(value)) continue;
    const values = samples.get(name);
    if (values) values.push(value);
    else samples.set(name, [value]);
  }
  return samples;
}

/**
 * @typedef {object} LiveFigures
 * @property {number | null} running requests that are being answered
 * @property {number | null} waiting requests in the queue
 * @property {number} cacheUsage fraction of the KV cache in use; of several models the fullest
 * @property {number | null} cacheHits fraction of prompt tokens found in the prefix cache
 * @property {number | null} tokensPerSecond generated since the reading before
 * @property {number | null} watts drawn since the reading before
 * @property {number | null} joules since the server started
 * @property {number | null} answered requests since the server started
 */

/**
 * Figures from two readings of /metrics; rates are null at the first.
 * @param {Samples} now @param {Samples | null} before
 * @param {number} seconds between the two
 * @returns {LiveFigures}
 */
export function liveFigures(now, before, seconds) {
  const value = (/** @type {string} */ name) => sum(now, name);
  const rate = (/** @type {string} */ name) => {
    const last = before && sum(before, name);
    const current = sum(now, name);
    if (last === null || current === null || seconds <= 0 || current < last) return null;
    return (current - last) / seconds;
  };
  const queries = value("prefix_cache_queries_total");
  const hits = value("prefix_cache_hits_total");
  return {
    running: value("num_requests_running"),
    waiting: value("num_requests_waiting"),
    cacheUsage: Math.max(...(now.get("gemmule:kv_cache_usage_perc") ?? [0])),
    cacheHits: queries && hits !== null ? hits / queries : null,
    tokensPerSecond: rate("generation_tokens_total"),
    watts: rate("energy_joules_total"),
    joules: value("energy_joules_total"),
    answered: value("request_success_total"),
  };
}

/** @param {Samples} samples @param {string} name without the prefix */
function sum(samples, name) {
  const values = samples.get(`gemmule:${name}`);
  return values ? values.reduce((total, value) => total + value, 0) : null;
}
