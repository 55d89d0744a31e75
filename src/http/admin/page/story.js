// The story of one request: what it came to, how its members were chosen, and its tries along one axis of time.

import { get } from "./api.js";
import { byId, element, partsOf, write } from "./dom.js";
import { ago, count, date, known, rate, spoken, time } from "./words.js";

const WHY = {
  only: "there is no other",
  best: "its score is the best",
  tie: "its score is as good as the best, and the weights decided",
  untried: "nothing is known of it yet",
  scout: "it was not asked for a while and may have recovered",
  turn: "it was its turn",
  probe: "its circuit is half-open: this request decides",
  "last-resort": "every circuit is open, and it is the least bad",
  affinity: "the conversation was there before",
  nobody: "could be asked",
};

export class Story {
  constructor() {
    this.dialog = byId("story");
    this.parts = partsOf(this.dialog);
    this.id = null;
    this.parts.close.addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => (this.id = null));
  }

  /** Opens the story of a request. Fails if the gateway does not know it. */
  async open(id) {
    const told = await get(`requests/${encodeURIComponent(id)}`);
    this.id = id;
    this.draw(told);
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
  }

  /** Asks again while the story goes on. */
  async update() {
    if (this.id === null || this.told.state !== "in-flight") return;
    const id = this.id;
    const told = await get(`requests/${encodeURIComponent(id)}`).catch(() => null);
    if (told !== null && this.id === id) this.draw(told);
  }

  draw(told) {
    this.told = told;
    write(this.parts.title, told.id);
    this.parts.body.replaceChildren(facts(told), tries(told.tries, lengthOf(told)), choices(told.choices));
  }
}

const lengthOf = (told) => told.duration_seconds ?? told.age_seconds;

function facts(told) {
  const isOpen = told.state === "in-flight";
  const outcome = isOpen ? "in flight" : told.absorbed ? "absorbed: served although a try had failed" : told.outcome;
  const usage = told.usage ?? null;
  const pairs = [
    ["outcome", told.class ? `${outcome}: ${spoken(told.class)}` : outcome],
    ["status", isOpen ? null : told.status],
    ["taken", isOpen ? ago(told.age_seconds) : date(told.at)],
    [isOpen ? "so far" : "total", time(lengthOf(told))],
    ["first content", isOpen ? null : known(told.first_content_seconds, time)],
    ["backend", told.backend],
    ["model", told.model],
    ["operation", [told.operation, told.stream ? "stream" : null].filter(Boolean).join(", ")],
    ["pool", told.pool],
    ["route", told.route],
    ["caller", told.caller],
    ["tokens", usage && `${count(usage.prompt_tokens)} in, ${count(usage.completion_tokens)} out`],
    ["worker", told.worker],
    ["left out for the backend", told.dropped?.join(", ")],
  ];
  const list = element("dl", "facts small");
  list.append(
    ...pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => fact(name, String(value))),
  );
  return list;
}

function fact(name, value) {
  const pair = element("div");
  pair.append(element("dt", "", name), element("dd", "", value));
  return pair;
}

/** Tries, each with its phases as bars along the whole request. */
export function tries(list, length) {
  const section = element("section", "tries");
  section.append(element("h3", "", "Tries"), legend());
  if (list.length === 0) section.append(element("p", "soft", "It was tried nowhere."));
  const whole = Math.max(length, ...list.map((tried) => tried.ended_seconds ?? 0), 0.001);
  section.append(...list.map((tried, place) => oneTry(tried, place + 1, whole)));
  return section;
}

function legend() {
  const line = element("p", "legend soft");
  for (const [phase, words] of [
    ["head", "until the head"],
    ["content", "until first content"],
    ["rest", "until the end"],
  ]) {
    const key = element("span");
    key.append(element("i", `phase-${phase}`), words);
    line.append(key);
  }
  return line;
}

function oneTry(tried, number, whole) {
  const row = element("div", "try");
  row.dataset.outcome = tried.outcome;
  const head = element("p");
  const badge = element("span", "badge", tried.outcome);
  badge.dataset.tone = { served: "good", open: "live", cancelled: "none" }[tried.outcome] ?? "bad";
  head.append(element("b", "", `${number}. ${tried.backend ?? "unknown"}`), " ", badge, tried.hedge ? " hedge" : "");
  row.append(head, track(tried, whole), element("p", "soft", timesOf(tried)));
  if (tried.reason || tried.class)
    row.append(element("p", "bad-words", [tried.class && spoken(tried.class), tried.reason].filter(Boolean).join(": ")));
  return row;
}

function track(tried, whole) {
  const bar = element("div", "track");
  const end = tried.ended_seconds ?? whole;
  const head = tried.head_seconds ?? tried.first_content_seconds ?? end;
  const content = tried.first_content_seconds ?? end;
  const pieces = [
    ["head", tried.began_seconds, head],
    ["content", head, content],
    ["rest", content, end],
  ];
  for (const [phase, from, to] of pieces) {
    if (to <= from) continue;
    const piece = element("i", `phase-${phase}`);
    piece.style.setProperty("inset-inline-start", `${(from / whole) * 100}%`);
    piece.style.setProperty("inline-size", `${((to - from) / whole) * 100}%`);
    bar.append(piece);
  }
  return bar;
}

function timesOf(tried) {
  const at = (name, seconds) => (seconds === null ? null : `${name} ${time(seconds)}`);
  const tokens = tried.completion_tokens === null ? null : `${count(tried.completion_tokens)} tokens out`;
  const streamed =
    tried.ended_seconds !== null && tried.first_content_seconds !== null
      ? tried.ended_seconds - tried.first_content_seconds
      : 0;
  const speed = streamed > 0.01 && tried.completion_tokens ? `${rate(tried.completion_tokens / streamed)} tokens/s` : null;
  const told = [
    at("began", tried.began_seconds),
    at("head", tried.head_seconds),
    at("first content", tried.first_content_seconds),
    at("ended", tried.ended_seconds),
    tokens,
    speed,
  ];
  return told.filter(Boolean).join(" · ");
}

function choices(list) {
  const section = element("section", "choices");
  section.append(element("h3", "", "Choices"));
  if (list.length === 0) section.append(element("p", "soft", "No member was chosen."));
  section.append(...list.map(oneChoice));
  return section;
}

function oneChoice(choice) {
  const block = element("div", "choice");
  const head = element("p");
  head.append(
    element("b", "", choice.backend ?? (choice.why === "nobody" ? "nobody" : "unknown")),
    ` ${WHY[choice.why] ?? choice.why}`,
    element("span", "soft", ` · at ${time(choice.at_seconds)}`),
  );
  const list = element("ul");
  list.append(
    ...choice.compared.map((member) => element("li", "", `${member.backend ?? "unknown"}: ${known(member.score, score)}`)),
    ...choice.passed_over
      .filter((member) => member.backend !== choice.backend)
      .map((member) => element("li", "soft", `${member.backend ?? "unknown"}: not asked, ${spoken(member.reason)}`)),
  );
  block.append(head, list);
  return block;
}

const score = (value) => `score ${Number(value.toPrecision(3))}`;
