// Drawing with SVG: one chart is a plot between a scale of time and a scale of values.

import { clock } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 64;
const RIGHT = 1;
const BELOW = 20;
const TICKS_S = [5, 10, 15, 30, 60, 120, 300];
const TICK_WIDTH = 76;

/** An SVG element. */
export function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** The scale of time that charts have in common, `width` pixels wide. */
export class Across {
  constructor(width, from_s, end_s) {
    this.width = width;
    this.from_s = from_s;
    this.end_s = end_s;
  }

  x(time_s) {
    const share = (time_s - this.from_s) / (this.end_s - this.from_s);
    return tidy(LEFT + Math.min(1, Math.max(0, share)) * (this.width - LEFT - RIGHT));
  }

  time_s(x) {
    const share = (x - LEFT) / (this.width - LEFT - RIGHT);
    return this.from_s + Math.min(1, Math.max(0, share)) * (this.end_s - this.from_s);
  }

  /** Round moments, as many as there is room for. */
  ticks() {
    const most = (this.width - LEFT) / TICK_WIDTH;
    const span_s = this.end_s - this.from_s;
    const step_s = TICKS_S.find((each) => span_s / each <= most) ?? TICKS_S.at(-1);
    const first = Math.ceil(this.from_s / step_s);
    const num = Math.floor(this.end_s / step_s) - first + 1;
    return Array.from({ length: num }, (_, i) => (first + i) * step_s);
  }
}

/** One drawing: give it shapes, then `show` them in its element all at once. */
export class Chart {
  #shapes = [];
  #scale;
  #bottom;
  #top;

  constructor(across, height, bottom, top) {
    this.across = across;
    this.height = height;
    this.#scale = (height - BELOW - 8) / Math.max(top - bottom, 1e-12);
    this.#bottom = bottom;
    this.#top = top;
  }

  /** Where a value stands; one above the top is cut off there. */
  y(value) {
    return tidy(this.height - BELOW - (Math.min(value, this.#top) - this.#bottom) * this.#scale);
  }

  add(name, attributes, text) {
    this.#shapes.push(shape(name, attributes, text));
  }

  /** A horizontal line over the whole width, with its label at the left. */
  level(value, label, style = "grid") {
    const y = this.y(value);
    this.add("line", { class: style, x1: LEFT, x2: this.across.width - RIGHT, y1: y, y2: y });
    this.label(y + 4, label);
  }

  /** Text left of the plot. */
  label(y, text) {
    this.add("text", { x: LEFT - 7, y, "text-anchor": "end" }, text);
  }

  upright(time_s, style) {
    if (time_s < this.across.from_s || time_s > this.across.end_s) return;
    const x = this.across.x(time_s);
    this.add("line", { class: style, x1: x, x2: x, y1: 2, y2: this.height - BELOW });
  }

  /** The clock below. */
  clock() {
    for (const time_s of this.across.ticks()) {
      const x = this.across.x(time_s);
      const end = this.across.width - 28;
      const place = Math.min(Math.max(x, LEFT + 24), end);
      this.add("text", { x: place, y: this.height - 5, "text-anchor": "middle" }, clock(time_s));
    }
  }

  /** A line through values; it breaks where there is none. */
  line(pieces, style, valueOf) {
    const runs = pieces.flatMap((piece) => split(piece, (sample) => valueOf(sample) !== null));
    const path = runs.map((run) => this.#path(run, valueOf)).join("");
    if (path) this.add("path", { class: style, d: path });
  }

  /** The area between two lines of values. */
  area(pieces, style, lowOf, highOf) {
    const path = pieces.map((piece) => {
      const back = piece.toReversed();
      return `${this.#path(piece, highOf)}${this.#path(back, lowOf).replace("M", "L")}Z`;
    });
    if (path.length) this.add("path", { class: style, d: path.join("") });
  }

  show(element) {
    element.setAttribute("height", this.height);
    element.setAttribute("viewBox", `0 0 ${this.across.width} ${this.height}`);
    element.replaceChildren(...this.#shapes);
  }

  #path(samples, valueOf) {
    const points = samples.map((s) => `${this.across.x(s.time_s)},${this.y(valueOf(s))}`);
    if (points.length === 1) points.push(points[0]); // a dot is a line too
    return points.length ? `M${points.join("L")}` : "";
  }
}

function split(samples, isGood) {
  const runs = [];
  let wasGood = false;
  for (const sample of samples) {
    const good = isGood(sample);
    if (good && !wasGood) runs.push([]);
    if (good) runs.at(-1).push(sample);
    wasGood = good;
  }
  return runs;
}

function tidy(number) {
  return Math.round(number * 10) / 10;
}
