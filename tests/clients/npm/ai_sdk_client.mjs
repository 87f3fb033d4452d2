// @ai-sdk/openai-compatible, with the package ai.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { MODEL, SCHEMA, URL, right, run } from "./checking.mjs";

const provider = createOpenAICompatible({
  name: "gemmule",
  baseURL: `${URL}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: provider(MODEL), prompt: "Say something.", maxRetries: 0, seed: 3 };
const tools = {
  paint: tool({ description: "Paints.", inputSchema: jsonSchema(SCHEMA) }),
};

async function generate() {
  const answer = await generateText({ ...common, maxOutputTokens: 8 });
  assert.ok(answer.usage.outputTokens >= 1);
  assert.ok(["stop", "length"].includes(answer.finishReason));
}

async function stream() {
  const whole = await generateText({ ...common, maxOutputTokens: 12 });
  const answer = streamText({ ...common, maxOutputTokens: 12 });
  let text = "";
  for await (const part of answer.textStream) text += part;
  assert.equal(text, whole.text);
  assert.equal((await answer.usage).outputTokens, whole.usage.outputTokens);
}

async function callTools() {
  const request = { ...common, maxOutputTokens: 400, tools, toolChoice: "required" };
  const answer = await generateText(request);
  right(answer.toolCalls[0].input);
  right((await streamText(request).toolCalls)[0].input);
}

async function structuredOutput() {
  const schema = jsonSchema(SCHEMA);
  const { object } = await generateObject({ ...common, maxOutputTokens: 400, schema });
  right(object);
}

async function completion() {
  const model = provider.completionModel(MODEL);
  const answer = await generateText({ ...common, model, maxOutputTokens: 4 });
  assert.ok(answer.usage.outputTokens >= 1);
}

await run("@ai-sdk/openai-compatible", {
  generate,
  stream,
  tools: callTools,
  "structured output": structuredOutput,
  completion,
});
