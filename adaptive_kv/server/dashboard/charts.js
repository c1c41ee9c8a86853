// The three charts. They share their scale of time, and each has a sentence that says what it shows.

import { Chart } from "./draw.js";
import { byKept, bytes, count, duration, kind, round } from "./words.js";

const SERVICE_HEIGHT = 18;
const MIB = 2 ** 20;
const DECADES = [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100];
const LEVELS = DECADES.flatMap((decade) => [decade, 2 * decade, 5 * decade]);
const HEADROOM = 5; // of the largest cache: what is free beyond it is cut off, or none would be seen

/** What lies between the floor and what is free: the cache, and on it what it may still take. */
export function drawMemory(element, recent, across, limit_bytes, at_s) {
  const pieces = recent.pieces(across.from_s);
  const samples = pieces.flat();
  const above = (s) => Math.max(0, s.free_bytes - s.floor_bytes);
  const missing = (s) => Math.max(0, s.floor_bytes - s.free_bytes);
  const most = Math.max(...samples.map((s) => s.cache_bytes + above(s)), MIB);
  const cut = HEADROOM * Math.max(...samples.map((s) => s.cache_bytes), 4 * MIB);
  const least = -Math.min(Math.max(...samples.map(missing), 0), cut / 2);
  const unit = 1024 ** Math.floor(Math.log2(Math.min(most, cut)) / 10);
  const top = round(Math.min(most, cut) / unit) * unit;
  const chart = new Chart(across, 190, Math.min(least, 0), top);
  for (const share of [1, 0.75, 0.5, 0.25]) chart.level(top * share, bytes(top * share));
  chart.area(
    pieces,
    "free",
    (s) => s.cache_bytes,
    (s) => s.cache_bytes + above(s),
  );
  chart.area(
    pieces,
    "cache",
    () => 0,
    (s) => s.cache_bytes,
  );
  if (least < 0)
    chart.area(
      pieces,
      "under",
      (s) => Math.max(least, -missing(s)),
      () => 0,
    );
  if (limit_bytes !== null && limit_bytes <= top) chart.level(limit_bytes, "", "budget");
  chart.level(0, "floor", "floor");
  if (most > top) {
    const place = { x: across.width - 6, y: 22, "text-anchor": "end", class: "within" };
    chart.add("text", place, `cut off here: up to ${bytes(most)}`);
  }
  finish(chart, element, recent, at_s);
  if (!samples.length) return "Nothing is known yet.";
  const room = samples.map((s) => s.free_bytes - s.floor_bytes);
  const num_under = room.filter((each) => each < 0).length;
  return (
    `In the time shown between ${bytes(Math.min(...room))} and ${bytes(Math.max(...room))} ` +
    `were free above the floor, and the cache held between ` +
    `${bytes(Math.min(...samples.map((s) => s.cache_bytes)))} and ` +
    `${bytes(Math.max(...samples.map((s) => s.cache_bytes)))}. The floor was ` +
    (num_under ? "broken." : "never broken.")
  );
}

/** One lane for the service, and one for every place that a sequence had. */
export function drawModes(element, recent, across, at_s) {
  const shown = recent.stretches.filter((one) => one.to_s >= across.from_s);
  const num_lanes = Math.max(0, ...shown.map((one) => one.lane + 1));
  const lane_height = num_lanes <= 12 ? 11 : num_lanes <= 24 ? 8 : 5;
  const lanes_top = SERVICE_HEIGHT + 8;
  const chart = new Chart(across, lanes_top + Math.max(num_lanes, 3) * lane_height + 26, 0, 1);
  const paths = {};
  for (const { lane, mode, from_s, to_s } of shown) {
    const y = lane < 0 ? 2 : lanes_top + lane * lane_height;
    const height = lane < 0 ? SERVICE_HEIGHT - 2 : lane_height - 2;
    const end = across.x(to_s);
    const x = Math.min(across.x(from_s), end - 1); // the shortest is still seen
    const box = mode === "parked" ? [y + height / 2 - 1, 2] : [y, height];
    paths[kind(mode)] ??= [];
    paths[kind(mode)].push(`M${x} ${box[0]}H${end}v${box[1]}H${x}Z`);
  }
  for (const [style, path] of Object.entries(paths)) {
    chart.add("path", { class: `mode ${style}`, d: path.join("") });
  }
  chart.label(15, "service");
  if (num_lanes) chart.label(lanes_top + 9, "sequences");
  finish(chart, element, recent, at_s);
  const changes = recent.changes_s.filter((time_s) => time_s >= across.from_s).length;
  const now = Object.values(recent.last?.modes ?? {});
  const by_mode = [...new Set(now)].map(
    (mode) => `${now.filter((m) => m === mode).length} ${mode}`,
  );
  return (
    `${changes ? count(changes, "change") : "No change"} of the service's mode in the time ` +
    `shown. Now: ${by_mode.join(", ") || "no sequence runs"}.`
  );
}

/** What the chart of modes shows, the modes that keep most first. */
export function modesShown(recent, from_s) {
  const shown = recent.stretches.filter((one) => one.to_s >= from_s);
  return [...new Set(shown.map((one) => one.mode))].sort(byKept);
}

/** Median and 95th percentile of the last steps, on a logarithmic scale. */
export function drawLatency(element, recent, across, at_s) {
  const pieces = recent.pieces(across.from_s);
  const known = pieces.flat().filter((s) => s.token_p50_s !== null);
  const slowest = Math.max(...known.map((s) => s.token_p95_s ?? s.token_p50_s), LEVELS[0]);
  const levels = levelsAround(Math.min(...known.map((s) => s.token_p50_s), slowest), slowest);
  const log = (value) => (value === null ? null : Math.log10(Math.max(value, LEVELS[0])));
  const chart = new Chart(across, 140, log(levels[0]), log(levels.at(-1)));
  const shown = levels.length < 8 ? levels : levels.filter((level) => DECADES.includes(level));
  for (const level of shown) chart.level(log(level), duration(level));
  chart.line(pieces, "p95", (s) => log(s.token_p95_s));
  chart.line(pieces, "p50", (s) => log(s.token_p50_s));
  finish(chart, element, recent, at_s);
  const last = recent.last;
  if (!last || last.token_p50_s === null) return "No token was generated yet.";
  return (
    `A token takes ${duration(last.token_p50_s)} in the median, ` +
    `${duration(last.token_p95_s)} at the 95th percentile; at most ${duration(slowest)} ` +
    `in the time shown.`
  );
}

/** The round durations from the last one below to the first one above. */
function levelsAround(fastest, slowest) {
  const first = Math.max(
    0,
    LEVELS.findLastIndex((level) => level <= fastest),
  );
  const last = LEVELS.findIndex((level) => level >= slowest);
  return LEVELS.slice(first, Math.max(last < 0 ? LEVELS.length : last + 1, first + 2));
}

/** A sentence on one moment, for the cursor. */
export function tellMoment(sample) {
  const room_bytes = sample.free_bytes - sample.floor_bytes;
  const room =
    room_bytes < 0
      ? `${bytes(-room_bytes)} missing to the floor`
      : `${bytes(room_bytes)} free above the floor`;
  const modes = Object.values(sample.modes);
  return (
    `${sample.mode}, cache ${bytes(sample.cache_bytes)}, ${room}, token ` +
    `${duration(sample.token_p50_s)}, ${count(modes.length, "sequence")}`
  );
}

/** What every chart has: changes of mode, the clock, the cursor. */
function finish(chart, element, recent, at_s) {
  for (const time_s of recent.changes_s) chart.upright(time_s, "change");
  chart.clock();
  if (at_s !== null) chart.upright(at_s, "cursor");
  chart.show(element);
}
