// The official Node SDK against backends of other dialects: thoughts and signatures survive its own accumulators.

import assert from "node:assert/strict";
import { test } from "node:test";
import { client, notes, TEXT, TOOLS, TRANSLATED, user } from "./harness.mjs";

const RESULTS = { get_weather: "sunny", get_time: "12:00" };

const answersTo = (message) =>
  message.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: RESULTS[call.function.name] }));

async function say(stream, options) {
  if (!stream) return (await client().chat.completions.create(options)).choices[0].message;
  return (await client().chat.completions.stream(options).finalChatCompletion()).choices[0].message;
}

const MODELS = [...TRANSLATED, "ant/claude-haiku-4-5", "ant/claude-opus-4-6"];
const THINKERS = ["ant", "ant/claude-haiku-4-5"];
const LOOPS = [
  ...MODELS.map((model) => [model, "[call-tools]"]),
  ...MODELS.map((model) => [model, "[one-by-one]"]),
  ...THINKERS.map((model) => [model, "[call-tools] [interleaved]"]),
  ...THINKERS.map((model) => [model, "[call-tools] [redacted]"]),
];

for (const [model, markers] of LOOPS) {
  for (const stream of [false, true]) {
    test(`two questions of ${markers} are answered by ${model}, ${stream ? "streamed" : "whole"}`, async () => {
      const messages = [];
      for (let question = 0; question < 2; question++) {
        messages.push(...user(markers));
        for (;;) {
          const message = await say(stream, { model, messages, tools: TOOLS, reasoning_effort: "high" });
          messages.push(message);
          if (!message.tool_calls?.length) break;
          messages.push(...answersTo(message));
        }
      }
      const told = new Set(messages.at(-1).content.split("; "));
      assert.deepEqual(told, new Set(["get_weather=sunny", "get_time=12:00"]));
      assert.deepEqual(await notes(), []);
    });
  }
}

for (const model of MODELS) {
  test(`streamed thoughts of ${model} arrive under both of their names`, async () => {
    const options = { model, messages: user("[think]"), reasoning_effort: "high", stream: true };
    const deltas = [];
    for await (const chunk of await client().chat.completions.create(options)) deltas.push(...chunk.choices.map((c) => c.delta));
    assert.equal(deltas.map((delta) => delta.content ?? "").join(""), TEXT);
    for (const name of ["reasoning", "reasoning_content"])
      assert.equal(deltas.map((delta) => delta[name] ?? "").join(""), "Let me think.");
  });
}

for (const model of ["gem/gemini-embedding-001", "vertex/gemini-embedding-001"]) {
  test(`vectors of ${model} are decoded and of unit length`, async () => {
    for (const encoding_format of [undefined, "float"]) {
      const reply = await client().embeddings.create({ model, input: ["one", "three"], encoding_format });
      for (const { embedding } of reply.data) {
        assert.equal(embedding.length, 3072);
        assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-5);
      }
    }
  });
}
