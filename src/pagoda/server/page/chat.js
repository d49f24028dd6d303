// The page: conversations on the left, the chosen one on the right, and one answer at a time.

import { ApiError, getJson, key } from "./api.js";
import { openCalls, readAnswer, requestBody } from "./answer.js";
import { Models } from "./models.js";
import { LiveMessage, element, messageElement, scrollDown } from "./render.js";
import * as store from "./store.js";

const SAVE_MS = 1000; // between savings of an answer that is being written
const RETRY_MS = 2000; // until a server that is starting is asked again
const at = (id) => document.getElementById(id);
const models = new Models();
const [log, input, notice, form] = ["log", "input", "notice", "composer"].map(at);

let settings = store.loadSettings();
let conversation = store.allConversations()[0] || store.newConversation();
let running = null; // the AbortController of the answer that is being written

function keep() {
  try {
    store.save(conversation);
  } catch (error) {
    tell(`The browser keeps no more: delete a conversation. (${error.message})`);
  }
}

function tell(text) {
  notice.hidden = !text;
  notice.textContent = text;
}

function button(text, onClick, properties = {}) {
  const made = element("button", { type: "button", textContent: text, ...properties });
  made.addEventListener("click", onClick);
  return made;
}

function showConversation() {
  const { messages } = conversation;
  log.replaceChildren();
  messages.forEach((message, place) => {
    const isLast = place === messages.length - 1 && message.role === "assistant";
    const actions = message.role === "assistant" && message.content ? [copyButton(message)] : [];
    if (isLast) actions.push(button("Regenerate", regenerate));
    log.append(messageElement(message, actions));
  });
  if (!messages.length) log.append(element("p", { className: "empty", textContent: "Ask something." }));
  const [call] = openCalls(messages);
  at("input-label").textContent = call ? `Result of ${call.name}` : "Message";
  input.placeholder = call ? `Result of ${call.name}` : "Message (Enter sends)";
  scrollDown(log);
}

function copyButton(message) {
  return button("Copy", async () => {
    await navigator.clipboard.writeText(message.content);
    at("status").textContent = "Copied.";
  });
}

function showList() {
  const items = store.allConversations().map((one) => {
    const title = store.titleOf(one);
    const choose = button(title, () => open(one), { className: "title" });
    if (one.id === conversation.id) choose.setAttribute("aria-current", "true");
    const remove = button("×", () => forget(one), { className: "delete", title: "Delete" });
    remove.setAttribute("aria-label", `Delete ${title}`);
    return element("li", {}, choose, remove);
  });
  at("list").replaceChildren(...items);
}

function open(one) {
  stop();
  conversation = one;
  tell("");
  showList();
  showConversation();
  toggleList(false);
  input.focus();
}

function forget(one) {
  if (one.id === conversation.id) stop();
  store.remove(one);
  if (one.id === conversation.id) open(store.allConversations()[0] || store.newConversation());
  else showList();
}

function stop() {
  running?.abort();
}

function setRunning(controller) {
  running = controller;
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
  at("status").textContent = controller ? "The model answers." : "The answer is complete.";
}

/** Let the model answer what the conversation holds. */
async function answer() {
  const mine = conversation;
  const message = { role: "assistant", model: models.chosen, content: "", reasoning: "", calls: [], facts: {} };
  const controller = new AbortController();
  let saved = performance.now();
  tell("");
  setRunning(controller);
  showConversation();
  const live = new LiveMessage(log, message);
  const keepPartly = () => {
    if (message.content || message.calls.length) store.save({ ...mine, messages: [...mine.messages, message] });
  };
  addEventListener("pagehide", keepPartly);
  try {
    await readAnswer(message, requestBody(mine.messages, settings, message.model), controller.signal, () => {
      live.show(message);
      if (performance.now() - saved > SAVE_MS) {
        saved = performance.now();
        keepPartly();
      }
    });
  } catch (error) {
    explain(error, message);
  } finally {
    removeEventListener("pagehide", keepPartly);
    live.end();
    if (message.content || message.reasoning || message.calls.length) mine.messages.push(message);
    setRunning(null);
    finish(mine);
  }
}

function explain(error, message) {
  if (error.name === "AbortError") {
    message.facts.reason = "stopped";
    return;
  }
  const code = error instanceof ApiError && error.status !== 200 ? `${error.status}: ` : "";
  tell(error instanceof ApiError ? code + error.message : `The server cannot be reached: ${error.message}`);
  if (error.status === 401) openSettings("key");
}

function finish(mine) {
  if (store.allConversations().some((one) => one.id === mine.id)) {
    try {
      store.save(mine);
    } catch (error) {
      tell(`The browser keeps no more: delete a conversation. (${error.message})`);
    }
  }
  if (mine === conversation) showConversation();
  showList();
}

function regenerate() {
  if (running) return;
  conversation.messages.pop();
  answer();
}

function submit() {
  const text = input.value;
  if (running || !text.trim()) return;
  const [call] = openCalls(conversation.messages);
  const role = call ? { role: "tool", callId: call.id, name: call.name } : { role: "user" };
  conversation.messages.push({ ...role, content: text });
  input.value = "";
  fit();
  keep();
  showList();
  if (openCalls(conversation.messages).length) showConversation();
  else answer();
}

/** The field is as high as what it holds. */
function fit() {
  input.rows = Math.min(10, input.value.split("\n").length);
}

function toggleList(shown) {
  at("conversations").classList.toggle("open", shown);
  at("toggle-list").setAttribute("aria-expanded", String(shown));
}

function openSettings(focused) {
  const fields = at("settings-form").elements;
  for (const field of fields) if (field.name) field.value = field.name === "key" ? key.get() : settings[field.name] || "";
  if (!at("settings").open) at("settings").showModal();
  if (focused) fields[focused].focus();
}

/** → what is wrong with the tools, or "". */
function toolsError(text) {
  try {
    return !text.trim() || Array.isArray(JSON.parse(text)) ? "" : "The tools are no list.";
  } catch (error) {
    return `The tools are no JSON: ${error.message}`;
  }
}

function saveSettings(event) {
  const { key: newKey, ...others } = Object.fromEntries(new FormData(event.target));
  const wrong = toolsError(others.tools);
  at("tools-error").hidden = !wrong;
  at("tools-error").textContent = wrong;
  if (wrong) return event.preventDefault();
  settings = others;
  store.saveSettings(settings);
  key.set(newKey.trim());
  showModels();
  return undefined;
}

async function showModels() {
  try {
    await models.show();
  } catch (error) {
    if (error.status === 503) setTimeout(showModels, RETRY_MS);
    tell(error.message);
    if (error.status === 401) openSettings("key");
    return;
  }
  if (!running) tell("");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", fit);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("settings").open) stop();
});
at("stop").addEventListener("click", stop);
at("new-chat").addEventListener("click", () => open(store.newConversation()));
at("toggle-list").addEventListener("click", () => toggleList(!at("conversations").classList.contains("open")));
at("open-settings").addEventListener("click", () => openSettings());
at("settings-form").addEventListener("submit", saveSettings);

showList();
showConversation();
showModels();
