// What an operator sees: the verdict, the backends, what is not live, and the page on a phone and by keyboard.

import assert from "node:assert/strict";
import http from "node:http";
import { test } from "node:test";
import {
  card,
  chat,
  drawn,
  load,
  order,
  pool,
  press,
  says,
  simulated,
  startGateway,
  startProvider,
  withPage,
} from "./harness.mjs";

const BEHAVIOUR = { firstToken: "5ms", tokensPerSecond: 2_000, tokens: 5 };
/** Opens after three failures, and is asked again after four seconds. */
const QUICK = { circuit: { failures: 3, coolDown: "4s", maxCoolDown: "4s" } };

test("verdict and cards tell when a backend falls ill and when it is well again", async () => {
  let provider = await startProvider(0, BEHAVIOUR);
  const real = {
    name: "zeta",
    type: "openai",
    config: { apiKey: "sk-test-1234", defaultModel: "gpt-4o", endpoint: `${provider.url}/v1`, maxRetries: 0, ...QUICK },
  };
  const gateway = await startGateway({
    backends: [pool("chat", [{ name: "alpha" }, { name: "zeta" }]), simulated("alpha"), real],
  });
  load(gateway, "chat");
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await says(page, "#verdict-word", /^Serving$/);
    await says(page, `${card("zeta")} .condition`, /^Well/);
    assert.equal(await page.title(), "Serving – Stagedoor");
    assert.equal(await page.locator("#favicon").getAttribute("data-tone"), "good");

    await provider.stop();
    await says(page, `${card("zeta")} .condition`, /^(Open|Ailing).*asked again in/);
    await says(page, "#verdict-word", /^Degraded$/);
    await says(page, "#verdict [data-part=absorbed]", /^[1-9]/);
    assert.deepEqual(await order(page), ["zeta", "alpha"], "the worst is first");
    assert.match(await page.title(), /Degraded/);
    assert.equal(await page.locator("#favicon").getAttribute("data-tone"), "warn");
    await countsDown(page, `${card("zeta")} .until`);
    await says(page, `${card("zeta")} .reason`, /socket/);
    await says(page, ".events li", /circuit open/);

    provider = await startProvider(provider.port, BEHAVIOUR);
    await says(page, ".events li", /circuit closed/);
    await says(page, `${card("zeta")} .condition`, /^Well/);
    await says(page, "#verdict-word", /^Serving$/);
    await says(page, `${card("zeta")} [data-part=errors]`, /socket/);
  });
});

/** The seconds in an element go down. */
async function countsDown(page, selector) {
  await page.evaluate((selector) => {
    window.waits = [];
    setInterval(() => {
      const seconds = document.querySelector(selector)?.textContent.match(/in (\d+)\s*s/)?.[1];
      if (seconds !== undefined && window.waits.at(-1) !== Number(seconds)) window.waits.push(Number(seconds));
    }, 50);
  }, selector);
  await page.waitForFunction(() => window.waits.some((wait, place) => place > 0 && wait < window.waits[place - 1]));
}

test("failing requests make the verdict say so, and nothing asked is unknown, not well", async () => {
  const ill = simulated("ill", { maxRetries: 0, faults: [{ kind: "status", status: 500, probability: 1 }] });
  const gateway = await startGateway({ backends: [ill, simulated("idle")] });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await says(page, "#verdict-word", /^Unknown$/);
    assert.equal(await page.locator("#verdict").getAttribute("data-tone"), "none");
    assert.equal(await page.locator(card("idle")).getAttribute("data-tone"), "none");
    for (let number = 0; number < 4; number += 1) await chat(gateway, { model: "ill" });
    await says(page, "#verdict-word", /^Failing$/);
    assert.equal(await page.locator("#verdict").getAttribute("data-tone"), "bad");
    await says(page, "#verdict [data-part=errors]", /^100/);
    assert.equal(await page.locator(card("idle")).getAttribute("data-condition"), "unknown");
  });
});

test("a card tells all that is known of its backend, and the gateway of itself", async () => {
  const provider = await scripted((wish) => {
    if (wish.model === "bad") return { status: 500, body: { error: { message: "boom" } } };
    const message = { role: "assistant", content: "hello" };
    const body = { id: "x", object: "chat.completion", created: 1, model: wish.model, choices: [{ index: 0, message, finish_reason: "stop" }] };
    body.usage = { prompt_tokens: 3, completion_tokens: 20, total_tokens: 23 };
    const [requests, tokens] = ["x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"];
    const limits = { "x-ratelimit-limit-requests": "100", "x-ratelimit-limit-tokens": "1000" };
    return { status: 200, body, headers: { [requests]: "42", [tokens]: "900", ...limits } };
  });
  const config = { apiKey: "sk-of-the-card-wxyz", endpoint: provider.url, models: ["good", "bad"], maxRetries: 0, ...QUICK };
  const gateway = await startGateway({ backends: [{ name: "up", type: "openai", config: { ...config, maxConcurrent: 7 } }] });
  for (let number = 0; number < 5; number += 1) assert.equal((await chat(gateway, { model: "up/good" })).status, 200);
  for (let number = 0; number < 3; number += 1) assert.equal((await chat(gateway, { model: "up/bad" })).status, 502);
  const restarted = await fetch(`${gateway.url}/admin/api/backends/up/restart?wait=1`, { method: "POST" });
  assert.equal(restarted.status, 200);
  assert.equal((await chat(gateway, { model: "up/good" })).status, 200);
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await page.locator(`${card("up")} [data-part=more] summary`).click();
    const told = {
      permits: /^of 7 permits$/,
      p50: /^[\d.]+\s*(ms|s|µs)$/,
      p99: /^[\d.]+\s*(ms|s|µs)$/,
      errors: /server_error|server error/,
      served: /ago/,
      failed: /ago/,
      generation: /^2$/,
      restarts: /^1$/,
      lastReason: /restart/,
      connections: /^[1-9]/,
      host: /^127\.0\.0\.1$/,
      key: /^…wxyz$/,
      headroom: /^42 of 100 requests left, 900 of 1,000 tokens left, said /,
      circuit: /^closed/,
      totals: /^9 attempts: 6 served, 3 failed, .*18 tokens in, 120 out/,
    };
    for (const [part, pattern] of Object.entries(told)) await says(page, `${card("up")} [data-part=${part}]`, pattern);
    const models = await page.locator(`${card("up")} [data-part=models] > *`).allTextContents();
    assert.equal(models.length, 2);
    assert.match(models.find((text) => text.includes("bad")), /open.*server.error.*asked again in/);
    assert.match(models.find((text) => text.includes("good")), /closed/);
    const itself = { version: /\d+\.\d+\.\d+/, uptime: /\d/, memory: /MiB/, connections: /^\d/, bodies: /\d/, hash: /^[0-9a-f]{8}/ };
    for (const [part, pattern] of Object.entries(itself)) await says(page, `#gateway [data-part=${part}]`, pattern);
  });
});

/** A provider that answers each wish by a script. */
async function scripted(answer) {
  const server = http.createServer((request, reply) => {
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", () => {
      const text = Buffer.concat(pieces).toString();
      const { status, body, headers } = text === "" ? { status: 200, body: {} } : answer(JSON.parse(text));
      reply.writeHead(status, { "content-type": "application/json", ...headers });
      reply.end(JSON.stringify(body));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  return { url: `http://127.0.0.1:${server.address().port}/v1` };
}

test("a gateway that says nothing is shown as not live until it speaks again", async () => {
  const gateway = await startGateway({ backends: [simulated("solo")] });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    gateway.child.kill("SIGSTOP");
    await says(page, "#stale", /not live: last update [3-9]\s*s ago/i);
    assert.ok(await page.locator("#stale").isVisible());
    assert.match(await page.title(), /^Not live/);
    assert.equal(await page.evaluate(() => getComputedStyle(document.querySelector("main")).filter), "grayscale(1)");
    gateway.child.kill("SIGCONT");
    await page.locator("#stale").waitFor({ state: "hidden" });
    await says(page, "#live", /^live$/);
    assert.doesNotMatch(await page.title(), /Not live/);
  });
});

test("a gateway that was started again is shown as it is now", async () => {
  const settings = { backends: [simulated("solo")] };
  const first = await startGateway(settings);
  await fetch(`${first.url}/admin/api/backends/solo/reset`, { method: "POST" });
  await withPage(first, { expected: [/net::ERR_/] }, async (page) => {
    await drawn(page);
    await says(page, ".events li", /reset by loopback/);
    await first.stop();
    await says(page, "#stale", /not live/i);
    assert.ok(await page.locator("#stale").isVisible());
    const second = await startGateway(settings, Number(new URL(first.url).port));
    await fetch(`${second.url}/admin/api/backends/solo/drain`, { method: "POST" });
    await page.locator("#stale").waitFor({ state: "hidden" });
    await says(page, ".events li", /drain by loopback/);
    assert.equal(await page.locator(".events li", { hasText: "reset" }).count(), 0, "what the first did is gone");
  });
});

test("a story tells choices and tries, and a request is found by its id", async () => {
  const ill = simulated("ill", { maxRetries: 0, faults: [{ kind: "status", status: 500, requests: [1] }] });
  const gateway = await startGateway({
    backends: [
      pool("chat", [
        { name: "ill", weight: 1000 },
        { name: "well", weight: 1 },
      ]),
      ill,
      simulated("well"),
    ],
  });
  await chat(gateway, { model: "chat", id: "saved-one" });
  await chat(gateway, { model: "chat", id: "usual-one" });
  const notFound = [/404.*requests\/nobody/];
  await withPage(gateway, { expected: notFound }, async (page) => {
    await drawn(page);
    await page.locator("#outcome").selectOption("absorbed");
    await page.waitForFunction(() => document.querySelectorAll(".slot:not([hidden])").length === 1);
    await page.locator(".slot:not([hidden]) .row").click();
    await says(page, "#story-title", /^saved-one$/);
    await says(page, "#story .try", /1\. ill.*failed.*server error/);
    await says(page, "#story .try", /2\. well.*served/);
    await says(page, "#story .choice", /well.*ill: not asked, tried/);
    await page.keyboard.press("Escape");
    assert.equal(await page.locator("#story").isVisible(), false);

    await page.keyboard.press("i");
    await page.keyboard.type("usual-one");
    await page.keyboard.press("Enter");
    await says(page, "#story-title", /^usual-one$/);
    await page.keyboard.press("Escape");
    await page.locator("#find-id").fill("nobody");
    await page.keyboard.press("Enter");
    await says(page, "#find-words", /no request with the id `nobody`/);
  });
});

test("on a phone nothing is wider than the screen, and every act is within reach of the keyboard", async () => {
  const gateway = await startGateway({ backends: [pool("chat", [{ name: "solo" }]), simulated("solo", { tokens: 20 })] });
  load(gateway, "chat", { clients: 1, restMs: 100 });
  for (const colorScheme of ["light", "dark"]) {
    await withPage(gateway, { viewport: { width: 390, height: 844 }, colorScheme }, async (page) => {
      await drawn(page);
      await page.locator(`${card("solo")} summary`).click();
      assert.ok(await page.evaluate(() => document.scrollingElement.scrollWidth <= innerWidth), "no horizontal scroll");
      await press(page, "solo", "test");
      assert.ok(await page.evaluate(() => document.querySelector("#act").scrollWidth <= innerWidth));
      await page.keyboard.press("Escape");
      assert.equal(await page.locator("#act").isVisible(), false);
    });
  }
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await tabsTo(page, [
      "a.skip",
      "#theme",
      "#help",
      "#filter",
      ...["test", "restart", "drain", "reset", "weight"].map((act) => `[data-act=${act}]`),
    ]);
    await page.keyboard.press("?");
    assert.ok(await page.locator("#keys").isVisible());
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "filter");
    await page.keyboard.type("nothing like it");
    assert.deepEqual(await order(page), []);
    await page.keyboard.press("Escape");
    assert.deepEqual(await order(page), ["solo"]);
    await page.keyboard.press("t");
    await page.keyboard.press("t");
    assert.equal(await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme), "dark");
    await page.reload();
    await drawn(page);
    assert.equal(
      await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme),
      "dark",
      "the theme is kept",
    );
    await focusStaysInDialog(page);
  });
});

/** The tab key reaches these, in this order. */
async function tabsTo(page, selectors) {
  const left = [...selectors];
  for (let presses = 0; presses < 60 && left.length > 0; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((selector) => document.activeElement.matches(selector), left[0])) left.shift();
  }
  assert.deepEqual(left, [], "not reached");
}

async function focusStaysInDialog(page) {
  await press(page, "solo", "drain");
  for (let presses = 0; presses < 8; presses += 1) {
    await page.keyboard.press("Tab");
    const where = await page.evaluate(() =>
      document.activeElement === document.body || document.querySelector("#act").contains(document.activeElement)
        ? "dialog"
        : document.activeElement.outerHTML,
    );
    assert.equal(where, "dialog");
  }
  await page.keyboard.press("Escape");
  assert.equal(await page.evaluate(() => document.activeElement.dataset.act), "drain", "the focus is back where it was");
}

test("the watch sees what a page must not do", async () => {
  const gateway = await startGateway({ backends: [simulated("solo")] });
  const other = await startGateway({ backends: [simulated("solo")] });
  await assert.rejects(
    withPage(gateway, {}, async (page, faults) => {
      await page.evaluate((url) => {
        const inline = document.createElement("script");
        inline.textContent = "window.ran = true";
        document.body.append(inline);
        setTimeout(() => Promise.reject(new Error("thrown")));
        return fetch(url).catch(() => {});
      }, other.url);
      assert.equal(await page.evaluate(() => window.ran), undefined, "the policy holds");
      assert.equal((await page.evaluate(() => window.breaches)).length, 2);
      assert.ok(
        faults.some((fault) => /exception: .*thrown/.test(fault)) && faults.some((fault) => /^error: .*policy/i.test(fault)),
        faults.join("\n"),
      );
    }),
    assert.AssertionError,
  );
});
