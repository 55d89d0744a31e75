// The operator's acts: each is asked for in a dialog, shows how it goes, and leaves its result in the card and in a toast.

import { actOn, post, remove } from "./api.js";
import { byId, copy, element, mark, partsOf, show, write } from "./dom.js";
import { tries } from "./story.js";
import { count, known, rate, several, time } from "./words.js";

/** Toasts at once. */
const TOASTS = 4;
/** Acts that may wait for their end at once: a browser has six connections to a gateway, and the stream takes one. */
const WAITING = 3;

/** Fields of the dialog: name, label, and what the input is. */
const DEADLINE = { name: "deadline", label: "Deadline for what is in flight (optional)", placeholder: "30s" };

/**
 * By name: what is asked, with which fields and how they hang together, what is sent, how it goes and what it came to.
 * `{ words, isBad }` is a result; what is not given is not needed.
 */
const ACTS = {
  restart: {
    verb: "Restart",
    words: ({ in_flight }) => `New providers take over at once. ${carried(in_flight)}`,
    fields: () => [DEADLINE],
    send: (backend, { deadline, wait }) => post(actOn(backend.name, "restart", { wait, deadline })),
    progress: (backend, seen) => {
      seen.most = Math.max(seen.most ?? 0, backend.draining);
      return seen.most === 0 ? "restarting" : `${count(seen.most)} in flight -> ${count(backend.draining)}`;
    },
    result: restarted,
  },
  drain: {
    verb: "Drain",
    words: ({ in_flight }) => `It gets no more requests until it is resumed. ${carried(in_flight)}`,
    fields: () => [DEADLINE],
    send: (backend, { deadline, wait }) => post(actOn(backend.name, "drain", { wait, deadline })),
    progress: (backend, seen) => {
      seen.most = Math.max(seen.most ?? 0, backend.in_flight + backend.draining);
      return `${count(seen.most)} in flight -> ${count(backend.in_flight + backend.draining)}`;
    },
    result: ({ in_flight_at_start: start, in_flight: still, cut, moved }) => ({
      words: `${count(start)} in flight -> ${count(still)}, ${count(cut)} cut, ${count(moved)} moved`,
      isBad: cut > 0,
    }),
  },
  resume: {
    verb: "Resume",
    words: () => "It takes requests again.",
    send: (backend) => post(actOn(backend.name, "resume")),
    result: ({ was_drained }) => ({ words: was_drained ? "takes requests again" : "was not drained" }),
  },
  reset: {
    verb: "Reset circuit",
    words: () => "Its circuits are closed and its averages forgotten: it is asked at once, whatever happened before.",
    fields: ({ models }, { model }) => [
      {
        name: "model",
        label: "Circuit",
        options: [["", "all of the backend"], ...models.map((known) => [known.model, known.model])],
        value: model ?? "",
      },
    ],
    send: (backend, { model }) => post(actOn(backend.name, "reset", { model })),
    result: ({ closed }) => ({ words: closed === 0 ? "no circuit was open" : `${several(closed, "circuit")} closed` }),
  },
  weight: {
    verb: "Set weight",
    words: () => "The weight holds until the process ends; the configuration is not changed.",
    fields: ({ shares }) => [
      {
        name: "pool",
        label: "Pool",
        options: [
          ...(shares.length > 1 ? [["", "every pool that has it"]] : []),
          ...shares.map(({ pool, weight }) => [pool, `${pool}, now ${weight}`]),
        ],
      },
      {
        name: "weight",
        label: "Weight",
        type: "number",
        value: shares[0]?.weight ?? 1,
        min: 0,
        max: 1_000_000,
        step: "any",
        required: true,
      },
    ],
    link: ({ pool, weight }, { shares }) =>
      pool.addEventListener("change", () => {
        weight.value = (shares.find((share) => share.pool === pool.value) ?? shares[0])?.weight ?? 1;
      }),
    send: (backend, { pool, weight }) => post(actOn(backend.name, "weight", { weight, pool })),
    result: ({ changed }) => ({
      words: changed.map(({ pool, before, weight }) => `${pool}: ${before} -> ${weight}`).join(", "),
    }),
  },
  test: {
    verb: "Test",
    words: () => "One real request goes to this backend, whatever its circuits say. The provider may charge for it.",
    fields: ({ models }) => [
      { name: "prompt", label: "Prompt", value: "Say hello in five words.", required: true },
      { name: "model", label: "Model (optional)", placeholder: "the backend’s own", list: models.map(({ model }) => model) },
      { name: "stream", label: "As a stream", type: "checkbox", value: true },
    ],
    send: (backend, { prompt, model, stream }) =>
      post(actOn(backend.name, "test"), { prompt, stream, ...(model && { model }) }),
    progress: () => "asking",
    result: tested,
    details: testDetails,
  },
  cancel: {
    verb: "Cancel request",
    leave: "Let it run",
    words: ({ alike }) =>
      `${alike ? `${alike} attempts in flight carry this id: all of them end. ` : ""}Its client gets an error, and what was answered so far is lost.`,
    send: (request) => remove(`requests/${encodeURIComponent(request.name)}`),
    result: ({ ended }) => ({ words: `${several(ended, "attempt")} ended` }),
  },
};

const carried = (number) =>
  number === 0
    ? "Nothing is in flight."
    : `${number === 1 ? "The one request" : `The ${count(number)} requests`} in flight may finish.`;

/** Without `duration_seconds` the gateway did not wait for the end. */
function restarted({ in_flight_at_start: start, failed, cut, duration_seconds: seconds }) {
  if (seconds === undefined)
    return { words: `new providers have taken over, ${count(start)} in flight may finish: the events tell how` };
  return {
    words: `${count(start)} in flight -> 0, ${count(failed + cut)} failed, ${seconds.toFixed(1)} s`,
    isBad: failed + cut > 0,
  };
}

function tested({ outcome, first_content_seconds: first, total_seconds: total, tokens_per_second: speed, error }) {
  const times = [
    first === null ? null : `first content ${time(first)}`,
    `total ${time(total)}`,
    speed === null ? null : `${rate(speed)} tokens/s`,
  ];
  return { words: `${outcome}, ${times.filter(Boolean).join(", ")}${error ? `: ${error}` : ""}`, isBad: outcome !== "served" };
}

function testDetails(result) {
  const answer = element("blockquote", "answer", result.text || "No text was answered.");
  answer.tabIndex = 0;
  const facts = element(
    "p",
    "soft",
    `status ${result.status} · model ${result.model ?? "unknown"} · ${known(result.usage, (usage) => `${count(usage.prompt_tokens)} tokens in, ${count(usage.completion_tokens)} out`)} · request ${result.id}`,
  );
  return [answer, facts, tries(result.tries, result.total_seconds)];
}

export class Acts {
  /** `told()` is called when the last act of a backend has changed. */
  constructor(told) {
    this.told = told;
    this.dialog = byId("act");
    this.parts = partsOf(this.dialog);
    this.form = this.dialog.querySelector("form");
    /** What the last act on each backend came to. */
    this.last = new Map();
    this.state = null;
    this.waiting = 0;
    /** The act in the dialog. */
    this.current = null;
    this.parts.no.addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => (this.current = null));
    this.form.addEventListener("submit", (event) => this.submit(event));
    document.addEventListener("click", (event) => this.ask(event.target.closest("[data-act]")));
  }

  /** Opens the dialog for the button that was pressed. */
  ask(button) {
    if (button === null || button.disabled || this.state === null) return;
    const act = ACTS[button.dataset.act];
    const target = this.targetOf(button);
    if (target === undefined) return;
    this.current = { act, target, seen: {}, isSent: false };
    const { parts } = this;
    write(parts.title, `${act.verb}: ${target.name}`);
    write(parts.words, act.words(target));
    parts.fields.replaceChildren(...(act.fields?.(target, button.dataset) ?? []).map(field));
    act.link?.(this.form.elements, target);
    write(parts.outcome, "");
    mark(parts.outcome, "data-tone", null);
    parts.details.replaceChildren();
    write(parts.yes, act.verb);
    write(parts.no, act.leave ?? "Leave it");
    show(parts.fields, true);
    show(parts.yes, true);
    this.dialog.showModal();
    (parts.fields.querySelector("[required]") ?? parts.yes).focus();
  }

  targetOf(button) {
    const row = button.closest("[data-request]")?.dataset;
    if (row !== undefined) return { name: row.request, alike: row.alike, isRequest: true };
    const name = button.closest("[data-backend]")?.dataset.backend;
    return this.state.backends.find((backend) => backend.name === name);
  }

  submit(event) {
    event.preventDefault();
    const { current } = this;
    if (current === null || current.isSent) return;
    current.isSent = true;
    const values = valuesOf(this.form);
    show(this.parts.fields, false);
    show(this.parts.yes, false);
    write(this.parts.no, "Close");
    this.parts.no.focus();
    this.run(current, values);
  }

  async run(current, values) {
    const { act, target } = current;
    this.going(current, `${act.verb.toLowerCase()} …`);
    this.waiting += 1;
    try {
      const answer = await act.send(target, { ...values, wait: this.waiting <= WAITING ? 1 : undefined });
      this.ended(current, act.result(answer), act.details?.(answer));
    } catch (refusal) {
      this.ended(current, { words: refusal.message, isBad: true });
    } finally {
      this.waiting -= 1;
    }
  }

  /** How it goes, from the newest state. */
  update(state) {
    this.state = state;
    const { current } = this;
    if (current === null || !current.isSent || current.isDone || !current.act.progress) return;
    const backend = state.backends.find((backend) => backend.name === current.target.name);
    if (backend !== undefined) this.going(current, current.act.progress(backend, current.seen));
  }

  going(current, words) {
    this.note(current, words, "live");
  }

  ended(current, { words, isBad }, details = []) {
    current.isDone = true;
    this.note(current, words, isBad ? "bad" : "good");
    if (this.current === current) this.parts.details.replaceChildren(...details);
    toast(`${current.act.verb}: ${current.target.name}`, words, isBad);
  }

  /** Says it in the dialog, if that is still about this act, and in the backend's card. */
  note(current, words, tone) {
    if (this.current === current) {
      write(this.parts.outcome, words);
      mark(this.parts.outcome, "data-tone", tone);
    }
    if (current.target.isRequest) return;
    const last = { words: `${current.act.verb}: ${words}`, tone };
    if (this.last.get(current.target.name)?.words === last.words) return;
    this.last.set(current.target.name, last);
    this.told();
  }
}

/** One field of the dialog. */
function field({ name, label, type = "text", options, list, value, ...rest }) {
  const row = element("label", type === "checkbox" ? "check" : "");
  const input = element(options ? "select" : "input");
  input.name = name;
  if (options) input.append(...options.map(([key, words]) => new Option(words, key, key === value, key === value)));
  else input.type = type;
  if (type === "checkbox") input.checked = value;
  else if (!options) input.value = value ?? "";
  for (const [attribute, given] of Object.entries(rest)) mark(input, attribute, given);
  row.append(element("span", "", label), input);
  if (list?.length) row.append(suggestions(input, list));
  return row;
}

function suggestions(input, list) {
  const options = element("datalist");
  options.id = `known-${input.name}`;
  options.append(...list.map((value) => new Option(value, value)));
  input.setAttribute("list", options.id);
  return options;
}

function valuesOf(form) {
  const values = {};
  for (const input of form.querySelectorAll("[name]"))
    values[input.name] = input.type === "checkbox" ? input.checked : input.value.trim();
  return values;
}

/** Results stay until they are dismissed or newer ones need their place. */
export function toast(title, words, isBad) {
  const region = byId("toasts");
  const { root, parts } = copy("toast");
  root.dataset.tone = isBad ? "bad" : "good";
  write(parts.title, title);
  write(parts.words, words);
  parts.close.addEventListener("click", () => root.remove());
  region.append(root);
  while (region.children.length > TOASTS) region.firstElementChild.remove();
}
