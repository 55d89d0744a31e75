// Starts gateways and simulated providers on free ports, sends them load, and opens their page in a browser that watches
// for everything a page must not do.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before } from "node:test";

const { chromium } = createRequire(`${process.env.PAGE_NODE_MODULES}/`)("playwright-core");
const folder = mkdtempSync(join(tmpdir(), "stagedoor-page-"));
const children = new Set();
const loads = new Set();
let browser;
let configs = 0;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
});

afterEach(async () => {
  await Promise.all([...loads].map((end) => end()));
  await Promise.all([...children].map(stop));
});

after(async () => {
  await browser?.close();
  agent.destroy();
  rmSync(folder, { recursive: true, force: true });
});

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Asks until it is so. */
export async function until(what, isSo, seconds = 20) {
  const giveUp = Date.now() + seconds * 1_000;
  while (!(await isSo())) {
    assert.ok(Date.now() < giveUp, `not so after ${seconds} s: ${what}`);
    await pause(30);
  }
}

function start(args) {
  const child = spawn(process.env.STAGEDOOR_BIN, args, { stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  child.on("exit", () => children.delete(child));
  child.log = "";
  for (const output of [child.stdout, child.stderr])
    output.on("data", (bytes) => (child.log = (child.log + bytes).slice(-8_000)));
  return child;
}

async function printed(child, pattern) {
  let found;
  await until(`${pattern} was printed`, () => {
    assert.equal(child.exitCode, null, child.log);
    return (found = child.log.match(pattern));
  });
  return found[1];
}

/** Ends a process and waits for its end. */
export async function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await ended;
}

/** Starts a gateway with these settings; port 0 is a free one. */
export async function startGateway(settings, port = 0) {
  const config = join(folder, `${(configs += 1)}.json`);
  const all = { server: { host: "127.0.0.1", port }, telemetry: { accessLog: false }, ...settings };
  writeFileSync(config, JSON.stringify(all));
  const child = start(["--config", config]);
  const address = await printed(child, /"message":"listening","address":"([0-9.:]+)"/);
  return { child, url: `http://${address}`, stop: () => stop(child) };
}

/** Starts a simulated provider on a port; 0 picks a free one. */
export async function startProvider(port, behaviour) {
  const child = start(["simulate", "--port", String(port), "--behaviour", JSON.stringify(behaviour)]);
  const address = await printed(child, /(127\.0\.0\.1:\d+)/);
  return { child, port: Number(address.split(":")[1]), url: `http://${address}`, stop: () => stop(child) };
}

/** A simulated backend. */
export const simulated = (name, config = {}) => ({
  name,
  type: "simulated",
  config: { firstToken: "5ms", tokensPerSecond: 2_000, tokens: 5, ...config },
});

/** A pool of these backends. */
export const pool = (name, members, more = {}) => ({
  name,
  type: "pool",
  strategy: "weighted",
  fallback: true,
  backends: members,
  ...more,
});

const agent = new http.Agent({ keepAlive: true, maxSockets: 512 });

/** Sends a chat and reads all of the answer. */
export function chat(gateway, { model, id, stream = false }) {
  const body = JSON.stringify({ model, stream, messages: [{ role: "user", content: "Is anybody there?" }] });
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
    ...(id && { "x-request-id": id }),
  };
  return new Promise((resolve, reject) => {
    const request = http.request(`${gateway.url}/v1/chat/completions`, { method: "POST", agent, headers }, (reply) => {
      const pieces = [];
      reply.on("data", (piece) => pieces.push(piece));
      reply.on("error", reject);
      reply.on("end", () => resolve({ status: reply.statusCode, text: Buffer.concat(pieces).toString() }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

/** The events of a streamed answer. */
export const eventsOf = ({ text }) =>
  text
    .split("\n\n")
    .filter((event) => event.startsWith("data: "))
    .map((event) => event.slice(6));

/** Keeps so many chats going until the test ends. */
export function load(gateway, model, { clients = 4, restMs = 10 } = {}) {
  let isOn = true;
  const client = async () => {
    while (isOn) {
      await chat(gateway, { model }).catch(() => {});
      await pause(restMs);
    }
  };
  const all = Promise.all(Array.from({ length: clients }, client));
  const end = async () => {
    isOn = false;
    loads.delete(end);
    await all;
  };
  loads.add(end);
}

/** Sends so many chats as fast as they go. */
export async function burst(gateway, model, total, clients = 64) {
  let sent = 0;
  const client = async () => {
    while (sent < total) {
      sent += 1;
      assert.equal((await chat(gateway, { model })).status, 200);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
}

/**
 * Opens a gateway's page, lets `use(page, faults)` work with it and fails if the page did what it must not: an error in the
 * console, an exception, a request to another origin, a breach of its policy. `expected` are patterns of console lines.
 */
export async function withPage(gateway, options, use) {
  const { expected = [], path = "/admin", ...context } = options;
  const opened = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...context });
  try {
    const page = await opened.newPage();
    const faults = await watch(page, gateway, expected);
    await page.goto(gateway.url + path);
    await use(page, faults);
    assert.deepEqual(faults, []);
    assert.deepEqual(await page.evaluate(() => window.breaches), []);
  } finally {
    await opened.close();
  }
}

async function watch(page, gateway, expected) {
  const faults = [];
  page.on("console", (message) => {
    const line = `${message.type()}: ${message.text()} ${message.location().url}`;
    const isBad = ["error", "warning"].includes(message.type());
    if (isBad && !expected.some((pattern) => pattern.test(line))) faults.push(line);
  });
  page.on("pageerror", (error) => faults.push(`exception: ${error.stack}`));
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== gateway.url && protocol !== "data:") faults.push(`request to ${request.url()}`);
  });
  await page.addInitScript(() => {
    window.breaches = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      window.breaches.push(`${event.violatedDirective} ${event.blockedURI}`),
    );
  });
  return faults;
}

/** Waits until the first state is drawn. */
export const drawn = (page) =>
  page.waitForFunction(() => window.__stagedoor.updates > 0 && document.body.dataset.stale === undefined);

/** Waits until an element's text is so; gives the text. */
export async function says(page, selector, pattern, seconds = 20) {
  const told = { selector, source: pattern.source, flags: pattern.flags };
  const found = await page
    .waitForFunction(
      ({ selector, source, flags }) =>
        [...document.querySelectorAll(selector)]
          .map((node) => ({ text: node.textContent }))
          .find(({ text }) => new RegExp(source, flags).test(text)),
      told,
      { timeout: seconds * 1_000 },
    )
    .catch(async () =>
      assert.fail(
        `${selector} does not say ${pattern}: ${JSON.stringify(await page.locator(selector).allTextContents()).slice(0, 1_500)}`,
      ),
    );
  return (await found.jsonValue()).text;
}

/** The card of a backend. */
export const card = (name) => `.card[data-backend="${name}"]`;

/** Presses an act of a backend's card. */
export const press = (page, name, act) => page.locator(`${card(name)} > .acts [data-act="${act}"]`).click();

/** Names of the cards in their order. */
export const order = (page) => page.locator(".card h3").allTextContents();
