// The page: what its buttons and keys do.

import { Announcer } from "./announcer.js";
import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { copyText } from "./clipboard.js";
import { Panel } from "./panel.js";
import { ThinkingControls } from "./thinking.js";

const NEAR_END_PX = 60;
const COPIED_MS = 1500;
const RECONNECT_MS = 4000;
const byId = (id) => document.getElementById(id);

const [log, scroller, form, question] = ["turns", "log", "composer", "question"].map(byId);
const announcer = new Announcer(byId("spoken"));
const api = new Api();
const chat = new Chat(api, log, announcer);
const panel = new Panel(api, connect);
const thinking = new ThinkingControls();
let model = null;
let isEditing = false;
let isAtEnd = true;
let wantsRetry = false;

// --- the model ---------------------------------------------------------------------------------

async function connect() {
  let found;
  try {
    found = await api.model();
  } catch (error) {
    onProblem(error);
    if (error.status !== 401) setTimeout(connect, RECONNECT_MS);
    return false;
  }
  byId("banner").hidden = true;
  byId("key").hidden = !api.hasKey;
  if (JSON.stringify(found) === JSON.stringify(model)) return true;
  model = found;
  panel.showModel(model);
  thinking.show(model.reasoning);
  showContext(null);
  return true;
}

function onProblem(error) {
  if (error.status === 401) {
    byId("key").hidden = false;
    byId("key-problem").textContent = api.hasKey ? error.message : "";
    openPanel(true);
    byId("key-field").focus();
  } else if (!model) {
    byId("banner").textContent = error.message;
    byId("banner").hidden = false;
  }
}

byId("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.setKey(byId("key-field").value);
  if (!(await connect())) return;
  byId("key-problem").textContent = "";
  byId("key-field").value = "";
  openPanel(false);
  panel.start();
  if (wantsRetry) retry();
  question.focus();
});

// --- asking ------------------------------------------------------------------------------------

function options() {
  return { system: byId("system").value.trim(), fields: thinking.fields() };
}

function send() {
  const text = question.value.trim();
  if (!text || chat.isRunning) return;
  const who = model?.id.slice(model.id.lastIndexOf("/") + 1) ?? "Answer";
  isAtEnd = true;
  if (isEditing) chat.askInstead(text, who, options());
  else chat.ask(text, who, options());
  setEditing(false);
  question.value = "";
  fit();
}

function retry() {
  isAtEnd = true;
  chat.retry(options());
  question.focus(); // the button is gone
}

function setEditing(value) {
  isEditing = value;
  byId("editing").hidden = !value;
  log.classList.toggle("editing", value);
}

function edit() {
  if (chat.isRunning || chat.isEmpty) return;
  setEditing(true);
  question.value = chat.lastQuestion;
  fit();
  question.focus();
}

function stopEditing() {
  setEditing(false);
  question.value = "";
  fit();
  question.focus();
}

/** As high as what is written in it. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !question.value) {
    event.preventDefault();
    edit();
  }
});
byId("stop").addEventListener("click", () => chat.stop());
byId("cancel-edit").addEventListener("click", stopEditing);
byId("new-chat").addEventListener("click", () => {
  chat.clear();
  stopEditing();
  showContext(null);
  announcer.say("New chat.");
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (chat.isRunning) chat.stop();
  else if (isPanelOpen()) openPanel(false);
  else if (isEditing) stopEditing();
});

// --- turns -------------------------------------------------------------------------------------

log.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { action } = button.dataset;
  if (action === "retry") retry();
  else if (action === "edit") edit();
  else if (action === "copy") copy(button, chat.textOf(button.closest(".turn")));
  else if (button.className === "copy-code") {
    copy(button, button.closest(".code").querySelector("code").textContent);
  }
});

async function copy(button, text) {
  const isDone = await copyText(text);
  button.textContent = isDone ? "Copied" : "Not copied";
  announcer.say(button.textContent);
  setTimeout(() => {
    button.textContent = "Copy";
  }, COPIED_MS);
}

chat.addEventListener("change", () => {
  const isRunning = chat.isRunning;
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("stop").hidden = !isRunning;
  byId("send").hidden = isRunning;
  if (hadFocus) question.focus();
  byId("welcome").hidden = !chat.isEmpty;
  panel.isBusy = isRunning;
  const views = [...log.children];
  for (const [number, view] of views.entries()) {
    view.classList.toggle("last", number >= views.length - 2 && !isRunning);
  }
  if (isRunning) wantsRetry = false;
  follow();
});
chat.addEventListener("shown", follow);
chat.addEventListener("usage", (event) => showContext(event.detail));
chat.addEventListener("problem", (event) => {
  onProblem(event.detail);
  wantsRetry = event.detail.status === 401;
});

function showContext(usage) {
  const used = usage?.total_tokens ?? 0;
  const whole = model?.context_length ?? 0;
  const numbers = [used, whole].map((value) => value.toLocaleString("en"));
  byId("context").textContent = whole ? `${numbers[0]} of ${numbers[1]} tokens` : "";
}

// --- what is in view ---------------------------------------------------------------------------

function follow() {
  if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
  byId("latest").hidden = isAtEnd;
}

scroller.addEventListener("scroll", () => {
  isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END_PX;
  byId("latest").hidden = isAtEnd;
});
byId("latest").addEventListener("click", () => {
  isAtEnd = true;
  follow();
  question.focus();
});

const isNarrow = matchMedia("(max-width: 1023px)");

function isPanelOpen() {
  return document.body.classList.contains("panel-open");
}

/** Where there is no room beside the chat the panel lies over it. */
function openPanel(isOpen) {
  document.body.classList.toggle("panel-open", isOpen);
  byId("open-panel").setAttribute("aria-expanded", String(isOpen));
  byId("main").inert = isOpen && isNarrow.matches;
  if (!isOpen && byId("panel").contains(document.activeElement)) byId("open-panel").focus();
}

byId("open-panel").addEventListener("click", () => {
  openPanel(!isPanelOpen());
  if (isPanelOpen()) byId("close-panel").focus();
});
byId("close-panel").addEventListener("click", () => openPanel(false));
isNarrow.addEventListener("change", () => openPanel(false));

panel.start();
connect();
