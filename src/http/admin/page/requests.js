// Requests: those in flight, and those that have ended, of which the newest come by themselves and older ones on demand.

import { toast } from "./acts.js";
import { get } from "./api.js";
import { byId, copy, Keyed, LongList, mark, partsOf, show, write } from "./dom.js";
import { ago, count, date, known, rate, spoken, time } from "./words.js";

/** How many ended requests are shown: at first, and after each "show more". */
const PAGES = [100, 1_000, 10_000];

/** A client may use an id twice. */
const keyOf = (ended) => `${ended.worker}/${ended.id}/${ended.at}`;
const toneOf = ({ outcome, absorbed }) => (absorbed ? "absorbed" : ({ served: "good", cancelled: "none" }[outcome] ?? "bad"));

export class Flights {
  constructor() {
    this.parts = partsOf(byId("requests"));
    this.rows = new Keyed(
      this.parts.flights,
      (flight) => flight.key,
      () => new Flight(this),
    );
  }

  update(flights, open, at) {
    this.at = at;
    const seen = new Map();
    for (const flight of flights) {
      // A client may use an id for several requests, and a hedged one is in flight twice.
      const number = seen.get(flight.id) ?? 0;
      seen.set(flight.id, number + 1);
      flight.key = `${flight.id}/${number}`;
    }
    for (const flight of flights) flight.alike = seen.get(flight.id);
    this.rows.update(flights);
    show(this.parts.noFlights, flights.length === 0);
    const hidden = Math.max(0, open - flights.length);
    write(
      this.parts.flightTally,
      hidden > 0 && flights.length >= 100
        ? `the longest ${flights.length} of ${count(open)}`
        : `${count(flights.length)}, longest first`,
    );
  }
}

class Flight {
  constructor(flights) {
    Object.assign(this, copy("flight"), { flights });
  }

  update(flight) {
    const { root, parts } = this;
    if (this.id !== flight.id) {
      this.id = flight.id;
      mark(root, "data-request", flight.id);
      mark(parts.age, "title", `since ${date(this.flights.at - flight.age_seconds)}`);
    }
    mark(root, "data-alike", flight.alike > 1 ? flight.alike : null);
    write(parts.age, time(flight.age_seconds));
    write(parts.phase, flight.phase);
    mark(parts.phase, "data-tone", flight.phase === "streaming" ? "live" : "none");
    write(parts.id, flight.id);
    mark(parts.id, "title", flight.id);
    write(parts.model, flight.model ?? "no model");
    write(parts.backend, flight.backend ?? "none yet");
    write(parts.attempt, flight.attempt > 1 ? `try ${flight.attempt}` : "");
    write(parts.tokens, count(flight.content_events));
    write(
      parts.speed,
      known(flight.content_events_per_second, (speed) => `${rate(speed)}/s`),
    );
  }
}

export class Recent {
  constructor(openStory) {
    this.root = byId("requests");
    this.parts = partsOf(this.root);
    this.outcome = byId("outcome");
    this.page = 0;
    this.at = 0;
    this.forget();
    this.list = new LongList(this.parts.recent, () => new EndedRow(this));
    this.parts.recent.addEventListener("click", (event) => this.choose(event.target.closest(".row"), openStory));
    this.parts.more.addEventListener("click", () => this.showMore());
    this.parts.fresh.addEventListener("click", () => this.catchUp());
    this.outcome.addEventListener("change", () => this.ask());
    byId("find").addEventListener("submit", (event) => this.find(event, openStory));
  }

  /** Forgets everything: another process tells now. */
  forget() {
    this.items = [];
    this.keys = new Set();
    this.waiting = [];
    this.lastTold = new Set();
    this.hasGap = false;
    this.list?.set([]);
  }

  /** Takes in the newest; while somebody points at the list or reads further down, they wait. */
  update(newest, at) {
    this.at = at;
    const wanted = newest.filter((ended) => this.isWanted(ended));
    const fresh = wanted.filter((ended) => !this.keys.has(keyOf(ended)));
    this.noteGap(newest);
    for (const ended of fresh) this.keys.add(keyOf(ended));
    this.waiting = [...fresh, ...this.waiting];
    this.boundWaiting();
    if (this.isHeld()) this.list.draw();
    else this.flush();
    this.tell();
  }

  /** Who holds the list for long gets it anew instead of all that has come meanwhile. */
  boundWaiting() {
    const dropped = this.waiting.splice(PAGES[this.page]);
    for (const ended of dropped) this.keys.delete(keyOf(ended));
    if (dropped.length > 0) this.hasGap = true;
  }

  /** More have ended than were told, if none of those that were told last is among them. */
  noteGap(newest) {
    const told = new Set(newest.map(keyOf));
    const isGap = this.lastTold.size > 0 && told.size > 0 && ![...told].some((key) => this.lastTold.has(key));
    // A single page is all of what was told.
    if (isGap && this.page > 0) this.hasGap = true;
    this.lastTold = told;
  }

  isWanted(ended) {
    const word = this.outcome.value;
    return word === "" || (word === "absorbed" ? ended.absorbed : ended.outcome === word);
  }

  isHeld() {
    const { recent } = this.parts;
    return (
      this.list.top > 0 ||
      recent.matches(":hover") ||
      (recent.contains(document.activeElement) && document.activeElement !== recent)
    );
  }

  flush() {
    const all = [...this.waiting, ...this.items];
    const limit = PAGES[this.page];
    for (const ended of all.slice(limit)) this.keys.delete(keyOf(ended));
    this.items = all.slice(0, limit);
    this.waiting = [];
    this.list.set(this.items);
  }

  tell() {
    const { parts } = this;
    write(parts.recentTally, `the last ${count(this.items.length)}`);
    show(parts.noRecent, this.items.length === 0);
    mark(parts.more, "disabled", this.page === PAGES.length - 1 || this.items.length < PAGES[this.page]);
    const words = this.hasGap
      ? "Some are missing: load them"
      : this.waiting.length > 0
        ? `Show ${count(this.waiting.length)} new`
        : "Up to date";
    write(parts.fresh, words);
    mark(parts.fresh, "disabled", words === "Up to date");
  }

  /** Shows what waits, and asks for what came too fast. */
  async catchUp() {
    this.parts.recent.scrollTop = 0;
    if (this.hasGap) await this.ask();
    this.flush();
    this.tell();
  }

  showMore() {
    this.page = Math.min(this.page + 1, PAGES.length - 1);
    return this.ask();
  }

  /** Asks for as many as are shown, with the outcome that is wanted. */
  async ask() {
    const outcome = this.outcome.value;
    const query = new URLSearchParams({ limit: PAGES[this.page], ...(outcome && { outcome }) });
    const told = await get(`requests?${query}`).catch((refusal) => toast("Recent requests", refusal.message, true));
    if (!told || outcome !== this.outcome.value) return;
    this.items = told.recent;
    this.keys = new Set(told.recent.map(keyOf));
    this.waiting = [];
    this.hasGap = false;
    this.list.set(this.items);
    this.tell();
  }

  choose(row, openStory) {
    if (row !== null) openStory(row.dataset.request);
  }

  find(event, openStory) {
    event.preventDefault();
    const id = byId("find-id").value.trim();
    if (id !== "") openStory(id);
  }
}

class EndedRow {
  constructor(recent) {
    Object.assign(this, copy("ended"), { recent });
    this.button = this.root.firstElementChild;
  }

  update(ended) {
    const { parts, button } = this;
    const at = ended.at + ended.duration_seconds;
    write(parts.ended, ago(this.recent.at - at));
    if (this.ended === ended) return;
    this.ended = ended;
    mark(parts.ended, "title", date(at));
    mark(button, "data-request", ended.id);
    write(parts.outcome, ended.absorbed ? "absorbed" : ended.outcome);
    mark(parts.outcome, "data-tone", toneOf(ended));
    write(parts.id, ended.id);
    write(parts.model, [ended.class && spoken(ended.class), ended.model, ended.caller].filter(Boolean).join(" · "));
    write(parts.backend, ended.backend ?? "none");
    write(parts.tries, ended.attempts > 1 ? `${ended.attempts} tries` : "");
    write(parts.first, known(ended.first_content_seconds, time));
    write(parts.total, time(ended.duration_seconds));
  }
}
