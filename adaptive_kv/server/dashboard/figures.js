// The figures of this moment.

import { element } from "./lists.js";
import { bytes, count, duration } from "./words.js";

/** Fill a list of definitions: each has a name, a value and a word on it. */
export function showFigures(list, state, budget_bytes) {
  const entries = [
    ofMode(state),
    ofRoom(state),
    ofCache(state, budget_bytes),
    ofLatency(state),
    ofLoad(state),
    ofPolicy(state),
  ];
  while (list.childElementCount < entries.length) {
    list.append(element("div", {}, element("dt"), element("dd"), element("dd")));
  }
  entries.forEach(([name, value, more, isWrong = false], place) => {
    const figure = list.children[place];
    [name, value, more].forEach((text, i) => {
      figure.children[i].textContent = text;
    });
    figure.classList.toggle("wrong", isWrong);
  });
}

function ofMode({ mode, mode_age_s, pinned, reason }) {
  const age = duration(Math.round(mode_age_s));
  return ["Mode", mode, `${pinned ? "pinned" : reason.text}, for ${age}`];
}

function ofRoom({ memory }) {
  const room_bytes = memory.free_bytes - memory.floor_bytes;
  const source = memory.source.split(":")[0]; // a file's path says nothing here
  const more = `${bytes(memory.free_bytes)} free, floor ${bytes(memory.floor_bytes)}, by ${source}`;
  return ["Free above the floor", bytes(room_bytes), more, room_bytes < 0];
}

function ofCache({ memory }, budget_bytes) {
  const budget = budget_bytes === null ? "" : `budget ${bytes(budget_bytes)}, `;
  return ["Cache", bytes(memory.cache_bytes), `${budget}weights ${bytes(memory.weights_bytes)}`];
}

function ofLatency({ latency }) {
  const more = `95th percentile ${duration(latency.token_p95_s)}`;
  return ["Per token", duration(latency.token_p50_s), more];
}

function ofLoad({ load }) {
  const more = `${load.waiting} waiting, ${Math.round(load.tokens_per_s)} tokens/s`;
  return ["Load", `${load.running} running`, more];
}

function ofPolicy({ policy }) {
  const faults = policy.faults ? `, ${count(policy.faults, "fault")}` : "";
  return ["Policy", policy.name, `${policy.status}${faults}`, policy.status !== "ok"];
}
