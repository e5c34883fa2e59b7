// How the model is told to think: drawn from what `/v1/models` says that it can do.

import { element } from "./dom.js";

const NO_CAP = -1;

export class ThinkingControls {
  #reasoning = null;
  #root = document.getElementById("thinking");
  #switch = document.getElementById("think");
  #budget = document.getElementById("budget");

  constructor() {
    this.#switch.addEventListener("change", () => this.#update());
  }

  /** `reasoning` of the model; null: it does not think. */
  show(reasoning) {
    this.#reasoning = reasoning;
    this.#root.hidden = !reasoning;
    if (!reasoning) return;
    this.#switch.checked = reasoning.default === "on";
    this.#switch.closest("label").hidden = reasoning.allowed_options.length < 2;
    this.#budget.replaceChildren(...budgets(reasoning.effort_budgets ?? {}));
    this.#budget.value = String(NO_CAP);
    this.#update();
  }

  /** Fields of a request. */
  fields() {
    if (!this.#reasoning) return {};
    const isOn = this.#switch.checked;
    const fields = {};
    if (this.#reasoning.allowed_options.length > 1) {
      fields.chat_template_kwargs = { enable_thinking: isOn };
    }
    const budget = Number(this.#budget.value);
    if (isOn && budget !== NO_CAP) fields.thinking_budget = budget;
    return fields;
  }

  #update() {
    this.#budget.closest("label").hidden = !this.#switch.checked;
  }
}

/** One option for each number of tokens that an effort stands for. */
function budgets(efforts) {
  const limits = [...new Set(Object.values(efforts))].filter((tokens) => tokens > 0);
  const options = limits.map((tokens) =>
    element("option", { value: String(tokens) }, `${tokens.toLocaleString("en")} tokens`),
  );
  return [...options, element("option", { value: String(NO_CAP) }, "no limit")];
}
