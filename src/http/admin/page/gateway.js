// The gateway itself: what it runs, with what, and how full it is.

import { byId, mark, partsOf, write } from "./dom.js";
import { bytes, count, date, known, span } from "./words.js";

export class Gateway {
  constructor() {
    this.parts = partsOf(byId("gateway"));
  }

  update(state) {
    const { parts } = this;
    write(parts.version, `${state.version}, ${state.build} build`);
    write(parts.uptime, `${span(state.uptime_seconds)} ago`);
    mark(parts.uptime, "title", date(state.at - state.uptime_seconds));
    write(parts.memory, known(state.memory_bytes, bytes));
    write(parts.connections, count(state.connections));
    write(parts.open, count(state.open_requests));
    write(parts.bodies, `${bytes(state.body_bytes)} of ${bytes(state.body_limit_bytes)}`);
    mark(parts.bodyMeter, "value", state.body_limit_bytes > 0 ? (state.body_bytes / state.body_limit_bytes).toFixed(4) : 0);
    const late = state.late_workers;
    write(
      parts.workerCount,
      late.length === 0 ? count(state.workers.length) : `${count(state.workers.length)}, late: ${late.join(", ")}`,
    );
    mark(parts.workerCount, "data-tone", late.length > 0 ? "warn" : null);
    write(parts.source, state.configuration.source);
    write(parts.hash, state.configuration.sha256.slice(0, 12));
    mark(parts.hash, "title", `SHA-256 ${state.configuration.sha256}`);
  }
}
