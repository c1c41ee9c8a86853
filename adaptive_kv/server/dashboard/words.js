// How figures are written: a number and its unit are never parted.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes with three digits or so: `96 MiB`, `1.42 GiB`. */
export function bytes(number) {
  const power = Math.min(Math.floor(Math.log2(Math.max(Math.abs(number), 1)) / 10), 4);
  const scaled = number / 1024 ** power;
  return together(digits(scaled), UNITS[power]);
}

/** Seconds: `0.8 ms`, `12 ms`, `1.5 s`, `4 min`, `3 h`. Null is a dash. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds > 0 && seconds < 1) return together(digits(seconds * 1000), "ms");
  if (seconds < 120) return together(digits(seconds), "s");
  if (seconds < 7200) return together(Math.floor(seconds / 60), "min");
  if (seconds < 172800) return together(Math.floor(seconds / 3600), "h");
  return together(Math.floor(seconds / 86400), "days");
}

/** Wall clock of this browser, from seconds since the epoch. */
export function clock(time_s) {
  return new Date(time_s * 1000).toLocaleTimeString([], { hourCycle: "h23" });
}

/** `1 sequence`, `2 sequences`. */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** A mode's style class: its format, and whether it is a window. */
export function kind(mode) {
  return mode.replace(/:\d+\+?/, "-").replace(/-$/, "");
}

/** Sorts modes as a ladder does: those that keep most come first. */
export function byKept(a, b) {
  return rank(a) - rank(b) || (a < b ? -1 : 1);
}

function rank(mode) {
  const kinds = ["full", "int8", "int4", "window", "window-int8", "window-int4", "disabled"];
  return kinds.includes(kind(mode)) ? kinds.indexOf(kind(mode)) : kinds.length;
}

/** The next round number at or above, of a scale whose halves and quarters are round too. */
export function round(number) {
  const power = 10 ** Math.floor(Math.log10(Math.max(number, 1e-9)));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= number * 0.999999);
}

function together(number, unit) {
  return `${number}\u00a0${unit}`;
}

function digits(number) {
  const size = Math.abs(number);
  const places = size >= 99.5 || Number.isInteger(number) ? 0 : size >= 9.95 ? 1 : 2;
  return number
    .toFixed(places)
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}
