// The Prometheus text format, as far as the live figures need it.

/**
 * Sums of all samples of each name over their labels.
 * @param {string} text @returns {Map<string, number>}
 */
export function sumsByName(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const [, name = "", number = ""] = match;
    const value = Number(number.replace("Inf", "Infinity"));
    if (!Number.isNaN(value)) sums.set(name, (sums.get(name) ?? 0) + value);
  }
  return sums;
}

/**
 * @typedef {object} LiveFigures
 * @property {number | null} running requests that are being answered
 * @property {number | null} waiting requests in the queue
 * @property {number | null} cacheUsage fraction of the KV cache in use
 * @property {number | null} cacheHits fraction of prompt tokens found in the prefix cache
 * @property {number | null} tokensPerSecond generated since the reading before
 * @property {number | null} watts drawn since the reading before
 * @property {number | null} joules since the server started
 * @property {number | null} answered requests since the server started
 */

/**
 * Figures from two readings of /metrics; rates are null at the first.
 * @param {Map<string, number>} now @param {Map<string, number> | null} before
 * @param {number} seconds between the two
 * @returns {LiveFigures}
 */
export function liveFigures(now, before, seconds) {
  const value = (/** @type {string} */ name) => now.get(`gemmule:${name}`) ?? null;
  const rate = (/** @type {string} */ name) => {
    const last = before?.get(`gemmule:${name}`);
    const current = value(name);
    if (last === undefined || current === null || seconds <= 0 || current < last) return null;
    return (current - last) / seconds;
  };
  const queries = value("prefix_cache_queries_total") ?? value("prefix_cache_queries");
  const hits = value("prefix_cache_hits_total") ?? value("prefix_cache_hits");
  return {
    running: value("num_requests_running"),
    waiting: value("num_requests_waiting"),
    cacheUsage: value("kv_cache_usage_perc"),
    cacheHits: queries && hits !== null ? hits / queries : null,
    tokensPerSecond: rate("generation_tokens_total"),
    watts: rate("energy_joules_total"),
    joules: value("energy_joules_total"),
    answered: value("request_success_total"),
  };
}
