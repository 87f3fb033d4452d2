// What is read out, searched, measured and dropped.
import assert from "node:assert/strict";
import { test } from "node:test";
import { liveFigures, samplesOf } from "../src/api/prometheus.js";
import { Search } from "../src/chats/search.js";
import { decodeText } from "../src/chats/text_files.js";
import { SentenceReader } from "../src/generation/sentences.js";
import { SpeedMeter } from "../src/generation/speed.js";

/** @param {string} text @param {number} size */
function read(text, size) {
  const reader = new SentenceReader();
  const sentences = [];
  for (let at = 0; at < text.length; at += size)
    sentences.push(...reader.feed(text.slice(at, at + size)));
  return [...sentences, ...reader.finish()];
}

test("sentences are the same however the text arrives", () => {
  const text =
    "# Title\n\nOne **bold** sentence. And [a link](https://x.y/z)! Is 3.14 cut?\n\n- item\n";
  const wanted = ["Title", "One bold sentence.", "And a link!", "Is 3.14 cut?", "item"];
  for (const size of [1, 2, 7, 1000]) assert.deepEqual(read(text, size), wanted);
});

test("code is named, not read out", () => {
  const text = 'Look:\n```python\nprint("Hi. There.")\n```\nDone.';
  for (const size of [1, 3, 1000]) {
    assert.deepEqual(read(text, size), ["Look:", "Code in python.", "End of code.", "Done."]);
  }
});

test("text without an end is not held back for ever", () => {
  const sentences = new SentenceReader().feed("word ".repeat(100));
  assert.equal(sentences.length, 1);
  assert.ok((sentences[0]?.length ?? 0) <= 300);
});

test("speed is that of the last seconds", () => {
  const meter = new SpeedMeter(1000);
  assert.equal(meter.rate(0), null);
  for (let i = 0; i <= 50; i++) meter.add(1, i * 100);
  assert.equal(meter.rate(5000), 10);
  for (let i = 1; i <= 50; i++) meter.add(1, 5000 + i * 20);
  assert.equal(meter.rate(6000), 50);
  assert.equal(meter.count, 101);
});

test("every word has to be found, without case and accents, over all messages", () => {
  const search = new Search("RESUME sponge");
  search.visit("a", "Mon Résumé");
  assert.equal(search.found("a"), false);
  search.visit("a", "and a spongelike thing");
  assert.equal(search.found("a"), true);
  assert.equal(search.found("b"), false);
});

test("figures from two readings of /metrics", () => {
  const reading = (/** @type {number} */ tokens) =>
    samplesOf(
      [
        "# HELP gemmule:num_requests_running Requests.",
        'gemmule:num_requests_running{model_name="a"} 1.0',
        'gemmule:num_requests_running{model_name="b"} 2.0',
        `gemmule:generation_tokens_total{model_name="a"} ${tokens}`,
        "gemmule:prefix_cache_queries_total 200",
        'gemmule:kv_cache_usage_perc{model_name="a"} 0.25',
        'gemmule:kv_cache_usage_perc{model_name="b"} 0.5',
        "gemmule:prefix_cache_hits_total 50",
      ].join("\n"),
    );
  const figures = liveFigures(reading(150), reading(100), 2);
  assert.equal(figures.running, 3);
  assert.equal(figures.tokensPerSecond, 25);
  assert.equal(figures.cacheHits, 0.25);
  assert.equal(figures.cacheUsage, 0.5);
  assert.equal(figures.joules, null);
  assert.equal(
    liveFigures(reading(1), reading(100), 2).tokensPerSecond,
    null,
    "the server was restarted",
  );
});

test("a file that is not text is refused by name", () => {
  assert.equal(decodeText(new TextEncoder().encode("a\r\nb"), "f"), "a\nb");
  assert.throws(
    () => decodeText(new Uint8Array([0xff, 0xfe]), "p.png"),
    /p\.png is not a text file in UTF-8/,
  );
  assert.throws(() => decodeText(new Uint8Array([65, 0]), "z.bin"), /z\.bin is not a text file/);
});
