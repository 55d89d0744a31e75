// Every class of failure becomes the right exception of the Node SDK, with its code, type and request id.

import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKENDS, client, LIKE_OPENAI, OpenAI, providerRequests, TEXT, TRANSLATED, user } from "./harness.mjs";

const EVERYONE = BACKENDS;

// kind, backends, exception, status, code
const KINDS = [
  ["bad-request", EVERYONE, OpenAI.BadRequestError, 400],
  ["context-length", ["oai", "az1", ...TRANSLATED], OpenAI.BadRequestError, 400, "context_length_exceeded"],
  ["content-filter", ["az", "az1"], OpenAI.BadRequestError, 400, "content_filter"],
  ["bad-key", EVERYONE, OpenAI.InternalServerError, 502, "upstream_credential"],
  ["forbidden", ["oai", "mis", ...TRANSLATED], OpenAI.InternalServerError, 502, "upstream_credential"],
  ["no-model", EVERYONE, OpenAI.NotFoundError, 404],
  ["unprocessable", LIKE_OPENAI, OpenAI.UnprocessableEntityError, 422],
  ["rate-limit", EVERYONE, OpenAI.RateLimitError, 429],
  ["quota", ["oai"], OpenAI.RateLimitError, 429, "insufficient_quota"],
  ["quota", TRANSLATED, OpenAI.RateLimitError, 429],
  ["server-error", EVERYONE, OpenAI.InternalServerError, 502],
  ["overloaded", ["oai", "mis", ...TRANSLATED], OpenAI.InternalServerError, 503],
  ["garbage", ["oai", "mis", ...TRANSLATED], OpenAI.InternalServerError, 502],
  ["silent", ["hasty"], OpenAI.InternalServerError, 504],
];

for (const [kind, backends, exception, status, code] of KINDS) {
  for (const model of backends) {
    for (const stream of [false, true]) {
      test(`${kind} at ${model}, ${stream ? "streamed" : "whole"}, raises ${exception.name} ${status}`, async () => {
        await assert.rejects(client().chat.completions.create({ model, messages: user(`[${kind}]`), stream }), (error) => {
          assert.ok(error instanceof exception, `${error.constructor.name}: ${error.message}`);
          assert.equal(error.status, status);
          assert.deepEqual(Object.keys(error.error).sort(), ["code", "message", "param", "type"]);
          assert.equal(typeof error.type, "string");
          assert.ok(error.requestID);
          assert.doesNotMatch(error.message, /no body/);
          if (code) assert.equal(error.code, code);
          return true;
        });
      });
    }
  }
}

test("an empty account is not worth a retry and the SDK makes none", async () => {
  const patient = client({ maxRetries: 2 });
  await assert.rejects(patient.chat.completions.create({ model: "oai", messages: user("[quota]") }), OpenAI.RateLimitError);
  assert.equal((await providerRequests()).length, 1);
});

test("a wrong key is refused by the gateway itself", async () => {
  const stranger = client({ apiKey: "not-a-key" });
  await assert.rejects(stranger.chat.completions.create({ model: "oai", messages: user("hi") }), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.code, "invalid_api_key");
    return true;
  });
  assert.deepEqual(await providerRequests(), []);
});

for (const kind of ["truncate", "clean-cut", "error-inside"]) {
  for (const model of EVERYONE) {
    test(`${kind} at ${model} throws after the text that came`, async () => {
      let text = "";
      const stream = await client().chat.completions.create({ model, messages: user(`[${kind}]`), stream: true });
      await assert.rejects(
        async () => {
          for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
        },
        (error) => error instanceof OpenAI.APIError && !(error instanceof OpenAI.APIConnectionError),
      );
      assert.ok(text && TEXT.startsWith(text));
    });
  }
}
