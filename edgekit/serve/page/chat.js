// The conversation: what was said, what is being answered, and what can be done about it.

import { ApiError } from "./api.js";
import { AnswerView, questionView } from "./turns.js";

export class Chat extends EventTarget {
  #api;
  #log;
  #announcer;
  #exchanges = []; // {question, who, options, questionView, answerView}
  #running = null;

  /**
   * `log` holds the turns. Events: `change` when an answer begins or ends or the turns are others,
   * `shown` when more of an answer is seen, `usage` with what the server counted, `problem` with an
   * `ApiError`.
   */
  constructor(api, log, announcer) {
    super();
    this.#api = api;
    this.#log = log;
    this.#announcer = announcer;
  }

  get isRunning() {
    return this.#running !== null;
  }

  get isEmpty() {
    return this.#exchanges.length === 0;
  }

  get lastQuestion() {
    return this.#exchanges.at(-1)?.question ?? "";
  }

  /** Ask `who`. `options`: `system`, a text, and `fields` of the request. Not while it answers. */
  ask(question, who, options) {
    if (this.isRunning) return;
    const view = questionView(question);
    this.#log.append(view);
    const exchange = { question, who, options, questionView: view, answerView: null };
    this.#exchanges.push(exchange);
    this.#answer(exchange);
  }

  /** Ask the last question again. */
  retry(options) {
    const exchange = this.#exchanges.at(-1);
    if (this.isRunning || !exchange) return;
    exchange.answerView.root.remove();
    exchange.options = options;
    this.#answer(exchange);
  }

  /** Ask something else in place of the last question. */
  askInstead(question, who, options) {
    if (this.isRunning) return;
    const exchange = this.#exchanges.pop();
    exchange?.questionView.remove();
    exchange?.answerView.root.remove();
    this.ask(question, who, options);
  }

  /** Stop answering. The server hears of it: the connection is closed. */
  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#running = null;
    this.#exchanges = [];
    this.#log.replaceChildren();
    this.#emit("change");
  }

  /** What was written in the turn that `view` shows. */
  textOf(view) {
    for (const one of this.#exchanges) {
      if (one.questionView === view) return one.question;
      if (one.answerView?.root === view) return one.answerView.text;
    }
    return "";
  }

  async #answer(exchange) {
    const controller = new AbortController();
    this.#running = controller;
    const view = new AnswerView(exchange.who, () => this.#emit("shown"));
    exchange.answerView = view;
    this.#log.append(view.root);
    this.#emit("change");
    const body = { ...exchange.options.fields, messages: this.#messages(exchange) };
    try {
      const last = await this.#read(this.#api.chat(body, controller.signal), view);
      view.finish(last);
      this.#emit("usage", last.usage);
      this.#announcer.end("Answer complete.");
    } catch (error) {
      this.#fail(view, error, controller.signal);
    } finally {
      if (this.#running === controller) this.#running = null;
      this.#emit("change");
    }
  }

  /** Show an answer as it comes; gives what the server said of it at the end. */
  async #read(chunks, view) {
    const last = { usage: null, timings: null, reason: null };
    let isThinking = false;
    for await (const chunk of chunks) {
      last.usage = chunk.usage ?? last.usage;
      last.timings = chunk.timings ?? last.timings;
      const choice = chunk.choices[0];
      last.reason = choice?.finish_reason ?? last.reason;
      const { content, reasoning_content: thought } = choice?.delta ?? {};
      if (thought) {
        view.think(thought);
        if (!isThinking) this.#announcer.say("Thinking.");
        isThinking = true;
      }
      if (content) {
        view.say(content);
        this.#announcer.add(content);
      }
    }
    return last;
  }

  #fail(view, error, signal) {
    if (signal.aborted) {
      view.stop();
      this.#announcer.end("Stopped.");
      return;
    }
    this.#announcer.end("");
    if (!(error instanceof ApiError)) {
      view.fail(`This page failed: ${error.message}`);
      throw error;
    }
    view.fail(error.message);
    this.#emit("problem", error);
  }

  /** What the model is told: no thoughts, and no question that got no answer. */
  #messages(exchange) {
    const { system } = exchange.options;
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const past of this.#exchanges) {
      const content = past === exchange ? "" : past.answerView.text;
      if (past !== exchange && !content.trim()) continue;
      messages.push({ role: "user", content: past.question });
      if (past !== exchange) messages.push({ role: "assistant", content });
    }
    return messages;
  }

  #emit(name, detail = null) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
