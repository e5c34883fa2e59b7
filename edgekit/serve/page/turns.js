// What is seen of a conversation: questions, and answers while they are made.

import { element } from "./dom.js";
import { Markdown } from "./markdown.js";

const WORD = /\S+/g;
const NEAR_END_PX = 40;

/** A question, with buttons that send the events `edit` and `copy`. */
export function questionView(text) {
  const body = element("div", { class: "text said", dir: "auto" }, text);
  const view = element("article", { class: "turn question" }, element("h2", {}, "You"), body);
  view.append(element("div", { class: "foot" }, button("Edit", "edit"), button("Copy", "copy")));
  return view;
}

/** An answer: `think` and `say` take what comes, and one of `finish` and `fail` ends it. */
export class AnswerView {
  #thought = document.createTextNode("");
  #thoughts = "";
  #words = 0;
  #endsInWord = false;
  #frame = 0;
  #began = performance.now();
  #firstAt = 0;
  #thinkingEnd = 0;
  #clock;

  constructor(who, onShown) {
    this.onShown = onShown;
    this.body = element("div", { class: "text written" });
    this.markdown = new Markdown(this.body, onShown);
    this.summary = element("summary", {}, "Thinking…");
    const thought = element("div", { class: "thought", dir: "auto", tabIndex: 0 }, this.#thought);
    this.thinking = element("details", { class: "thinking", hidden: true }, this.summary, thought);
    this.note = element("span", { class: "note" }, "Waiting for the first token…");
    this.foot = element("div", { class: "foot" }, this.note);
    this.root = element(
      "article",
      { class: "turn answer", "aria-busy": "true" },
      element("h2", {}, who),
      this.thinking,
      this.body,
      this.foot,
    );
    this.#clock = setInterval(() => this.#tick(), 1000);
  }

  get text() {
    return this.markdown.text;
  }

  /** Part of a thought. */
  think(text) {
    this.#first();
    this.thinking.hidden = false;
    this.#thoughts += text;
    this.#words += (text.match(WORD) ?? []).length;
    if (this.#endsInWord && /^\S/.test(text)) this.#words -= 1;
    this.#endsInWord = /\S$/.test(text);
    this.#frame ||= requestAnimationFrame(() => this.#showThoughts());
  }

  /** Part of the answer. */
  say(text) {
    this.#first();
    if (this.#thoughts && !this.#thinkingEnd) {
      this.#thinkingEnd = performance.now();
      this.#summarize(0);
    }
    this.markdown.append(text);
  }

  /** It is complete: `usage` and `timings` as the server counted them, `reason` why it ended. */
  finish({ usage, timings, reason }) {
    this.#end(true);
    const thoughtTokens = usage?.completion_tokens_details?.reasoning_tokens ?? 0;
    this.#summarize(thoughtTokens);
    this.note.textContent = [
      this.text.trim() ? "" : "No answer",
      reason === "length" ? "Cut at the limit of tokens" : "",
      ...stats(usage, timings),
    ]
      .filter(Boolean)
      .join(" · ");
    this.note.title = timings ? details(usage, timings) : "";
    this.foot.prepend(...this.#buttons());
  }

  /** It was stopped by its reader. */
  stop() {
    this.#end(false);
    this.#summarize(0);
    const first = this.#firstAt
      ? ` · first token after ${duration(this.#firstAt - this.#began)}`
      : "";
    this.note.textContent = `Stopped${first}`;
    this.foot.prepend(...this.#buttons());
  }

  /** It will not be complete; the sentence says why. */
  fail(message) {
    this.#end(false);
    this.#summarize(0);
    const problem = element("p", { class: "problem", role: "alert" }, message);
    this.foot.before(problem);
    this.note.textContent = "";
    this.foot.prepend(...this.#buttons());
  }

  #buttons() {
    const copy = this.text ? [button("Copy", "copy")] : [];
    return [...copy, button("Retry", "retry")];
  }

  #first() {
    this.#firstAt ||= performance.now();
  }

  #end(isWhole) {
    clearInterval(this.#clock);
    cancelAnimationFrame(this.#frame);
    this.#showThoughts();
    this.markdown.finish(isWhole);
    this.root.setAttribute("aria-busy", "false");
  }

  #tick() {
    const seconds = Math.round((performance.now() - this.#began) / 1000);
    this.note.textContent = this.#firstAt
      ? `${seconds} s`
      : `Waiting for the first token… ${seconds} s`;
    if (!this.#thinkingEnd) this.#showCount();
  }

  #showThoughts() {
    this.#frame = 0;
    const box = this.#thought.parentElement;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
    this.#thought.appendData(this.#thoughts.slice(this.#thought.length));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    this.#showCount();
    this.onShown();
  }

  #showCount() {
    if (!this.#thoughts || this.#thinkingEnd) return;
    const seconds = Math.round((performance.now() - this.#firstAt) / 1000);
    this.summary.textContent = `Thinking… ${count(this.#words, "word")}, ${seconds} s`;
  }

  #summarize(tokens) {
    if (!this.#thoughts) return;
    const time = duration((this.#thinkingEnd || performance.now()) - this.#firstAt);
    const amount = tokens ? count(tokens, "token") : count(this.#words, "word");
    this.summary.textContent = `Thought for ${time}, ${amount}`;
  }
}

function button(label, action) {
  return element("button", { type: "button", class: "quiet", "data-action": action }, label);
}

function stats(usage, timings) {
  const speed = timings?.decode_tokens_per_s;
  return [
    speed ? `${speed.toFixed(1)} tokens/s` : "",
    timings?.ttft_ms != null ? `first token ${duration(timings.ttft_ms)}` : "",
    usage ? count(usage.completion_tokens, "token") : "",
  ];
}

function details(usage, timings) {
  const prefill = timings.prefill_tokens_per_s;
  const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  return [
    `prompt ${count(usage?.prompt_tokens ?? 0, "token")}, ${cached} of them kept from before`,
    prefill ? `prefill ${prefill.toFixed(0)} tokens/s` : "",
    `waited ${duration(timings.queued_ms)} for a slot`,
  ]
    .filter(Boolean)
    .join("; ");
}

/** Milliseconds for people. */
export function duration(milliseconds) {
  if (milliseconds < 999.5) return `${milliseconds.toFixed(0)} ms`;
  const seconds = milliseconds / 1000;
  return seconds < 99.95 ? `${seconds.toFixed(1)} s` : `${seconds.toFixed(0)} s`;
}

/** A number with its noun. */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
