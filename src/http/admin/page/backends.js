// Backends, worst first: a card for each, or, where there are many, a tile for those that are well until it is opened.

import { byId, copy, icon, Keyed, mark, partsOf, show, style, write } from "./dom.js";
import { bars, line, top } from "./spark.js";
import { ago, classes, count, date, known, left, NONE, percent, rate, several, span, spoken, time } from "./words.js";

/** Up to so many backends, each has its card. */
const FEW = 12;

/** Conditions, the worst first: word, tone. */
const CONDITIONS = {
  failed: ["Failed", "bad"],
  open: ["Open", "bad"],
  "half-open": ["Half-open", "warn"],
  starting: ["Starting", "warn"],
  ailing: ["Ailing", "warn"],
  drained: ["Drained", "held"],
  unknown: ["Unknown", "none"],
  well: ["Well", "good"],
};
/** The act that is offered first in a condition. */
const ADVISED = { open: "test", "half-open": "test", ailing: "test", failed: "restart", drained: "resume" };
const advised = ({ condition, circuit }) => (circuit.class === "crashed" ? "restart" : ADVISED[condition]);
const RANKS = Object.keys(CONDITIONS);
const rank = (backend) => RANKS.indexOf(backend.condition);
const isCalm = (backend) => backend.condition === "well" || backend.condition === "unknown";
const conditionOf = (backend) => CONDITIONS[backend.condition] ?? CONDITIONS.unknown;

export class Backends {
  /** `hour` is the last hour, `lastActs` what the last act on each backend came to. */
  constructor(hour, lastActs) {
    const context = { hour, lastActs, at: 0 };
    this.root = byId("backends");
    this.parts = partsOf(this.root);
    this.filter = byId("filter");
    this.opened = new Set();
    this.state = null;
    this.context = context;
    const nameOf = (backend) => backend.name;
    this.cards = new Keyed(this.parts.cards, nameOf, () => new Card(context));
    this.tiles = new Keyed(this.parts.tiles, nameOf, () => new Tile());
    this.filter.addEventListener("input", () => this.draw());
    this.parts.tiles.addEventListener("click", (event) => this.open(event.target.closest(".tile")));
    this.parts.cards.addEventListener("click", (event) => {
      if (event.target.dataset.part === "fold") this.fold(event.target.closest(".card").dataset.backend);
    });
  }

  update(state) {
    this.state = state;
    this.context.at = state.at;
    this.draw();
  }

  draw() {
    if (this.state === null) return;
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/);
    const found = this.state.backends.filter((backend) => wanted.every((word) => textOf(backend).includes(word)));
    const hasTiles = found.length > FEW;
    const hasCard = (backend) => !hasTiles || !isCalm(backend) || this.opened.has(backend.name);
    mark(this.parts.cards, "data-tiles", hasTiles);
    this.cards.update(found.filter(hasCard).sort((a, b) => rank(a) - rank(b)));
    // Those that are calm keep the configuration's order: nothing moves while they come to be known.
    this.tiles.update(hasTiles ? found.filter((backend) => !hasCard(backend)) : []);
    show(this.parts.none, found.length === 0);
    write(this.parts.tally, tally(this.state.backends));
  }

  open(tile) {
    if (tile === null) return;
    this.opened.add(tile.dataset.backend);
    this.draw();
    this.cards.views.get(tile.dataset.backend)?.parts.more.querySelector("summary").focus();
  }

  fold(name) {
    this.opened.delete(name);
    this.draw();
    this.tiles.views.get(name)?.root.focus();
  }
}

const textOf = (backend) => `${backend.name} ${backend.type} ${backend.condition} ${backend.reason}`.toLowerCase();

/** How many are in which condition. */
function tally(backends) {
  const counts = RANKS.map((word) => [word, backends.filter((backend) => backend.condition === word).length]);
  return counts
    .filter(([, number]) => number > 0)
    .map(([word, number]) => `${count(number)} ${word}`)
    .join(" · ");
}

class Tile {
  constructor() {
    Object.assign(this, copy("tile"));
  }

  update(backend) {
    const { root, parts } = this;
    const [word, tone] = conditionOf(backend);
    mark(root, "data-backend", backend.name);
    mark(root, "data-tone", tone);
    icon(parts.icon, backend.condition);
    write(parts.name, backend.name);
    write(parts.condition, word);
    write(parts.flight, backend.in_flight > 0 ? `${count(backend.in_flight)} in flight` : "");
    write(parts.p50, known(backend.recent.first_content_seconds.p50, time));
  }
}

class Card {
  constructor(context) {
    Object.assign(this, copy("card"), { context, drawn: -1 });
    this.shares = new Keyed(
      this.parts.shares,
      (share) => share.pool,
      () => new Share(),
    );
    this.models = new Keyed(
      this.parts.models,
      (model) => model.model,
      () => new Model(),
    );
    this.parts.more.addEventListener("toggle", () => this.detail(this.backend));
  }

  update(backend) {
    const { root, parts } = this;
    this.backend = backend;
    const [word, tone] = conditionOf(backend);
    mark(root, "data-backend", backend.name);
    mark(root, "data-tone", tone);
    mark(root, "data-condition", backend.condition);
    icon(parts.icon, backend.condition);
    write(parts.name, backend.name);
    write(parts.kind, backend.type);
    write(parts.condition, word);
    write(parts.since, `for ${span(backend.since_seconds)}`);
    mark(parts.since, "title", `since ${this.date(backend.since_seconds)}`);
    write(parts.until, until(backend));
    mark(parts.until, "title", backend.until_seconds === null ? null : `at ${this.date(-backend.until_seconds)}`);
    write(parts.reason, backend.reason);
    this.advise(backend);
    this.essentials(backend);
    this.acts(backend);
    this.draw(backend.name);
    if (parts.more.open) this.detail(backend);
  }

  /** The date of what was so long ago, by the gateway's clock. */
  date(secondsAgo) {
    return date(this.context.at - secondsAgo);
  }

  advise(backend) {
    const words = advice(backend);
    show(this.parts.advice, words !== "");
    write(this.parts.advice, words);
  }

  essentials({ recent, permits, in_flight: flight, draining, queued, shares }) {
    const { parts } = this;
    write(parts.flight, count(flight));
    const limit = permits.limit === null ? "no limit" : `of ${count(permits.limit)} permits`;
    write(parts.permits, draining > 0 ? `${limit}, ${count(draining)} draining` : limit);
    write(parts.queue, count(queued));
    mark(parts.queue, "data-tone", queued > 0 ? "warn" : null);
    write(parts.p50, known(recent.first_content_seconds.p50, time));
    write(parts.p99, known(recent.first_content_seconds.p99, time));
    write(parts.tokens, recent.attempts === 0 ? NONE : rate(recent.tokens_per_second));
    const errors = classes(recent.failures);
    write(parts.errors, errors || (recent.attempts === 0 ? "nothing was asked" : "none"));
    mark(parts.errors, "data-tone", errors ? "bad" : null);
    this.shares.update(shares);
  }

  acts(backend) {
    const { parts } = this;
    show(parts.drain, !backend.drained);
    show(parts.resume, backend.drained);
    show(parts.weight, backend.shares.length > 0);
    for (const act of ["test", "restart", "resume"]) mark(parts[act], "data-advised", advised(backend) === act);
    show(parts.fold, isCalm(backend) && parts.fold.closest("[data-tiles]") !== null);
    const last = this.context.lastActs.get(backend.name);
    show(parts.lastAct, last !== undefined);
    if (last !== undefined) {
      write(parts.lastAct, last.words);
      mark(parts.lastAct, "data-tone", last.tone);
    }
  }

  /** The pictures, when there is a new step. */
  draw(name) {
    const { hour } = this.context;
    const past = hour.backends.get(name);
    if (past === undefined || this.drawn === hour.changes) return;
    this.drawn = hour.changes;
    const { parts } = this;
    line(parts.latencyLine, past.first_content_p50, 24);
    line(parts.tokenLine, gapsOf(past.tokens_per_second, past.served), 24);
    bars(parts.failedLine, past.failed, top(past.failed), 24);
    mark(
      parts.latencyLine.parentNode,
      "aria-label",
      `median time to first content, last hour, at most ${time(top(past.first_content_p50))}`,
    );
  }

  detail(backend) {
    const { parts } = this;
    for (const [part, seconds] of [
      ["served", backend.last_served_seconds_ago],
      ["failed", backend.last_failed_seconds_ago],
    ]) {
      write(parts[part], known(seconds, ago));
      mark(parts[part], "title", seconds === null ? null : this.date(seconds));
    }
    write(parts.generation, known(backend.generation, String));
    write(
      parts.restarts,
      backend.crashes > 0
        ? `${count(backend.restarts)}, ${several(backend.crashes, "crash", "crashes")}`
        : count(backend.restarts),
    );
    write(parts.lastReason, backend.last_reason ?? "never");
    write(parts.connections, count(backend.connections));
    write(parts.draining, count(backend.draining));
    write(parts.host, backend.host ?? "simulated");
    write(
      parts.key,
      known(backend.key, (tail) => `…${tail}`),
    );
    write(parts.headroom, known(backend.headroom, headroom));
    write(parts.circuit, circuit(backend.circuit));
    write(parts.totals, totals(backend.totals));
    this.models.update(backend.models);
    show(parts.noModels, backend.models.length === 0);
  }
}

/** A share in whole hundredths. */
const part = (share) => percent(Math.round(share * 100) / 100);

/** Zero tokens while nothing was served is no speed. */
const gapsOf = (values, served) => values.map((value, place) => (served[place] === 0 && value === 0 ? null : value));

function until({ condition, until_seconds: wait }) {
  if (wait === null) return "";
  const act = condition === "failed" || condition === "starting" ? "starts again" : "asked again";
  return wait < 0.05 ? `${act} with the next request` : `${act} in ${left(wait)}`;
}

/** What an operator may do about a condition. */
function advice({ condition, circuit, since_seconds: since }) {
  switch (condition) {
    case "open":
      if (circuit.class === "credential")
        return "Its key is refused. Put a new one into the configuration and start the gateway again.";
      if (circuit.class === "crashed") return "It has crashed too often and starts again by itself. Restart does so at once.";
      if (circuit.class === "billing") return "Its account has no money or quota left. Mend that, then press Reset.";
      return "It is asked again by itself. Test shows whether it answers; Reset lets requests through at once.";
    case "half-open":
      return since > 60 ? "It waits for a request. Test sends one." : "";
    case "failed":
      return "It starts again by itself. Restart does so at once.";
    case "ailing":
      return "Test shows what it answers. Drain takes it out while it ails.";
    case "drained":
      return "Resume takes it in again.";
    default:
      return "";
  }
}

function headroom({ requests_left, requests_limit, tokens_left, tokens_limit, seconds_ago }) {
  const of = (left, limit, what) =>
    left === null ? [] : [`${count(left)}${limit === null ? "" : ` of ${count(limit)}`} ${what} left`];
  const told = [...of(requests_left, requests_limit, "requests"), ...of(tokens_left, tokens_limit, "tokens")];
  return told.length === 0 ? NONE : `${told.join(", ")}, said ${ago(seconds_ago)}`;
}

function totals(counts) {
  const told = (words) => words.map((word) => `${count(counts[word])} ${word}`).join(", ");
  const attempts = `${several(counts.attempts, "attempt")}: ${told(["served", "failed", "cancelled", "truncated", "cut"])}`;
  const cached = counts.cached_tokens === 0 ? "" : ` (${part(counts.cached_tokens / counts.prompt_tokens)} from its cache)`;
  const tokens = `${count(counts.prompt_tokens)} tokens in${cached}, ${count(counts.completion_tokens)} out`;
  return [attempts, told(["retried", "bounced", "moved"]), tokens].join("; ");
}

function circuit({ state, class: why, until_seconds, since_seconds, failures_in_a_row }) {
  if (state === "closed")
    return failures_in_a_row === 0 ? "closed" : `closed, ${several(failures_in_a_row, "failure")} in a row`;
  const since = since_seconds === null ? "" : ` for ${span(since_seconds)}`;
  const next = until_seconds === null ? "" : `, asked again in ${left(until_seconds)}`;
  return `${state}${since}: ${spoken(why ?? "unknown")}${next}`;
}

class Share {
  constructor() {
    Object.assign(this, copy("share"));
  }

  update({ pool, now, expected, weight }) {
    const { root, parts } = this;
    write(parts.pool, pool);
    write(parts.words, `${known(now, part)} now, ${part(expected)} expected`);
    mark(root, "title", `share of the pool ${pool} over the last minute; weight ${weight}`);
    style(root, "--now", String(now ?? 0));
    style(root, "--expected", String(expected));
    mark(root, "data-unknown", now === null);
  }
}

class Model {
  constructor() {
    Object.assign(this, copy("model"));
  }

  update(model) {
    const { root, parts } = this;
    write(parts.name, model.model);
    const first = known(model.first_content_seconds, time);
    const speed = known(model.seconds_per_token, (seconds) => `${rate(1 / seconds)} tokens/s`);
    write(parts.words, `circuit ${circuit(model)}; first content ${first}; ${speed}`);
    mark(root, "data-tone", model.state === "closed" ? null : "bad");
    mark(parts.reset, "data-model", model.model);
    show(parts.reset, model.state !== "closed");
  }
}
