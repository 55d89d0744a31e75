// Numbers and times as people say them. What is not known is a dash.

export const NONE = "–";
const NARROW = "\u00a0";
const UNITS = [
  [86_400, "d"],
  [3_600, "h"],
  [60, "min"],
  [1, "s"],
];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "medium" });

const isKnown = (value) => value !== null && value !== undefined;

/** `value` as `say` says it, or a dash. */
export const known = (value, say) => (isKnown(value) ? say(value) : NONE);

export const count = (number) => whole.format(number);

/** One thing, or several. */
export const several = (number, single, plural = `${single}s`) => `${count(number)} ${number === 1 ? single : plural}`;

/** A rate or another number that may be small. */
export const rate = (number) => (number !== 0 && number < 10 ? one.format(number) : whole.format(number));

/** A share of one. */
export function percent(share) {
  const hundredths = share * 100;
  if (hundredths === 0) return `0${NARROW}%`;
  if (hundredths < 1) return `${hundredths < 0.01 ? "<0.01" : hundredths.toFixed(2)}${NARROW}%`;
  return `${hundredths < 10 ? Number(hundredths.toFixed(1)) : Math.round(hundredths)}${NARROW}%`;
}

/** A time that is measured: `320 ms`, `3.2 s`. */
export function time(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)}${NARROW}ms`;
  if (seconds < 9.995) return `${seconds.toFixed(2)}${NARROW}s`;
  if (seconds < 60) return `${seconds.toFixed(1)}${NARROW}s`;
  return span(seconds);
}

/** A time that passes, in whole seconds: `42 s`, `3 min 5 s`. */
export function span(seconds) {
  const all = Math.max(0, Math.floor(seconds));
  if (all < 60) return `${all}${NARROW}s`;
  if (all < 3600) return two(all, 60, "min", 1, "s");
  if (all < 86_400) return two(all, 3600, "h", 60, "min");
  return two(all, 86_400, "d", 3600, "h");
}

function two(all, large, largeUnit, small, smallUnit) {
  const rest = Math.floor((all % large) / small);
  const first = `${Math.floor(all / large)}${NARROW}${largeUnit}`;
  return rest === 0 ? first : `${first} ${rest}${NARROW}${smallUnit}`;
}

/** How long ago something was, in one unit. */
export function ago(seconds) {
  if (seconds < 1) return "just now";
  const [size, unit] = UNITS.find(([size]) => seconds >= size);
  return `${Math.floor(seconds / size)}${NARROW}${unit}${NARROW}ago`;
}

/** What is left of a wait; the second that has begun counts. */
export const left = (seconds) => span(Math.ceil(seconds));

export function bytes(number) {
  if (number < 1024) return `${number}${NARROW}B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = number / 1024;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${value < 10 ? one.format(value) : whole.format(value)}${NARROW}${units[unit]}`;
}

/** The date and time of a Unix time, here. */
export const date = (unixSeconds) => clock.format(unixSeconds * 1000);

/** A class of failures as words: `rate_limited` is `rate limited`. */
export const spoken = (word) => word.replaceAll("_", " ").replaceAll("-", " ");

/** Counts by class, most frequent first. */
export function classes(failures) {
  const counted = Object.entries(failures).sort((a, b) => b[1] - a[1]);
  return counted.map(([word, number]) => `${count(number)} ${spoken(word)}`).join(", ");
}
