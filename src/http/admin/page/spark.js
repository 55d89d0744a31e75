// Small pictures of the last hour: 120 steps, the newest at the right, gaps where nothing was measured.

import { get } from "./api.js";
import { mark } from "./dom.js";

const STEPS = 120;

/** The last hour as the gateway tells it, by backend; asked for anew when the next step is due. */
export class Hour {
  constructor() {
    this.sums = null;
    this.backends = new Map();
    this.changes = 0;
  }

  async ask() {
    const history = await get("history");
    this.sums = history;
    this.backends = new Map(history.backends.map((backend) => [backend.name, backend]));
    this.changes += 1;
  }
}

/** A line through the values that are known. */
export function line(svgPath, values, height) {
  const most = top(values);
  const y = (value) => round(height - 1 - (value / most) * (height - 2));
  let path = "";
  let isDown = false;
  values.forEach((value, place) => {
    const x = STEPS - values.length + place + 0.5;
    if (value === null) isDown = false;
    else {
      path += `${isDown ? "L" : "M"}${x} ${y(value)}${isDown ? "" : "h0"}`;
      isDown = true;
    }
  });
  mark(svgPath, "d", path);
}

/** Bars from the ground; `most` is the value of the full height. */
export function bars(svgPath, values, most, height) {
  let path = "";
  values.forEach((value, place) => {
    if (!value) return;
    const tall = Math.max(1.2, (value / most) * (height - 1));
    path += `M${STEPS - values.length + place + 0.1} ${height}v-${round(tall)}h.8v${round(tall)}z`;
  });
  mark(svgPath, "d", path);
}

/** The largest value, above zero. */
export const top = (values) => Math.max(...values.map((value) => value ?? 0), 1e-9);

const round = (number) => Math.round(number * 100) / 100;
