import assert from "node:assert/strict";
import { test } from "node:test";
import { sseParser } from "../src/api/sse.js";

const STREAM =
  ': keep-alive\n\ndata: {"a":1}\n\nevent: x\r\ndata: one\r\ndata:two\r\n\r\ndata: [DONE]\n\n';
const EVENTS = ['{"a":1}', "one\ntwo", "[DONE]"];

test("a stream cut at any two places gives the same events", () => {
  for (let first = 0; first <= STREAM.length; first++) {
    for (let second = first; second <= STREAM.length; second++) {
      const parse = sseParser();
      const pieces = [STREAM.slice(0, first), STREAM.slice(first, second), STREAM.slice(second)];
      assert.deepEqual(pieces.flatMap(parse), EVENTS);
    }
  }
});

test("an event without its blank line is not reported", () => {
  const parse = sseParser();
  assert.deepEqual(parse("data: half\n"), []);
  assert.deepEqual(parse("\n"), ["half"]);
});

test("a byte order mark, a lone data field and one leading space", () => {
  const parse = sseParser();
  assert.deepEqual(parse("\ufeffdata:  two spaces\n\ndata\n\n"), [" two spaces", ""]);
});
