// One timeline of what has happened: circuits, restarts, crashes, operators' acts, refusals for want of room.

import { byId, copy, element, Keyed, mark, partsOf, show, write } from "./dom.js";
import { ago, count, date, spoken } from "./words.js";

/** Events that the gateway keeps. */
const KEPT = 1_000;
const PAGE = 40;

/** Kinds by the filter's words. */
const GROUPS = {
  circuit: ["circuit-open", "circuit-closed"],
  restart: ["restarted", "crash", "backend-failed"],
  crash: ["crash", "backend-failed"],
  act: ["act"],
  shed: ["shed", "log-lost"],
  standby: ["standby-well", "standby-ill"],
};
const TONES = {
  "circuit-open": "bad",
  "circuit-closed": "good",
  crash: "bad",
  "backend-failed": "bad",
  restarted: "live",
  act: "act",
  shed: "bad",
  "standby-well": "good",
  "standby-ill": "bad",
};

export class Events {
  constructor() {
    this.parts = partsOf(byId("events"));
    this.kind = byId("event-kind");
    this.backend = byId("event-backend");
    this.names = "";
    this.at = 0;
    this.forget();
    const context = this;
    this.rows = new Keyed(
      this.parts.events,
      (event) => event.id,
      () => new EventRow(context),
    );
    for (const filter of [this.kind, this.backend]) {
      filter.addEventListener("change", () => {
        this.shown = PAGE;
        this.draw();
      });
    }
    this.parts.moreEvents.addEventListener("click", () => {
      this.shown += PAGE * 5;
      this.draw();
    });
  }

  /** Forgets everything: another process tells now. */
  forget() {
    this.events = [];
    this.last = 0;
    this.shown = PAGE;
  }

  /** Takes in an event; each is told again by every new stream. */
  add(event) {
    if (event.id <= this.last) return;
    this.last = event.id;
    this.events.unshift(event);
    this.events.length = Math.min(this.events.length, KEPT);
  }

  update({ at, backends }) {
    this.at = at;
    this.offer(backends.map((backend) => backend.name));
    this.draw();
  }

  /** The backends that may be chosen. */
  offer(names) {
    if (this.names === names.join("\n")) return;
    this.names = names.join("\n");
    const options = names.map((name) => element("option", "", name));
    this.backend.replaceChildren(this.backend.firstElementChild, ...options);
  }

  draw() {
    const kinds = GROUPS[this.kind.value];
    const backend = this.backend.value;
    const found = this.events.filter(
      (event) => (kinds?.includes(event.kind) ?? true) && (backend === "" || event.backend === backend),
    );
    this.rows.update(found.slice(0, this.shown));
    show(this.parts.noEvents, found.length === 0);
    write(this.parts.noEvents, this.events.length === 0 ? "Nothing has happened yet." : "No event matches.");
    write(this.parts.eventTally, `${count(Math.min(found.length, this.shown))} of ${count(found.length)}`);
    mark(this.parts.moreEvents, "disabled", found.length <= this.shown);
  }
}

class EventRow {
  constructor(context) {
    Object.assign(this, copy("event"), { context });
  }

  update(event) {
    const { root, parts } = this;
    write(parts.ago, ago(this.context.at - event.at));
    if (this.event === event) return;
    this.event = event;
    mark(root, "data-kind", event.kind);
    write(parts.kind, spoken(event.kind));
    mark(parts.kind, "data-tone", TONES[event.kind] ?? "none");
    write(parts.backend, event.backend ?? "");
    write(parts.model, event.model ?? "");
    write(parts.words, event.words);
    mark(parts.ago, "title", date(event.at));
  }
}
