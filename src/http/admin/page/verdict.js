// Whether clients are being served: the answer at the top, in the title and in the favicon.

import { byId, icon, mark, partsOf, write } from "./dom.js";
import { bars, top } from "./spark.js";
import { count, known, percent, rate, span } from "./words.js";

/** Word, tone and icon of each level. */
const LEVELS = {
  serving: ["Serving", "good", "well"],
  unknown: ["Unknown", "none", "unknown"],
  degraded: ["Degraded", "warn", "ailing"],
  draining: ["Draining", "warn", "drained"],
  failing: ["Failing", "bad", "failed"],
  down: ["Down", "bad", "open"],
};

const COLOURS = { good: "#1f8a4c", none: "#7a8494", warn: "#c77700", bad: "#c8372d" };
const SHAPES = {
  good: "<circle cx='8' cy='8' r='7' fill='FILL'/><path d='M4.5 8.2l2.4 2.4 4.5-5' stroke='#fff' stroke-width='1.8' fill='none'/>",
  none: "<circle cx='8' cy='8' r='6' fill='none' stroke='FILL' stroke-width='2' stroke-dasharray='2.5 2'/>",
  warn: "<path d='M8 1l7 13.5H1z' fill='FILL'/><path d='M8 6v4M8 11.8v1' stroke='#fff' stroke-width='1.8'/>",
  bad: "<path d='M5 1h6l4 4v6l-4 4H5l-4-4V5z' fill='FILL'/><path d='M5 5l6 6M11 5l-6 6' stroke='#fff' stroke-width='1.8'/>",
};

export class Verdict {
  constructor() {
    this.root = byId("verdict");
    this.parts = partsOf(this.root);
    this.level = null;
  }

  update({ verdict }) {
    const [word, tone, symbol] = LEVELS[verdict.level] ?? LEVELS.unknown;
    const { parts } = this;
    this.level = verdict.level;
    mark(this.root, "data-tone", tone);
    mark(this.root, "data-level", verdict.level);
    icon(parts.icon, symbol);
    write(parts.word, word);
    write(parts.words, verdict.words);
    write(parts.down, `${count(verdict.backends_down)} of ${count(verdict.backends)}`);
    mark(parts.downBox, "data-tone", verdict.backends_down > 0 ? "warn" : null);
    write(parts.window, windowOf(verdict.window_seconds));
    write(parts.errors, known(verdict.error_rate, percent));
    mark(parts.errorBox, "title", `${count(verdict.failed)} of ${count(verdict.requests)} requests`);
    mark(parts.errorBox, "data-tone", verdict.failed > 0 ? (verdict.error_rate > 0.01 ? "bad" : "warn") : null);
    write(parts.absorbed, count(verdict.absorbed));
    mark(parts.absorbedBox, "data-tone", verdict.absorbed > 0 ? "absorbed" : null);
    write(parts.rate, rate(verdict.requests_per_second));
    this.face(word, tone, verdict);
  }

  /** Title and favicon when what is shown is not live. */
  unlive() {
    this.announce("Not live – Stagedoor", "none");
  }

  face(word, tone, { backends_down: down }) {
    this.announce(`${down > 0 ? `(${down} down) ` : ""}${word} – Stagedoor`, tone);
  }

  announce(title, tone) {
    if (document.title !== title) document.title = title;
    const shape = SHAPES[tone].replaceAll("FILL", COLOURS[tone]);
    const svg = `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>${shape}</svg>`;
    mark(byId("favicon"), "href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
    mark(byId("favicon"), "data-tone", tone);
  }

  /** The bars of the last hour. */
  draw({ sums }) {
    const most = top(sums.requests);
    bars(this.parts.served, sums.requests, most, 32);
    bars(this.parts.failed, sums.failed, most, 32);
    const [requests, failed] = [sum(sums.requests), sum(sums.failed)];
    write(this.parts.hour, sums.steps === 0 ? "" : `: ${count(requests)}, ${count(failed)} failed`);
  }
}

/** What the numbers are of; the first minutes after a start have less. */
const windowOf = (seconds) => (seconds < 60 ? span(seconds) : `${Math.min(5, Math.floor(seconds / 60))}\u00a0min`);

const sum = (values) => values.reduce((all, value) => all + value, 0);
