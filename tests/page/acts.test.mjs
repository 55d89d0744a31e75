// What an operator presses, how it goes, and what it comes to, under load.

import assert from "node:assert/strict";
import { test } from "node:test";
import { card, chat, drawn, eventsOf, load, pause, pool, press, says, simulated, startGateway, withPage } from "./harness.mjs";

const TOKENS = 60;
const STREAMS = 100;

test("a restart under 100 streams shows how they finish, and breaks none of them", async () => {
  const slow = simulated("slow", { tokens: TOKENS, tokensPerSecond: 10, firstToken: "20ms" });
  const gateway = await startGateway({ backends: [slow] });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    const answers = [];
    for (let number = 0; number < STREAMS; number += 1) {
      answers.push(chat(gateway, { model: "slow", stream: true }));
      await pause(15);
    }
    await says(page, `${card("slow")} [data-part=flight]`, /^100$/);
    await press(page, "slow", "restart");
    await says(page, "#act-words", /The 100 requests in flight may finish/);
    await page.evaluate(() => {
      window.progress = [];
      const note = () => window.progress.push(document.querySelector("#act .outcome").textContent);
      new MutationObserver(note).observe(document.querySelector("#act .outcome"), {
        characterData: true,
        childList: true,
        subtree: true,
      });
    });
    await page.keyboard.press("Enter");
    await says(page, "#act .outcome", /^100 in flight -> 0, 0 failed, [0-9.]+ s$/, 30);
    const progress = await page.evaluate(() => window.progress);
    const left = progress.map((words) => Number(words.match(/^100 in flight -> (\d+)$/)?.[1])).filter((number) => number > 0);
    assert.ok(left.length >= 2 && left.some((number) => number < STREAMS), `progress was shown: ${progress}`);
    for (const place of [`${card("slow")} .last-act`, ".toast", ".events li"])
      await says(page, place, /100 in flight -> 0, 0 failed/);

    for (const answer of await Promise.all(answers)) {
      const events = eventsOf(answer);
      assert.equal(events.at(-1), "[DONE]");
      assert.equal(events.filter((event) => event !== "[DONE]" && JSON.parse(event).choices[0]?.delta.content).length, TOKENS);
      assert.doesNotMatch(answer.text, /"error"/);
    }
    await page.keyboard.press("Escape");
    await page.locator(`${card("slow")} summary`).click();
    await says(page, `${card("slow")} [data-part=generation]`, /^2$/);
    await says(page, ".leaf", /slow.*generation 2/);
  });
});

test("cancelling a request ends it, and its client is told", async () => {
  const gateway = await startGateway({ backends: [simulated("slow", { tokens: 10_000, tokensPerSecond: 10 })] });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    const answer = chat(gateway, { model: "slow", stream: true, id: "long-one" });
    await says(page, "[data-request=long-one] [data-part=tokens]", /[1-9]/);
    await page.locator("[data-request=long-one] [data-act=cancel]").click();
    await page.keyboard.press("Escape");
    await page.locator("[data-request=long-one] [data-act=cancel]").click();
    await says(page, "#act-title", /long-one/);
    await page.keyboard.press("Enter");
    await says(page, "#act .outcome", /^1 attempt ended$/);
    await page.locator("[data-request=long-one][role=row]").waitFor({ state: "detached" });
    const events = eventsOf(await answer);
    assert.ok(
      events.some((event) => event !== "[DONE]" && JSON.parse(event).error),
      events.at(-1),
    );
    await says(page, ".events li", /cancel of request long-one by loopback.*1 ended/);
    await says(page, ".toast", /Cancel request: long-one/);
  });
});

test("requests with one id have a row each, and cancelling says that it ends them all", async () => {
  const gateway = await startGateway({ backends: [simulated("slow", { tokens: 10_000, tokensPerSecond: 10 })] });
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    const answers = [1, 2, 3].map(() => chat(gateway, { model: "slow", stream: true, id: "twin" }));
    await page.waitForFunction(() => document.querySelectorAll("[data-part=flights] [data-request=twin]").length === 3);
    await page.locator("[data-request=twin] [data-act=cancel]").first().click();
    await says(page, "#act", /3 attempts in flight carry this id: all of them end/);
    await page.keyboard.press("Enter");
    await says(page, "#act .outcome", /3 attempts ended/);
    for (const answer of await Promise.all(answers)) assert.match(answer.text, /"error"/);
  });
});

test("drain, resume, reset, weight and test show their result and leave a line in the timeline", async () => {
  const ill = simulated("ill", {
    maxRetries: 0,
    circuit: { failures: 2, coolDown: "1h", maxCoolDown: "1h" },
    faults: [{ kind: "status", status: 500, requests: [1, 2] }],
  });
  const gateway = await startGateway({
    backends: [
      pool("chat", [
        { name: "one", weight: 3 },
        { name: "two", weight: 1 },
      ]),
      pool("spare", [
        { name: "one", weight: 5 },
        { name: "two", weight: 2 },
      ]),
      simulated("one"),
      simulated("two"),
      ill,
    ],
  });
  for (let number = 0; number < 2; number += 1) await chat(gateway, { model: "ill" });
  load(gateway, "chat");
  await withPage(gateway, {}, async (page) => {
    await drawn(page);
    await act(page, "one", "drain", /in flight -> 0, 0 cut/, /drain by loopback/);
    await says(page, `${card("one")} .condition`, /^Drained/);
    assert.equal((await page.locator(".card h3").allTextContents()).indexOf("one") < 2, true, "worse than what is well");
    await act(page, "one", "resume", /takes requests again/, /resume by loopback.*was_drained true/);
    await says(page, `${card("one")} .condition`, /^Well/);

    await says(page, `${card("ill")} .condition`, /^(Open|Ailing).*asked again in/);
    await act(page, "ill", "reset", /1 circuit closed/, /reset by loopback.*closed 1/);
    await says(page, `${card("ill")} .until`, /^$/);

    await says(page, `${card("one")} .share`, /75\s*% expected/);
    await act(page, "one", "weight", /chat: 3 -> 1/, /weight by loopback/, async () => {
      for (const [name, now] of Object.entries({ spare: "5", chat: "3" })) {
        await page.locator("#act [name=pool]").selectOption(name);
        assert.equal(await page.locator("#act [name=weight]").inputValue(), now);
      }
      await page.locator("#act [name=weight]").fill("1");
    });
    await says(page, `${card("one")} .share`, /50\s*% expected/);

    await act(page, "two", "test", /^served, first content .*total/, /test by loopback.*outcome served/, async () =>
      page.locator("#act [name=prompt]").fill("Is it you?"),
    );
  });
});

/** Presses an act, confirms it, and finds its result everywhere. */
async function act(page, name, word, result, audit, fill = async () => {}) {
  await press(page, name, word);
  await fill();
  await page.keyboard.press("Enter");
  await says(page, "#act .outcome", result);
  if (word === "test") {
    await says(page, "#act .answer", /Simulated answer to: Is it/);
    await says(page, "#act .try", /1\. two.*served.*first content/);
  }
  const told = await page.locator("#act .outcome").textContent();
  await page.keyboard.press("Escape");
  await page.locator("#act").waitFor({ state: "hidden" });
  assert.ok((await page.locator(`${card(name)} .last-act`).textContent()).includes(told), "in the card");
  assert.ok((await page.locator(".toast").allTextContents()).at(-1).includes(told), "in the toast");
  await says(page, ".events li[data-kind=act]", audit);
}

test("what the gateway refuses is told in its words", async () => {
  const gateway = await startGateway({ backends: [simulated("solo")] });
  await withPage(gateway, { expected: [/400.*restart/] }, async (page) => {
    await drawn(page);
    await press(page, "solo", "restart");
    await page.locator("#act [name=deadline]").fill("soon");
    await page.keyboard.press("Enter");
    await says(page, "#act .outcome[data-tone=bad]", /`deadline`/);
    await says(page, ".toast[data-tone=bad]", /`deadline`/);
  });
});
