// The last minutes: samples, and the mode of every sequence over time. Bounded in every direction,
// so that a page may stay open for weeks.

const KEPT_S = 600;
const MAX_SAMPLES = 1200;
const MAX_STRETCHES = 4000;
const SILENCE_S = 6; // nothing is drawn across a longer one
const CLOCK_SET_S = 60;

/** What the charts show of a state document; `modes` has those sequences that hold a place. */
export function sampleOf(state) {
  const shown = state.sequence_list.filter((sequence) => sequence.state !== "waiting");
  return {
    time_s: Date.parse(state.time) / 1000,
    mode: state.mode,
    free_bytes: state.memory.free_bytes,
    floor_bytes: state.memory.floor_bytes,
    cache_bytes: state.memory.cache_bytes,
    token_p50_s: state.latency.token_p50_s,
    token_p95_s: state.latency.token_p95_s,
    modes: Object.fromEntries(
      shown.map((one) => [one.id, one.state === "parked" ? "parked" : one.mode]),
    ),
  };
}

/** Samples in the order of time, and stretches `{lane, mode, from_s, to_s, isChange}`.
 *
 * Lane -1 is the service; `isChange` tells that the stretch went on from one in another mode. */
export class Recent {
  samples = [];
  stretches = [];
  #open = new Map(); // by id of a sequence: the stretch that goes on

  get last() {
    return this.samples.at(-1);
  }

  /** Take one more. One that is not newer than the last is ignored, unless the clock was set. */
  add(sample) {
    const ahead_s = this.last ? sample.time_s - this.last.time_s : 0;
    if (ahead_s < -CLOCK_SET_S) this.clear();
    else if (this.last && ahead_s <= 0) return;
    if (ahead_s > SILENCE_S) this.#open.clear();
    this.samples.push(sample);
    this.#follow(sample);
    this.#forget(sample.time_s - KEPT_S);
  }

  clear() {
    this.samples = [];
    this.stretches = [];
    this.#open.clear();
  }

  /** When the service changed its mode. */
  get changes_s() {
    return this.stretches.filter((one) => one.lane < 0 && one.isChange).map((one) => one.from_s);
  }

  /** The sample at a time, or the last one before it. */
  at(time_s) {
    return this.samples.findLast((sample) => sample.time_s <= time_s) ?? this.samples[0];
  }

  /** Samples in pieces that a line may be drawn through, from a time on. */
  pieces(from_s) {
    const pieces = [];
    let before_s = -Infinity;
    for (const sample of this.samples) {
      if (sample.time_s < from_s - SILENCE_S) continue;
      if (sample.time_s - before_s > SILENCE_S) pieces.push([]);
      pieces.at(-1).push(sample);
      before_s = sample.time_s;
    }
    return pieces;
  }

  #follow(sample) {
    const modes = new Map([["", sample.mode], ...Object.entries(sample.modes)]);
    for (const id of [...this.#open.keys()]) if (!modes.has(id)) this.#open.delete(id);
    for (const [id, mode] of modes) {
      const stretch = this.#open.get(id);
      if (stretch) stretch.to_s = sample.time_s;
      if (stretch?.mode === mode) continue;
      const lane = stretch?.lane ?? (id === "" ? -1 : this.#freeLane());
      const isChange = stretch !== undefined;
      const begun = { lane, mode, from_s: sample.time_s, to_s: sample.time_s, isChange };
      this.#open.set(id, begun);
      this.stretches.push(begun);
    }
  }

  #freeLane() {
    const taken = new Set([...this.#open.values()].map((stretch) => stretch.lane));
    let lane = 0;
    while (taken.has(lane)) lane += 1;
    return lane;
  }

  #forget(before_s) {
    const isOld = this.samples[0].time_s < before_s - 30; // now and then, not every time
    if (isOld || this.samples.length > MAX_SAMPLES) {
      this.samples = this.samples.filter((one) => one.time_s >= before_s).slice(-MAX_SAMPLES);
      this.stretches = this.stretches.filter((one) => one.to_s >= before_s);
    }
    if (this.stretches.length > MAX_STRETCHES) this.stretches.splice(0, MAX_STRETCHES / 4);
  }
}
