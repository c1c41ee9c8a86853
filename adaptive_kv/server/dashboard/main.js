// Puts the page together: what comes over the wire goes into figures, charts and lists.

import { drawLatency, drawMemory, drawModes, modesShown, tellMoment } from "./charts.js";
import { Across } from "./draw.js";
import { Costs, Events, element, modeName } from "./lists.js";
import { showFigures } from "./figures.js";
import { Recent, sampleOf } from "./recent.js";
import { Voice } from "./say.js";
import { Locked, Token, Wire } from "./wire.js";
import { bytes, clock, duration } from "./words.js";

const STALLED_S = 15;
const LEAST_SPAN_S = 30;
const HINT = "Point at a chart or move the slider to look at an earlier moment.";
const $ = (id) => document.getElementById(id);

const voice = new Voice($("say"));
const token = new Token();
const recent = new Recent();
const costs = new Costs($("costs"), pin);
const events = new Events($("events"));
const wire = new Wire(token, {
  onState: show,
  onEvent: hear,
  onRecent: recall,
  onLost: lost,
  onLocked: lock,
});
let state = null; // the newest document
let service = { model: null, budget_bytes: null };
let at_s = null; // the moment looked at; null is now
let moved = { age_s: null, time_ms: 0 }; // when the worker was last seen to publish

// What the service says

function recall(answer) {
  service = answer;
  answer.samples.forEach((sample) => recent.add(sample));
}

function hear(event) {
  if (events.isFresh) requestAnimationFrame(() => showEvents());
  events.add(event);
  if (event.type === "mode_changed") wire.hurry();
}

function show(fresh) {
  const before = state;
  state = fresh;
  recent.add(sampleOf(fresh));
  if (moved.age_s !== fresh.mode_age_s) moved = { age_s: fresh.mode_age_s, time_ms: Date.now() };
  $("board").hidden = false;
  $("door").hidden = true;
  showHeader();
  showFigures($("tiles"), fresh, service.budget_bytes);
  costs.show(fresh);
  showPin();
  showEvents();
  draw();
  tellChange(before, fresh);
}

function tellChange(before, fresh) {
  if ($("link").dataset.lost) voice.say("Connected again", true);
  delete $("link").dataset.lost;
  if (!before) return;
  if (before.mode !== fresh.mode) voice.say(`Mode ${fresh.mode}: ${fresh.reason.text}`);
  if (before.health !== fresh.health) voice.say(`Health: ${fresh.health}`);
  if (before.pinned !== fresh.pinned) voice.say($("pin-words").textContent, true);
}

function lost(error) {
  const link = $("link");
  chip(link, "not connected", "wrong");
  link.title = error.message;
  if (!link.dataset.lost) voice.say("The connection to the service is lost", true);
  link.dataset.lost = "yes";
  title("not connected");
}

function showHeader() {
  $("node").textContent = [state.node, service.model].filter(Boolean).join(" · ");
  const stalled_s = (Date.now() - moved.time_ms) / 1000;
  const isStalled = stalled_s > STALLED_S;
  chip(
    $("link"),
    isStalled ? `worker silent for ${duration(stalled_s)}` : "live",
    isStalled ? "wrong" : "",
  );
  $("link").title = "";
  chip(
    $("health"),
    `health ${state.health}`,
    { ok: "", draining: "idle" }[state.health] ?? "wrong",
  );
  title(`${state.health === "ok" ? "" : `${state.health} · `}${state.mode}`);
  $("leave").hidden = token.value === null;
  $("documents").hidden = token.value !== null; // a link carries no token
}

function chip(place, text, style) {
  place.hidden = false;
  place.textContent = text;
  place.className = `chip ${style}`;
}

function title(text) {
  document.title = `${text} · ${state?.node ?? "adaptive-kv"}`;
}

function showEvents(isChanged = false) {
  events.refresh(isChanged);
  $("no-events").hidden = !events.isEmpty;
  $("older").hidden = !events.hasOlder;
}

// Pinning

function showPin() {
  $("pin-words").textContent = !state.pinned
    ? "The policy decides."
    : state.reason.code === "pinned"
      ? `${state.mode} is held by hand.`
      : `${state.reason.text}.`;
  $("unpin").setAttribute("aria-disabled", String(!state.pinned));
}

/** Hold a mode, or none; a new state document shows what came of it. */
async function pin(mode) {
  const options =
    mode === null
      ? { method: "DELETE" }
      : {
          method: "PUT",
          body: JSON.stringify({ mode }),
          headers: { "Content-Type": "application/json" },
        };
  $("pin-wrong").textContent = "";
  try {
    await wire.ask("admin/mode", options);
    wire.hurry();
  } catch (error) {
    if (error instanceof Locked) lock();
    else $("pin-wrong").textContent = `That did not work: ${error.message}.`;
  }
}

// Charts and the moment looked at

function span_s() {
  return Number(document.querySelector("input[name=span]:checked").value);
}

/** A service that has just started fills the whole width. */
function across() {
  const [first_s, last_s] = [recent.samples[0].time_s, recent.last.time_s];
  const from_s = Math.max(last_s - span_s(), Math.min(first_s, last_s - LEAST_SPAN_S));
  return new Across($("memory").clientWidth, from_s, last_s);
}

function draw() {
  if (!recent.last || $("board").hidden) return;
  const area = across();
  if (at_s !== null && at_s < area.from_s) at_s = null;
  const limit_bytes =
    service.budget_bytes === null
      ? null
      : Math.max(0, service.budget_bytes - state.memory.weights_bytes);
  $("budget").hidden = limit_bytes === null;
  if (limit_bytes !== null) {
    $("budget").lastElementChild.textContent = `${bytes(limit_bytes)} that the budget leaves to it`;
  }
  $("under").hidden = !recent.samples.some((s) => s.time_s >= area.from_s && isUnder(s));
  $("memory-words").textContent = drawMemory($("memory"), recent, area, limit_bytes, at_s);
  $("modes-words").textContent = drawModes($("modes"), recent, area, at_s);
  $("latency-words").textContent = drawLatency($("latency"), recent, area, at_s);
  showLegend(modesShown(recent, area.from_s));
  showMoment(area);
}

function isUnder(sample) {
  return sample.free_bytes < sample.floor_bytes;
}

function showLegend(modes) {
  const legend = $("modes-legend");
  if (legend.dataset.modes === modes.join()) return;
  legend.dataset.modes = modes.join();
  legend.replaceChildren(...modes.map((mode) => element("li", {}, modeName(mode))));
}

function showMoment(area) {
  const sample = at_s === null ? recent.last : recent.at(at_s);
  const range = $("when");
  range.max = String(Math.round(area.end_s - area.from_s));
  range.value = at_s === null ? range.max : String(Math.round(at_s - area.from_s));
  const told = `${clock(sample.time_s)}: ${tellMoment(sample)}`;
  range.setAttribute("aria-valuetext", at_s === null ? "Now" : told); // what stands is not said again
  $("then").textContent = at_s === null ? HINT : told;
}

function lookAt(time_s, end_s) {
  at_s = time_s >= end_s - 0.5 ? null : time_s;
  draw();
}

$("when").addEventListener("input", (event) => {
  const area = across();
  lookAt(area.from_s + Number(event.target.value), area.end_s);
});
for (const chart of document.querySelectorAll(".chart")) {
  chart.addEventListener("pointermove", (event) => {
    const area = across();
    lookAt(area.time_s(event.clientX - chart.getBoundingClientRect().left), area.end_s);
  });
  chart.addEventListener("pointerleave", () => {
    at_s = null;
    draw();
  });
}
new ResizeObserver(draw).observe($("memory"));
$("span").addEventListener("change", draw);
$("every").addEventListener("change", (event) => {
  events.showsEvery = event.target.checked;
  showEvents(true);
});
$("older").addEventListener("click", () => {
  events.num_shown *= 2;
  showEvents(true);
});
$("unpin").addEventListener("click", () => {
  if (state?.pinned) pin(null);
});

// The token, and whether anybody looks

function lock() {
  wire.stop();
  const isWrong = token.value !== null;
  token.forget();
  $("door-wrong").textContent = isWrong ? "The service does not take this token." : "";
  $("board").hidden = true;
  $("door").hidden = false;
  $("health").hidden = true;
  $("leave").hidden = true;
  $("documents").hidden = true;
  chip($("link"), "locked", "idle");
  $("token").focus();
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("token").value, $("keep").checked);
  $("token").value = "";
  wire.start();
});
$("leave").addEventListener("click", () => {
  token.forget();
  lock();
});
document.addEventListener("visibilitychange", watch);

function watch() {
  if (document.hidden) wire.stop();
  else if ($("door").hidden) wire.start();
}

// The service answers 401 with this very page where it wants a token: then there is no need to try.
const [visit] = performance.getEntriesByType("navigation");
if (visit?.responseStatus === 401 && token.value === null) lock();
else watch();
