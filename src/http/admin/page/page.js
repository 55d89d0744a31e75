// The operator's page: who one is, the live stream, and what is drawn of it. Each section has a module of its own; they get
// the newest state and write what has changed. What is not live looks so.

import { Acts, toast } from "./acts.js";
import { gate, get, post, remove } from "./api.js";
import { Backends } from "./backends.js";
import { byId, mark, partsOf, show, write } from "./dom.js";
import { Events } from "./events.js";
import { Gateway } from "./gateway.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { Flights, Recent } from "./requests.js";
import { Hour } from "./spark.js";
import { Story } from "./story.js";
import { Supervisor } from "./supervisor.js";
import { Verdict } from "./verdict.js";
import { span } from "./words.js";

const HOUR_MS = 15_000;

class Page {
  constructor() {
    this.hour = new Hour();
    this.acts = new Acts(() => this.backends.draw());
    this.story = new Story();
    this.verdict = new Verdict();
    this.backends = new Backends(this.hour, this.acts.last);
    this.flights = new Flights();
    this.recent = new Recent((id) => this.tell(id));
    this.events = new Events();
    this.sections = [this.verdict, this.acts, this.backends, this.events, new Supervisor(), new Gateway()];
    this.live = new Live(
      (kind, text) => this.take(kind, text),
      (told) => this.tellLive(told),
      () => this.askLogin(),
    );
    this.state = null;
    /** When the state was taken in, in seconds. */
    this.costs = { state: 0, requests: 0 };
    this.isLive = null;
    byId("login")
      .querySelector("form")
      .addEventListener("submit", (event) => this.logIn(event));
    byId("logout").addEventListener("click", () => this.logOut());
    byId("requests").addEventListener("click", (event) => this.openFlight(event.target));
    gate.addEventListener("login", () => this.askLogin());
    setInterval(() => this.askHour(), HOUR_MS);
  }

  /** Who one is decides what is shown. */
  async begin() {
    try {
      this.enter(await get("session"));
    } catch (refusal) {
      if (refusal.status === 401) this.askLogin();
      else this.beginAgain(refusal);
    }
  }

  beginAgain({ message }) {
    write(byId("stale"), `Not live: ${message}. Trying again.`);
    show(byId("stale"), true);
    setTimeout(() => this.begin(), 1_000);
  }

  enter({ role, way }) {
    show(byId("login"), false);
    show(byId("page"), true);
    mark(document.body, "data-role", role);
    write(byId("who"), role);
    mark(byId("who"), "title", `entered by ${way}`);
    show(byId("logout"), way === "session");
    show(byId("reader"), role === "reader");
    this.role = role;
    this.live.start();
    this.askHour();
  }

  askLogin() {
    this.live.stop();
    this.role = null;
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    show(byId("page"), false);
    show(byId("stale"), false);
    show(byId("login"), true);
    document.title = "Log in – Stagedoor";
    byId("token").focus();
  }

  async logIn(event) {
    event.preventDefault();
    const input = byId("token");
    write(byId("login-words"), "");
    try {
      const session = await post("session", { token: input.value });
      input.value = "";
      this.enter(session);
    } catch (refusal) {
      write(byId("login-words"), `${refusal.message}.`);
      input.select();
    }
  }

  async logOut() {
    await remove("session").catch((refusal) => toast("Log out", refusal.message, true));
    this.begin();
  }

  /** Takes an event of the stream, and measures what that costs. */
  take(kind, text) {
    const began = performance.now();
    const told = JSON.parse(text);
    if (kind === "state") this.takeState(told);
    else if (kind === "requests") this.takeRequests(told);
    else this.events.add(told);
    if (kind === "journal") return;
    this.costs[kind] = performance.now() - began;
    const measured = window.__stagedoor;
    measured.lastUpdateMs = this.costs.state + this.costs.requests;
    if (kind === "requests") measured.updates += 1;
  }

  takeState(state) {
    if (this.state !== null && state.started_at !== this.state.started_at) this.forget();
    this.state = state;
    for (const section of this.sections) section.update(state);
    this.hush();
    this.story.update();
  }

  takeRequests({ in_flight: flights, recent }) {
    this.flights.update(flights, this.state?.open_requests ?? 0, this.state?.at ?? 0);
    this.recent.update(recent, this.state?.at ?? 0);
    this.hush();
  }

  /** Another process tells now: what the last one did is gone. */
  forget() {
    this.events.forget();
    this.recent.forget();
    this.askHour();
  }

  /** A reader's buttons do nothing, and say why. */
  hush() {
    if (this.role !== "reader") return this.unhush();
    for (const button of document.querySelectorAll("#page [data-act]:not([disabled])")) {
      button.disabled = true;
      button.dataset.words = button.title;
      button.title = "this token may look, but not act";
    }
  }

  unhush() {
    for (const button of document.querySelectorAll("#page [data-act][disabled]")) {
      button.disabled = false;
      button.title = button.dataset.words;
    }
  }

  async askHour() {
    if (this.role === null || this.role === undefined) return;
    await this.hour.ask().then(
      () => this.verdict.draw(this.hour),
      () => {},
    );
  }

  /** Opens a request's story, or says why there is none. */
  async tell(id) {
    write(byId("find-words"), "");
    await this.story.open(id).catch((refusal) => write(byId("find-words"), refusal.message));
  }

  openFlight(target) {
    if (target.dataset.part === "id" && target.matches("button")) this.tell(target.textContent);
  }

  tellLive({ isLive, silentMs }) {
    const words =
      silentMs === null ? "Not live: connecting." : `Not live: last update ${span(silentMs / 1000)} ago. What you see is old.`;
    write(partsOf(byId("live")).words, isLive ? "live" : "not live");
    mark(byId("live"), "data-tone", isLive ? "good" : "none");
    show(byId("stale"), !isLive);
    if (!isLive) write(byId("stale"), words);
    if (this.isLive === isLive) return;
    this.isLive = isLive;
    mark(document.body, "data-stale", !isLive);
    if (!isLive) this.verdict.unlive();
    else if (this.state !== null) this.verdict.update(this.state);
  }
}

window.__stagedoor = { lastUpdateMs: 0, updates: 0 };
listen();
new Page().begin();
