// Starts the stand-in and the gateway on free ports, once for all tests, and gives the tests their client.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, afterEach, before, beforeEach } from "node:test";

const here = fileURLToPath(new URL("..", import.meta.url));
const require = createRequire(process.env.SDK_NODE_MODULES + "/");

export const OpenAI = require("openai");
export const PIECES = ["Grüße 🎉", " from ", "a\u2028line", ' & "quotes"', "\nend."];
export const TEXT = PIECES.join("");
export const LIKE_OPENAI = ["oai", "az", "az1", "mis", "llama", "groq", "together"];
export const TRANSLATED = ["ant", "gem", "vertex"];
export const BACKENDS = [...LIKE_OPENAI, ...TRANSLATED];

export const user = (content) => [{ role: "user", content }];

const tool = (name, argument) => ({
  type: "function",
  function: { name, parameters: { type: "object", properties: { [argument]: { type: "string" } }, required: [argument] } },
});

export const TOOLS = [tool("get_weather", "city"), tool("get_time", "zone")];

let standin;
let gateway;
let standinUrl;
let gatewayUrl;
let account;
let log = "";

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

const firstLine = (child) => new Promise((resolve) => child.stdout.once("data", (bytes) => resolve(String(bytes).trim())));

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function awaitReady() {
  const giveUp = Date.now() + 20_000;
  while (Date.now() < giveUp && gateway.exitCode === null) {
    const address = log.match(/"message":"listening","address":"([0-9.:]+)"/);
    if (address) {
      gatewayUrl = `http://${address[1]}`;
      assert.equal((await fetch(`${gatewayUrl}/ready`)).status, 200);
      return;
    }
    await pause(20);
  }
  throw new Error(`the gateway did not become ready:\n${log.slice(-4000)}`);
}

async function startGateway() {
  log = "";
  const ports = { GATEWAY_PORT: 0, STANDIN_PORT: new URL(standinUrl).port, DEAD_PORT: await freePort() };
  const env = { ...process.env, ...ports, SERVICE_ACCOUNT: account };
  gateway = spawn(process.env.STAGEDOOR_BIN, ["--config", `${here}/gateway.yaml`], { env, stdio: ["ignore", "pipe", "pipe"] });
  for (const output of [gateway.stdout, gateway.stderr]) output.on("data", (bytes) => (log = (log + bytes).slice(-8000)));
  await awaitReady();
}

export async function control(path, method = "POST", body) {
  const reply = await fetch(`${standinUrl}/control/${path}`, {
    method,
    body: body && JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });
  assert.equal(reply.status, 200);
  return reply.json();
}

export const notes = () => control("notes", "GET");
export const providerRequests = () => control("requests", "GET");

export const client = (options) =>
  new OpenAI({ baseURL: `${gatewayUrl}/v1`, apiKey: "client-key-1", maxRetries: 0, timeout: 30_000, ...options });

before(async () => {
  standin = spawn(process.env.SDK_PYTHON, [`${here}/standin.py`], { stdio: ["ignore", "pipe", "inherit"] });
  standinUrl = `http://127.0.0.1:${await firstLine(standin)}`;
  account = join(await mkdtemp(join(tmpdir(), "stagedoor-")), "service-account.json");
  await writeFile(account, JSON.stringify(await control("service-account", "GET")));
  await startGateway();
});
beforeEach(async () => {
  await control("reset");
  // The circuits that the failures of earlier tests have opened are closed.
  const headers = { authorization: "Bearer admin-token" };
  const reset = (name) => fetch(`${gatewayUrl}/admin/api/backends/${name}/reset`, { method: "POST", headers });
  for (const reply of await Promise.all(BACKENDS.map(reset))) assert.equal(reply.status, 200);
});
afterEach(async () => {
  const alive = gateway.exitCode === null && gateway.signalCode === null;
  assert.ok(alive, "the gateway has died");
  assert.deepEqual(await control("breaches", "GET"), []);
});
after(async () => {
  gateway?.kill("SIGKILL");
  standin?.kill("SIGKILL");
  if (account) await rm(dirname(account), { recursive: true });
});
