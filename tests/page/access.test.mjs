// Who may see the page and who may press its buttons.

import assert from "node:assert/strict";
import { test } from "node:test";
import { card, drawn, says, simulated, startGateway, withPage } from "./harness.mjs";

const ADMIN = { token: "an-operator-token", readToken: "a-reader-token" };
/** All that the browser itself says about a refusal. */
const REFUSED = /^error: Failed to load resource: .* 401 .*\/admin\/api\/session$/;

test("logging in takes the right token, lasts over a reload, and ends with a log-out", async () => {
  const gateway = await startGateway({ admin: ADMIN, backends: [simulated("solo")] });
  await withPage(gateway, { expected: [REFUSED] }, async (page) => {
    await logIn(page, "wrong");
    await says(page, "#login-words", /the admin token is wrong/);
    assert.equal(await page.locator("main").isVisible(), false);
    await logIn(page, ADMIN.token);
    await drawn(page);
    const [cookie] = await page.context().cookies(`${gateway.url}/admin`);
    assert.deepEqual(
      [cookie.name, cookie.httpOnly, cookie.sameSite, cookie.path],
      ["stagedoor_admin", true, "Strict", "/admin"],
    );
    assert.equal(await page.evaluate(() => document.cookie), "");
    assert.equal(
      await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage })),
      "{}",
      "no token is kept by the page",
    );

    await page.reload();
    await drawn(page);
    await says(page, "#who", /^operator$/);
    assert.ok(await page.locator(`${card("solo")} [data-act=restart]`).isEnabled());

    await page.locator("#logout").click();
    await page.locator("#login").waitFor();
    assert.equal(await page.locator("main").isVisible(), false);
    assert.equal((await page.context().cookies(`${gateway.url}/admin`)).length, 0);
    await page.reload();
    await page.locator("#login").waitFor();
  });
});

test("who may only look sees everything and can press nothing", async () => {
  const gateway = await startGateway({ admin: ADMIN, backends: [simulated("solo")] });
  await withPage(
    gateway,
    { expected: [REFUSED, /^error: Failed to load resource: .* 403 .*\/solo\/restart$/] },
    async (page) => {
      await logIn(page, ADMIN.readToken);
      await drawn(page);
      await says(page, "#who", /^reader$/);
      assert.ok(await page.locator("#reader").isVisible());
      const buttons = page.locator(`${card("solo")} [data-act]:visible`);
      assert.ok((await buttons.count()) >= 4);
      for (const button of await buttons.all()) {
        assert.ok(await button.isDisabled());
        assert.match(await button.getAttribute("title"), /may look/);
      }
      assert.equal(
        await page.evaluate(async () => (await fetch("/admin/api/backends/solo/restart", { method: "POST" })).status),
        403,
      );
    },
  );
});

test("too many wrong tokens are told", async () => {
  const gateway = await startGateway({ admin: ADMIN, backends: [simulated("solo")] });
  const login = () => fetch(`${gateway.url}/admin/api/session`, { method: "POST", body: JSON.stringify({ token: "guess" }) });
  await Promise.all(Array.from({ length: 10 }, login));
  const limited = /^error: Failed to load resource: .* 429 .*\/admin\/api\/session$/;
  await withPage(gateway, { expected: [REFUSED, limited] }, async (page) => {
    await logIn(page, "wrong");
    await says(page, "#login-words", /wait a minute/);
  });
});

async function logIn(page, token) {
  await page.locator("#token").fill(token);
  await page.keyboard.press("Enter");
}
