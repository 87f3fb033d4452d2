// Requests to the server that served this page, with the key if it wants one.

import { ApiError, errorOf, unreachable } from "./errors.js";

const KEY = "gemmule.key";

/** The API key of this tab; sessionStorage forgets it with the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} value */
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** @type {(() => Promise<boolean>) | null} */
let askForKey = null;
/** @type {Promise<boolean> | null} */
let asking = null;

/**
 * Sets what asks the user for a key when the server says 401; it resolves to false if they decline.
 * @param {() => Promise<boolean>} ask
 */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/**
 * fetch with the key, relative to the page's address; an error status throws ApiError. Requests that
 * meet a 401 together ask for the key once.
 * @param {string} path @param {RequestInit} [init] @returns {Promise<Response>}
 */
export async function request(path, init = {}) {
  for (;;) {
    const used = key.get();
    const headers = new Headers(init.headers);
    if (used) headers.set("authorization", `Bearer ${used}`);
    let response;
    try {
      response = await fetch(path, { ...init, headers, credentials: "same-origin" });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw unreachable();
    }
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !askForKey) throw error;
    if (used !== key.get()) continue; // Another request has just been given a new key.
    asking ??= askForKey().finally(() => (asking = null));
    if (!(await asking)) throw error;
  }
}

/** @returns {Promise<import('../types.js').ModelInfo[]>} */
export async function fetchModels() {
  const body = await (await request("v1/models")).json();
  if (!Array.isArray(body?.data)) throw new ApiError("/v1/models did not send a list of models.");
  return body.data;
}

/** The model's card as markdown. @param {string} name */
export async function fetchCard(name) {
  return (await request(`v1/models/${encodeURIComponent(name)}/card`)).text();
}

/** Prometheus text. */
export async function fetchMetrics() {
  return (await request("metrics")).text();
}

/** True if the server runs and takes requests. No key is needed. */
export async function isHealthy() {
  try {
    return (await fetch("health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}
