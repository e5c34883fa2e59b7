// What the server is and does: its model, memory, slots and queue, asked for every few seconds.

import { element } from "./dom.js";

const SOON_MS = 200;
const BUSY_MS = 1000;
const IDLE_MS = 4000;
const MAX_DOTS = 16;
const PARTS = [
  ["weights", "Weights", "weights_bytes"],
  ["cache", "KV cache", "kv_cache_bytes"],
  ["work", "Workspace", "workspace_bytes"],
  ["runtime", "Runtime", "runtime_bytes"],
];

export class Panel {
  #api;
  #timer = 0;
  #isBusy = false;
  #isLost = false;
  #onBack;

  /** `onBack` is called when the server answers again after it did not. */
  constructor(api, onBack) {
    this.#api = api;
    this.#onBack = onBack;
    document.addEventListener("visibilitychange", () => this.#plan(0));
  }

  /** Begin to ask how the server is. */
  start() {
    this.#plan(0);
  }

  /** While it answers it is asked more often. */
  set isBusy(value) {
    this.#isBusy = value;
    this.#plan(SOON_MS);
  }

  showModel(model) {
    byId("model").textContent = shortName(model.id);
    byId("model").title = model.id;
    document.title = `${shortName(model.id)} · edgekit`;
    byId("facts-section").hidden = false;
    byId("facts").replaceChildren(
      ...row("Model", model.id),
      ...row("Precision", `${model.precision}, ${model.kv_precision} KV cache`),
      ...row("Runs on", `${model.backend}, ${model.profile}`),
      ...row("Context", `${number(model.context_length)} tokens a slot`),
    );
  }

  #plan(milliseconds) {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    this.#timer = setTimeout(() => this.#ask(), milliseconds);
  }

  async #ask() {
    try {
      this.#show(await this.#api.status());
      if (this.#isLost) this.#onBack();
      this.#isLost = false;
    } catch (error) {
      const needsKey = error.status === 401;
      this.#setState(needsKey ? "needs a key" : "not reachable", "bad");
      if (needsKey) return; // `start` follows when there is one
      this.#isLost = true;
    }
    this.#plan(this.#isBusy ? BUSY_MS : IDLE_MS);
  }

  #show(status) {
    const { slots, queue, memory } = status;
    byId("memory-section").hidden = byId("work-section").hidden = false;
    const isRunning = status.state === "running";
    const waiting = queue.waiting ? `, ${queue.waiting} waiting` : "";
    const words = isRunning ? `${slots.busy} of ${slots.total} busy${waiting}` : status.state;
    this.#setState(words, isRunning ? (queue.waiting ? "full" : "good") : "bad");
    byId("dots").replaceChildren(...dots(slots));
    byId("slots").textContent = `${slots.busy} of ${slots.total} busy`;
    byId("queue").textContent = `${queue.waiting} waiting, at most ${queue.limit}`;
    byId("speed").textContent = `${status.tokens_per_s.toFixed(1)} tokens/s over 10 s`;
    showMemory(memory);
  }

  #setState(words, kind) {
    const state = byId("state");
    state.dataset.kind = kind;
    if (state.textContent !== words) state.textContent = words;
  }
}

function showMemory(memory) {
  const parts = PARTS.map(([kind, name, key]) => ({ kind, name, bytes: memory[key] ?? 0 }));
  const planned = parts.reduce((sum, part) => sum + part.bytes, 0);
  const whole = Math.max(memory.budget_bytes ?? 0, planned);
  const meter = byId("memory");
  const share = (bytes) => `${((100 * bytes) / whole).toFixed(2)}%`;
  for (const { kind, bytes } of parts) {
    meter.querySelector(`[data-part=${kind}]`).style.width = share(bytes);
  }
  meter.setAttribute("aria-valuenow", ((100 * planned) / whole).toFixed(1));
  meter.setAttribute("aria-valuetext", `${size(planned)} of ${size(whole)} planned`);
  byId("planned").textContent = `${size(planned)} of ${size(whole)}`;
  byId("parts").replaceChildren(
    ...parts.map(({ kind, name, bytes }) =>
      element(
        "li",
        {},
        element("span", { class: "key", "data-part": kind }),
        `${name} ${size(bytes)}`,
      ),
    ),
  );
  const [used, free] = [size(memory.rss_bytes), size(memory.available_bytes)];
  const gpus = memory.gpus.filter((gpu) => gpu.total_bytes && gpu.free_bytes !== null);
  byId("used").replaceChildren(
    element("li", {}, `RAM of this server ${used}, free ${free}`),
    ...gpus.map((gpu) => {
      const taken = size(gpu.total_bytes - gpu.free_bytes);
      return element("li", {}, `${gpu.name}: ${taken} in use of ${size(gpu.total_bytes)}`);
    }),
  );
}

function dots({ total, busy }) {
  if (total > MAX_DOTS) return [];
  return Array.from({ length: total }, (_, i) => element("i", { class: i < busy ? "busy" : "" }));
}

function row(name, value) {
  return [element("dt", {}, name), element("dd", {}, value)];
}

function shortName(id) {
  return id.slice(id.lastIndexOf("/") + 1);
}

function number(value) {
  return value.toLocaleString("en");
}

/** Bytes for people, in the units of `edgekit plan`. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [bytes, 0];
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${value.toFixed(unit && value < 100 ? (unit > 2 ? 2 : 1) : 0)} ${units[unit]}`;
}

function byId(id) {
  return document.getElementById(id);
}
