// For who listens instead of looking: whole sentences, every few seconds, never single tokens.

const EVERY_MS = 3000;
const SENTENCE_END = /[.!?…:。！？](?=\s|$)|\n/g;

export class Announcer {
  #region;
  #waiting = "";
  #timer = 0;

  /** `region` is a live region (`aria-live="polite"`). */
  constructor(region) {
    this.#region = region;
  }

  /** Part of an answer: told when its sentence is complete. */
  add(text) {
    this.#waiting += text;
    this.#timer ||= setTimeout(() => this.#tell(false), EVERY_MS);
  }

  /** What is left, and then `text`. */
  end(text) {
    this.#waiting += this.#waiting && text ? `\n${text}` : text;
    clearTimeout(this.#timer);
    this.#tell(true);
  }

  /** Something else happened. */
  say(text) {
    this.#region.textContent = text;
  }

  #tell(isEnd) {
    this.#timer = 0;
    const ends = isEnd ? [] : [...this.#waiting.matchAll(SENTENCE_END)];
    const length = isEnd ? this.#waiting.length : ends.length ? ends.at(-1).index + 1 : 0;
    const text = this.#waiting.slice(0, length).trim();
    this.#waiting = this.#waiting.slice(length);
    if (text) this.#region.textContent = text;
    if (this.#waiting && !isEnd) this.#timer = setTimeout(() => this.#tell(false), EVERY_MS);
  }
}
