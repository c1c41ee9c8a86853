// The table of modes with its buttons, and the list of events.

import { shape } from "./draw.js";
import { byKept, bytes, clock, count, duration, kind } from "./words.js";

const MAX_KEPT = 400;
const OF_ONE = new Set(["sequence_switched", "sequence_parked", "sequence_resumed", "healed"]);
const WRONG = new Set(["oom", "policy_fault", "sensor_fault", "request_rejected"]);

/** An element with text or children in it. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A mode's name behind a patch that is filled as the charts fill it. */
export function modeName(mode) {
  const patch = shape("svg", { class: "swatch", "aria-hidden": "true" });
  patch.append(shape("rect", { class: `mode ${kind(mode)}`, width: 14, height: 14 }));
  const [first, ...rest] = mode.split("+"); // a narrow column may break it there
  const text = rest.length ? [first, element("wbr"), `+${rest}`] : [first];
  return element("span", { class: "name" }, patch, element("span", {}, ...text));
}

/** Rows stay what they are while figures change, so that a focused button stays focused. */
export class Costs {
  #body;
  #onPin;
  #rows = new Map();

  constructor(body, onPin) {
    this.#body = body;
    this.#onPin = onPin;
  }

  show(state) {
    const modes = Object.keys(state.costs).sort(byKept);
    if (modes.join() !== [...this.#rows.keys()].join()) this.#build(modes);
    for (const mode of modes) this.#fill(this.#rows.get(mode), mode, state);
  }

  #build(modes) {
    this.#rows = new Map(modes.map((mode) => [mode, this.#rows.get(mode) ?? this.#row(mode)]));
    this.#body.replaceChildren(...[...this.#rows.values()].map((each) => each.row));
  }

  #row(mode) {
    const cells = {
      bytes: element("td", { class: "number" }),
      token: element("td", { class: "number" }),
      exact: element("td"),
    };
    const button = element("button", { type: "button", "aria-label": `Pin ${mode}` }, "Pin");
    button.addEventListener("click", () => this.#onPin(mode));
    const name = element("th", { scope: "row" }, modeName(mode));
    const last = element("td", {}, button);
    const row = element("tr", {}, name, cells.bytes, cells.token, cells.exact, last);
    return { ...cells, button, row };
  }

  #fill(cells, mode, state) {
    const cost = state.costs[mode];
    const isPinned = state.pinned && state.mode === mode;
    cells.bytes.textContent = bytes(cost.bytes);
    cells.token.textContent = duration(cost.token_s);
    cells.exact.textContent = cost.exact ? "yes" : "no";
    cells.button.setAttribute("aria-pressed", String(isPinned));
    if (state.mode === mode) cells.row.setAttribute("aria-current", "true");
    else cells.row.removeAttribute("aria-current");
  }
}

/** The newest events, newest first; `num_shown` and `showsEvery` say which of them. */
export class Events {
  num_shown = 8;
  showsEvery = false;
  #kept = [];
  #list;
  #isDue = false;

  constructor(list) {
    this.#list = list;
  }

  get #chosen() {
    return this.#kept.filter((each) => this.showsEvery || !OF_ONE.has(each.type));
  }

  /** Whether some are kept that are not shown. */
  get hasOlder() {
    return this.#chosen.length > this.num_shown;
  }

  /** Whether all that came is shown. */
  get isFresh() {
    return !this.#isDue;
  }

  get isEmpty() {
    return this.#list.childElementCount === 0;
  }

  add(event) {
    this.#kept.push(event);
    if (this.#kept.length > 2 * MAX_KEPT) this.#kept.splice(0, MAX_KEPT);
    this.#isDue = true;
  }

  /** Show what came since the last time. */
  refresh(isChanged = false) {
    if (!this.#isDue && !isChanged) return;
    this.#isDue = false;
    this.#list.replaceChildren(...this.#chosen.slice(-this.num_shown).toReversed().map(line));
  }
}

function line(event) {
  const [what, more] = told(event);
  const time = element("time", { datetime: event.time }, clock(Date.parse(event.time) / 1000));
  const made = element("li", WRONG.has(event.type) ? { class: "wrong" } : {});
  made.append(time, element("b", {}, what));
  if (more) made.append(element("small", {}, more));
  return made;
}

/** What happened in a few words, and why or what came of it. */
function told(event) {
  const id = event.sequence?.slice(-8);
  switch (event.type) {
    case "mode_changed":
      return [
        `${event.from} → ${event.to}`,
        `${event.reason}; ${count(event.sequences, "sequence")} ` +
          `in ${duration(event.duration_s)}, ${freed(event.freed_bytes)}`,
      ];
    case "sequence_switched":
      return [
        `…${id}: ${event.from} → ${event.to}`,
        `${event.reason}; ${freed(event.freed_bytes)}`,
      ];
    case "oom_averted":
      return [
        "Out of memory averted",
        `needed ${bytes(event.needed_bytes)}, ` + `${freed(event.freed_bytes)} in ${event.to}`,
      ];
    case "oom":
      return ["Out of memory", `…${id} needed ${bytes(event.needed_bytes)} and was refused`];
    case "policy_fault":
      return ["Policy fault", `${event.policy}: ${event.error}`];
    case "sensor_fault":
      return ["Sensor fault", `${event.source}: ${event.error}`];
    case "sensor_recovered":
      return ["Sensor recovered", event.source];
    case "request_rejected":
      return ["Request rejected", event.code];
    case "sequence_parked":
      return ["Sequence parked", `…${id}: ${event.reason}; ${freed(event.freed_bytes)}`];
    case "sequence_resumed":
      return ["Sequence resumed", `…${id}, after ${duration(event.parked_s)}`];
    case "healed":
      return [
        "Healed",
        `…${id}: ${count(event.num_tokens, "token")} in ${duration(event.duration_s)}`,
      ];
    case "drain":
      return ["Draining", `${count(event.running, "sequence")} left`];
    default:
      return [event.type.replaceAll("_", " "), event.reason ?? ""];
  }
}

function freed(number) {
  return number < 0 ? `took ${bytes(-number)}` : `freed ${bytes(number)}`;
}
