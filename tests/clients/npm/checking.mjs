// Runs the checks of a client's script and prints how each went, as JSON.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const URL = process.env.GEMMULE_URL;
export const MODEL = process.env.GEMMULE_MODEL;

// An object that even a model with random weights fills in within a few tokens.
export const SCHEMA = {
  type: "object",
  properties: {
    color: { type: "string", enum: ["red", "green"] },
    number: { type: "integer", minimum: 0, maximum: 9 },
  },
  required: ["color", "number"],
  additionalProperties: false,
};

export function right(value) {
  assert.deepEqual(Object.keys(value).sort(), ["color", "number"]);
  assert.ok(["red", "green"].includes(value.color));
  assert.ok(Number.isInteger(value.number) && value.number >= 0 && value.number <= 9);
}

export async function run(client, checks) {
  const results = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      results[name] = "passed";
    } catch (error) {
      results[name] = String(error.stack ?? error);
    }
  }
  const folder = `node_modules/${client}/package.json`;
  const { version } = JSON.parse(readFileSync(folder, "utf8"));
  console.log(JSON.stringify({ client: `${client} (npm)`, version, checks: results }));
  process.exit(Object.values(results).every((result) => result === "passed") ? 0 : 1);
}
