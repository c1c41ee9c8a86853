// What is said to screen readers: the newest sentence only, and no more often than one wants to
// listen.

const EVERY_MS = 8000;

/** Speaks through an element that is a live region. */
export class Voice {
  #region;
  #next = "";
  #timer = null;

  constructor(region) {
    this.#region = region;
  }

  /** Say it as soon as there was silence for a while; at once if it answers what somebody did. */
  say(text, isUrgent = false) {
    this.#next = text;
    if (isUrgent) clearTimeout(this.#timer);
    else if (this.#timer !== null) return;
    this.#speak();
  }

  #speak() {
    this.#timer = this.#next ? setTimeout(() => this.#speak(), EVERY_MS) : null;
    if (this.#next) this.#region.textContent = this.#next;
    this.#next = "";
  }
}
