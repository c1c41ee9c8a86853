// What goes between the page and its service: events as they happen, and state documents once a
// second or as soon as one is known to be new.
//
// `/events` is read with fetch, not with EventSource, which cannot send the token. It is opened only
// after a state document was read, so that the boot is known that its numbers belong to.

const PERIOD_MS = 1000;
const TIMEOUT_MS = 8000;
const SILENCE_MS = 45000; // the service says something on /events every 15 s
const MAX_PAUSE_MS = 15000;
const KEY = "adaptive-kv.token";

/** The service does not take the token, or wants one. */
export class Locked extends Error {}

/** The token, kept by the browser for this tab or for this device; it may keep nothing at all. */
export class Token {
  #value = null;

  constructor() {
    try {
      this.#value = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
    } catch {
      /* storage is switched off */
    }
  }

  get value() {
    return this.#value;
  }

  set(value, isKept) {
    this.forget();
    this.#value = value;
    try {
      (isKept ? localStorage : sessionStorage).setItem(KEY, value);
    } catch {
      /* it lasts as long as the page */
    }
  }

  forget() {
    this.#value = null;
    try {
      sessionStorage.removeItem(KEY);
      localStorage.removeItem(KEY);
    } catch {
      /* nothing was kept */
    }
  }
}

/** Calls `onState`, `onEvent`, `onRecent`, `onLost(error)` and `onLocked` from `start` to `stop`. */
export class Wire {
  #token;
  #on;
  #stop = null;
  #boot = null;
  #seq = 0;
  #following = null; // ends the stream of events, while there is one
  #hurry = () => {}; // ends the pause between two state documents

  constructor(token, on) {
    this.#token = token;
    this.#on = on;
  }

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
  }

  /** Read the state now: it is known to have changed. */
  hurry() {
    this.#hurry();
  }

  /** A response that went well. Throws `Locked`, or an Error with what the service said. */
  async ask(path, options = {}, signals = [AbortSignal.timeout(TIMEOUT_MS)]) {
    const headers = { ...options.headers };
    if (this.#token.value !== null) headers.Authorization = `Bearer ${latin(this.#token.value)}`;
    const signal = AbortSignal.any(signals);
    const response = await fetch(path, { cache: "no-store", ...options, headers, signal });
    if (response.status === 401) throw new Locked("the token is needed");
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the service answered ${response.status}`);
  }

  async #run(signal) {
    let failures = 0;
    let isFresh = false; // whether the last minutes are without a hole
    while (!signal.aborted) {
      try {
        if (!isFresh) this.#on.onRecent(await this.#read("history", signal));
        this.#take(await this.#read("status", signal), signal);
        [isFresh, failures] = [true, 0];
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Locked) {
          this.stop();
          this.#on.onLocked();
          return;
        }
        [isFresh, failures] = [false, failures + 1];
        this.#on.onLost(error);
      }
      await this.#pause(failures ? backoff(failures) : PERIOD_MS, signal);
    }
  }

  #pause(duration_ms, signal) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, duration_ms);
      signal.addEventListener("abort", end);
      this.#hurry = end;
    });
  }

  async #read(path, signal) {
    const response = await this.ask(path, {}, [signal, AbortSignal.timeout(TIMEOUT_MS)]);
    return response.json();
  }

  #take(state, signal) {
    if (state.boot_id !== this.#boot) {
      this.#following?.abort();
      [this.#boot, this.#seq] = [state.boot_id, 0];
    }
    this.#on.onState(state);
    if (!this.#following) this.#follow(signal);
  }

  /** Events until the stream ends, however it ends; the next state document starts it again. */
  async #follow(signal) {
    this.#following = new AbortController();
    const ending = this.#following;
    let timer = null;
    try {
      const path = `events?since=${this.#seq}`;
      const response = await this.ask(path, {}, [signal, ending.signal]);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        timer = setTimeout(() => ending.abort(), SILENCE_MS);
        const { value, done } = await reader.read();
        clearTimeout(timer);
        if (done) break;
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        frames.forEach((frame) => this.#hear(frame));
      }
    } catch {
      /* the next state document tells whether the service is there */
    } finally {
      clearTimeout(timer);
      this.#following = null;
    }
  }

  #hear(frame) {
    const line = frame.split("\n").find((each) => each.startsWith("data: "));
    if (!line) return;
    const event = JSON.parse(line.slice("data: ".length));
    if (event.boot_id !== this.#boot || event.seq <= this.#seq) return;
    this.#seq = event.seq;
    this.#on.onEvent(event);
  }
}

/** A header holds bytes; the service compares the token's UTF-8. */
function latin(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function backoff(failures) {
  return Math.min(MAX_PAUSE_MS, PERIOD_MS * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}
