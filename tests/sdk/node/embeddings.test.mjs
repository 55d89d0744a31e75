// The Node SDK asks for base64 by itself and decodes whatever comes: floats in its place would be silent garbage.

import assert from "node:assert/strict";
import { test } from "node:test";
import { client } from "./harness.mjs";

const MODELS = [
  "oai/text-embedding-3-small",
  "az/text-embedding-3-small",
  "az1/text-embedding-3-small",
  "mis/mistral-embed",
  "llama/nomic-embed",
];

const vector = (text, place = 0) => [0.5, -1.25, text.length, place];

for (const model of MODELS) {
  for (const text of ["four", "[contrary]"]) {
    test(`the default format of ${model} for ${text} is decoded to the right vector`, async () => {
      const reply = await client().embeddings.create({ model, input: text });
      assert.deepEqual(reply.data[0].embedding, vector(text));
    });

    test(`floats of ${model} for ${text} are floats`, async () => {
      const reply = await client().embeddings.create({ model, input: text, encoding_format: "float" });
      assert.deepEqual(reply.data[0].embedding, vector(text));
    });
  }

  test(`several texts have their vectors from ${model} in order`, async () => {
    const reply = await client().embeddings.create({ model, input: ["one", "three"] });
    assert.deepEqual(reply.data.map((item) => item.embedding), [vector("one"), vector("three", 1)]);
  });
}
