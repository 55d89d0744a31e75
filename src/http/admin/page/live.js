// The live stream, kept open. Each connection is made anew, after a look at who one is: an EventSource does not tell why
// it was refused, and the number of the last event means nothing to a gateway that was started again meanwhile.

import { get } from "./api.js";

/** A stream that is silent for longer is not live. */
const SILENT_MS = 3_000;
/** And after this it is made anew. */
const DEAD_MS = 10_000;
/** The gateway ends a stream after 15 minutes: the next one begins before that. */
const RENEW_MS = 14 * 60_000;
const PATIENCE_MS = 4_000;

export class Live {
  /** `take(kind, text)` gets every event; `tell({ isLive, silentMs })` is called twice a second. */
  constructor(take, tell, refused) {
    Object.assign(this, { take, tell, refused, source: null, heardAt: null, beganAt: 0, isOpening: false, isOn: false });
  }

  start() {
    this.isOn = true;
    this.open();
    this.timer ??= setInterval(() => this.look(), 500);
  }

  stop() {
    this.isOn = false;
    this.close();
    clearInterval(this.timer);
    this.timer = undefined;
  }

  /** Asks who one is, then opens the stream. */
  async open(pauseMs = 0) {
    if (this.isOpening) return;
    this.isOpening = true;
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
    try {
      await get("session", { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (this.isOn) this.connect();
      this.isOpening = false;
    } catch (refusal) {
      this.isOpening = false;
      if (!this.isOn) return;
      if (refusal.status === 401) this.refused();
      else this.open(Math.min(5_000, 1_000 + pauseMs * 1.5));
    }
  }

  connect() {
    const before = this.source;
    const source = new EventSource("/admin/api/events");
    for (const kind of ["state", "requests", "journal"]) {
      source.addEventListener(kind, (event) => {
        if (source !== this.source) return;
        before?.close();
        this.heardAt = performance.now();
        this.take(kind, event.data);
      });
    }
    source.addEventListener("error", () => {
      if (source !== this.source) return source.close();
      before?.close();
      this.close();
      this.open(1_000);
    });
    this.source = source;
    this.beganAt = performance.now();
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  look() {
    const now = performance.now();
    const silentMs = this.heardAt === null ? null : now - this.heardAt;
    const isLive = this.source !== null && silentMs !== null && silentMs <= SILENT_MS;
    this.tell({ isLive, silentMs });
    if (this.source === null || this.isOpening) return;
    const isDead = Math.min(silentMs ?? Infinity, now - this.beganAt) > DEAD_MS;
    if (isDead) {
      this.close();
      this.open();
    } else if (now - this.beganAt > RENEW_MS) this.open();
  }
}
