// The official Node SDK: whole answers, streams, tools, pictures and schemas, from every backend.

import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKENDS, client, control, LIKE_OPENAI, providerRequests, PIECES, TEXT, TOOLS, user } from "./harness.mjs";

const RESULTS = { get_weather: "sunny", get_time: "12:00" };

const answersTo = (message) =>
  message.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: RESULTS[call.function.name] }));

async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content ?? "").join("");

for (const model of BACKENDS) {
  test(`an answer arrives whole from ${model}`, async () => {
    const { data, response } = await client().chat.completions.create({ model, messages: user("hi") }).withResponse();
    assert.equal(data.choices[0].message.content, TEXT);
    assert.equal(data.choices[0].finish_reason, "stop");
    assert.equal(data.usage.total_tokens, 18);
    assert.equal(response.headers.get("x-stagedoor-backend"), model);
    assert.ok(data._request_id);
  });

  test(`a stream carries the text in pieces from ${model}`, async () => {
    const chunks = await gather(await client().chat.completions.create({ model, messages: user("hi"), stream: true }));
    assert.equal(textOf(chunks), TEXT);
    assert.equal(chunks.filter((chunk) => chunk.choices[0].delta.content).length, PIECES.length);
  });

  test(`the stream helper gathers the completion of ${model}`, async () => {
    const stream = client().chat.completions.stream({ model, messages: user("hi") });
    const pieces = [];
    stream.on("content", (piece) => pieces.push(piece));
    const final = await stream.finalChatCompletion();
    assert.equal(pieces.join(""), TEXT);
    assert.equal(final.choices[0].message.role, "assistant");
    assert.equal(final.choices[0].message.content, TEXT);
    assert.equal(final.choices[0].finish_reason, "stop");
  });

  test(`parallel tool calls of ${model} are made and answered`, async () => {
    const messages = user("[call-tools]");
    const first = await client().chat.completions.create({ model, messages, tools: TOOLS });
    const { message } = first.choices[0];
    assert.deepEqual(message.tool_calls.map((call) => [call.type, call.function.name, JSON.parse(call.function.arguments)]), [
      ["function", "get_weather", { city: "Paris" }],
      ["function", "get_time", { zone: "Europe/Paris" }],
    ]);
    const history = [...messages, message, ...answersTo(message)];
    const second = await client().chat.completions.create({ model, messages: history, tools: TOOLS });
    assert.equal(second.choices[0].message.content, "get_weather=sunny; get_time=12:00");
  });

  test(`the stream helper gathers the parallel tool calls of ${model}`, async () => {
    const messages = user("[call-tools]");
    const final = await client().chat.completions.stream({ model, messages, tools: TOOLS }).finalChatCompletion();
    const { message } = final.choices[0];
    assert.deepEqual(message.tool_calls.map((call) => [call.type, call.function.name, JSON.parse(call.function.arguments)]), [
      ["function", "get_weather", { city: "Paris" }],
      ["function", "get_time", { zone: "Europe/Paris" }],
    ]);
    assert.equal(new Set(message.tool_calls.map((call) => call.id)).size, 2);
    assert.equal(final.choices[0].finish_reason, "tool_calls");
  });

  test(`a picture reaches ${model} unchanged`, async () => {
    const png = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), Buffer.alloc(992, 7)]);
    const url = `data:image/png;base64,${png.toString("base64")}`;
    const content = [{ type: "text", text: "[see]" }, { type: "image_url", image_url: { url } }];
    const reply = await client().chat.completions.create({ model, messages: [{ role: "user", content }] });
    assert.match(reply.choices[0].message.content, /^image\/png 1000 /);
  });

  test(`an answer of ${model} follows a schema`, async () => {
    const schema = { type: "object", properties: { city: { type: "string" }, population: { type: "integer" } } };
    const response_format = { type: "json_schema", json_schema: { name: "city", schema } };
    const reply = await client().chat.completions.parse({ model, messages: user("[as-json]"), response_format });
    assert.deepEqual(JSON.parse(reply.choices[0].message.content), { city: "Paris", population: 2100000 });
    if (LIKE_OPENAI.includes(model)) assert.deepEqual((await providerRequests())[0].body.response_format, response_format);
  });

  test(`a client that leaves ends the request at ${model}`, async () => {
    const stream = await client().chat.completions.create({ model, messages: user("[pause]"), stream: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      stream.controller.abort();
    }
    assert.deepEqual(await control("cancelled", "GET"), { cancelled: 1 });
  });
}

for (const model of BACKENDS.filter((name) => name !== "az")) {
  test(`usage comes once, in a last frame of its own, from ${model}`, async () => {
    const options = { model, messages: user("hi"), stream: true, stream_options: { include_usage: true } };
    const chunks = await gather(await client().chat.completions.create(options));
    assert.equal(textOf(chunks), TEXT);
    assert.deepEqual(chunks.filter((chunk) => chunk.usage), [chunks.at(-1)]);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.total_tokens, 18);
  });
}

for (const model of ["mis", "llama", "groq", "together"]) {
  test(`streamed thoughts of ${model} arrive under both of their names`, async () => {
    const chunks = await gather(await client().chat.completions.create({ model, messages: user("[think]"), stream: true }));
    assert.equal(textOf(chunks), TEXT);
    for (const name of ["reasoning", "reasoning_content"])
      assert.equal(chunks.map((chunk) => chunk.choices[0].delta[name] ?? "").join(""), "Let me think.");
  });
}

test("a failed attempt is tried again without the client's notice", async () => {
  await control("next", "POST", ["server-error"]);
  const reply = await client().chat.completions.create({ model: "oai", messages: user("hi") });
  assert.equal(reply.choices[0].message.content, TEXT);
});

test("comments before the first token do not disturb the SDK", async () => {
  const stream = await client().chat.completions.create({ model: "patient", messages: user("[hold]"), stream: true });
  await control("release");
  assert.equal(textOf(await gather(stream)), TEXT);
});

test("a stream of a host that ends without a finish reason is finished for the helper", async () => {
  const final = await client().chat.completions.stream({ model: "llama", messages: user("[no-finish]") }).finalChatCompletion();
  assert.equal(final.choices[0].message.content, TEXT);
  assert.equal(final.choices[0].finish_reason, "stop");
});

test("the list of models names backends and pools", async () => {
  const names = [];
  for await (const model of client().models.list()) names.push(model.id);
  for (const name of ["oai", "az", "az1", "mis", "llama", "both"]) assert.ok(names.includes(name), name);
});
