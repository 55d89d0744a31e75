// What each worker keeps running: its pools, and its provider for each backend.

import { byId, copy, icon, Keyed, mark, partsOf, write } from "./dom.js";
import { count, left, several, span } from "./words.js";

/** With more backends, a worker's branch is closed until somebody opens it. */
const FEW = 12;

export class Supervisor {
  constructor() {
    this.workers = new Keyed(
      partsOf(byId("supervisor")).workers,
      (worker) => worker.number,
      (worker) => new Worker(worker),
    );
  }

  update(state) {
    const numbers = [...new Set([...state.workers, ...state.late_workers])].sort((a, b) => a - b);
    this.workers.update(numbers.map((number) => ({ number, state, isLate: state.late_workers.includes(number) })));
  }
}

class Worker {
  constructor({ state }) {
    Object.assign(this, copy("worker"));
    this.root.open = state.backends.length <= FEW;
    this.pools = new Keyed(
      this.parts.pools,
      (leaf) => leaf.name,
      () => new Leaf(),
    );
    this.providers = new Keyed(
      this.parts.providers,
      (leaf) => leaf.name,
      () => new Leaf(),
    );
    this.root.addEventListener("toggle", () => this.branch());
  }

  update(worker) {
    this.worker = worker;
    const { root, parts } = this;
    const { number, state, isLate } = worker;
    mark(root, "data-tone", isLate ? "late" : null);
    icon(parts.icon, isLate ? "late" : "well");
    write(parts.name, `worker ${number}`);
    const restarts = sum(state.backends, (backend) => of(backend.providers, number)?.restarts ?? 0);
    const parked = sum(state.pools, (pool) => of(pool.workers, number)?.parked ?? 0);
    const words = `${several(parked, "request")} waiting for a member, ${several(restarts, "restart")}`;
    write(parts.words, isLate ? `has not answered in time: what follows is old. ${words}` : words);
    if (root.open) this.branch();
  }

  branch() {
    const { number, state } = this.worker;
    const pools = state.pools.filter((pool) => !pool.implicit).map((pool) => poolLeaf(pool, of(pool.workers, number)));
    this.pools.update([...pools, oneLeaf(state.pools, number)]);
    this.providers.update(state.backends.map((backend) => providerLeaf(backend, of(backend.providers, number))));
  }
}

const of = (list, number) => list.find((entry) => entry.worker === number);
const sum = (list, value) => list.reduce((all, entry) => all + value(entry), 0);

function poolLeaf(pool, here) {
  const words = here
    ? `${pool.strategy}, ${several(here.requests, "request")}, ${count(here.parked)} waiting, ${several(here.restarts, "restart")}${extras(pool)}`
    : "not known";
  return { name: pool.name, words, symbol: here ? "well" : "unknown" };
}

/** What a pool's hedges and conversations have come to, over all workers. */
function extras({ hedges, conversations }) {
  const told = [];
  if (hedges) told.push(`${count(hedges.won)} of ${several(hedges.started, "hedge")} won`);
  if (conversations) {
    const { kept, moved } = conversations;
    told.push(`conversations: ${count(kept)} kept with their member, ${count(moved)} moved`);
  }
  return told.length === 0 ? "" : `; in the whole process ${told.join(", ")}`;
}

/** The pools of one, together. */
function oneLeaf(pools, number) {
  const own = pools
    .filter((pool) => pool.implicit)
    .map((pool) => of(pool.workers, number))
    .filter(Boolean);
  const all = (word) => sum(own, (pool) => pool[word]);
  const counts = `${several(all("requests"), "request")}, ${count(all("parked"))} waiting, ${several(all("restarts"), "restart")}`;
  return { name: "pools of one", words: `for ${several(own.length, "backend")}: ${counts}`, symbol: "well" };
}

const SYMBOLS = { up: "well", "backing-off": "starting", failed: "failed" };

function providerLeaf(backend, here) {
  if (here === undefined) return { name: backend.name, words: "not known", symbol: "unknown" };
  const draining = here.draining > 0 ? `, ${count(here.draining)} draining` : "";
  const crashes = here.crashes > 0 ? `, ${several(here.crashes, "crash", "crashes")}` : "";
  const reason = here.last_reason === null ? "" : ` (${here.last_reason})`;
  const life = here.state === "up" ? `up ${span(here.uptime_seconds)}` : down(here);
  const carried = `${count(here.in_flight)} in flight${draining}, queue ${count(here.queued)}`;
  const words = `generation ${here.generation}, ${life}, ${carried}, ${several(here.restarts, "restart")}${crashes}${reason}`;
  return { name: backend.name, words, symbol: SYMBOLS[here.state] ?? "unknown" };
}

function down({ state, next_start_seconds: wait }) {
  return wait === null ? state : `${state}, starts in ${left(wait)}`;
}

class Leaf {
  constructor() {
    Object.assign(this, copy("leaf"));
  }

  update({ name, words, symbol }) {
    icon(this.parts.icon, symbol);
    mark(this.root, "data-symbol", symbol);
    write(this.parts.name, name);
    write(this.parts.words, words);
  }
}
