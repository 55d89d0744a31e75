// The page with 200 backends and 10,000 requests: what it costs the browser.

import assert from "node:assert/strict";
import { test } from "node:test";
import { burst, chat, drawn, load, order, pool, says, simulated, startGateway, withPage } from "./harness.mjs";

const BACKENDS = 200;
const REQUESTS = 10_000;
const UPDATES = 10;
const NAMES = Array.from({ length: BACKENDS }, (_, number) => `b-${String(number).padStart(3, "0")}`);

test("an update costs less than 50 ms with 200 backends and 10,000 requests", async (context) => {
  const gateway = await startGateway(large((number) => number % 50 === 0));
  await burst(gateway, "chat", REQUESTS + 200);
  load(gateway, "chat", { clients: 4, restMs: 40 });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    const tiles = await page.locator(".tile").count();
    const cards = await order(page);
    assert.equal(tiles + cards.length, BACKENDS, "who is well has a tile, who is not has a card");
    assert.ok(cards.includes("b-000") && tiles > BACKENDS / 2, `${cards}`);

    await page.locator(".recents [data-part=more]").click();
    await says(page, "#requests [data-part=recentTally]", /1,000$/);
    await page.locator(".recents [data-part=more]").click();
    await says(page, "#requests [data-part=recentTally]", /10,000$/);
    await isCheap(page, context, "200 backends, 10,000 requests");

    const list = page.locator(".recents .scroll");
    assert.ok((await list.evaluate((node) => node.scrollHeight)) >= REQUESTS * 40);
    assert.ok((await page.locator(".slot").count()) < 60, "only what can be seen has nodes");
    await list.evaluate((node) => node.scrollTo(0, node.scrollHeight));
    await page.waitForFunction(
      (last) => document.querySelector(`.slot[aria-posinset="${last}"]:not([hidden]) code`)?.textContent,
      REQUESTS,
    );

    await page.locator(".tile").first().click();
    assert.equal(await page.locator(".tile").count(), tiles - 1);
    await page.keyboard.press("/");
    await page.keyboard.type("b-19");
    assert.deepEqual(
      (await order(page)).toSorted(),
      Array.from({ length: 10 }, (_, number) => `b-19${number}`),
    );
  });
});

test("an update costs less than 50 ms when all of 200 backends are ill", async (context) => {
  const gateway = await startGateway(large(() => true));
  await Promise.all(NAMES.map((model) => chat(gateway, { model })));
  load(gateway, "chat", { clients: 4, restMs: 40 });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await page.waitForFunction((all) => document.querySelectorAll(".card").length === all, BACKENDS);
    await isCheap(page, context, "200 ill backends");
  });
});

function large(isIll) {
  const ill = { maxRetries: 0, faults: [{ kind: "status", status: 500, probability: 1 }] };
  const backends = NAMES.map((name, number) => simulated(name, { firstToken: "1ms", tokens: 2, ...(isIll(number) && ill) }));
  return {
    admin: { recentRequests: 80_000 },
    backends: [
      pool(
        "chat",
        NAMES.map((name) => ({ name })),
      ),
      ...backends,
    ],
  };
}

async function isCheap(page, context, of) {
  const costs = await costsOf(page);
  const sorted = costs.toSorted((a, b) => a - b);
  const [median, most] = [sorted[UPDATES / 2], sorted.at(-1)];
  context.diagnostic(
    `measured: ${of}: ${median.toFixed(1)} ms an update in the median of ${UPDATES}, ${most.toFixed(1)} ms at most`,
  );
  assert.ok(median < 50 && most < 300, `${costs}`);
}

/** What each of the next updates costs the page. */
async function costsOf(page) {
  const costs = [];
  let seen = await page.evaluate(() => window.__stagedoor.updates);
  while (costs.length < UPDATES) {
    const next = await page.waitForFunction((seen) => window.__stagedoor.updates > seen && { ...window.__stagedoor }, seen);
    const { updates, lastUpdateMs } = await next.jsonValue();
    seen = updates;
    costs.push(lastUpdateMs);
  }
  return costs;
}
