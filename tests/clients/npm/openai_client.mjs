// openai for JavaScript.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { MODEL, SCHEMA, URL, right, run } from "./checking.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Say something." }];
const tools = [{ type: "function", function: { name: "paint", parameters: SCHEMA } }];

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL));
}

async function chat() {
  const answer = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 8 });
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.ok(answer.usage.completion_tokens >= 1);
}

async function chatStream() {
  const request = { model: MODEL, messages, max_tokens: 12, seed: 3 };
  const whole = await client.chat.completions.create(request);
  let text = "";
  let usage = null;
  const options = { include_usage: true };
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: options,
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
}

async function stop() {
  const request = { model: MODEL, messages, max_tokens: 200, stream: true };
  const stream = await client.chat.completions.create(request);
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    break; // closes the connection
  }
}

async function callTools() {
  const request = { model: MODEL, messages, max_tokens: 400, tools, tool_choice: "required" };
  const answer = await client.chat.completions.create(request);
  right(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments));
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  right(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments));
}

async function structuredOutput() {
  const format = { type: "json_schema", json_schema: { name: "paint", schema: SCHEMA } };
  const request = { model: MODEL, messages, max_tokens: 400, response_format: format };
  const answer = await client.chat.completions.create(request);
  right(JSON.parse(answer.choices[0].message.content));
}

async function responses() {
  const request = { model: MODEL, input: "Say something.", max_output_tokens: 16 };
  const answer = await client.responses.create(request);
  assert.ok(["completed", "incomplete"].includes(answer.status));
}

async function errors() {
  await assert.rejects(
    client.chat.completions.create({ model: "nothing", messages }),
    OpenAI.NotFoundError,
  );
}

await run("openai", {
  models,
  chat,
  "chat stream": chatStream,
  stop,
  tools: callTools,
  "structured output": structuredOutput,
  responses,
  errors,
});
