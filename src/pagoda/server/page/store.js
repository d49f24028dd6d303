// Conversations and settings, kept in the browser: one entry of localStorage each.

const PREFIX = "pagoda.chat.";
const SETTINGS = "pagoda.settings";
const MODEL = "pagoda.model";

/** A conversation that is not stored yet: one without messages is not worth keeping. */
export function newConversation() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`, messages: [] };
}

/** All conversations, the newest first. What cannot be read is left where it is. */
export function allConversations() {
  const found = [];
  for (let place = 0; place < localStorage.length; place++) {
    const name = localStorage.key(place);
    if (!name.startsWith(PREFIX)) continue;
    try {
      const conversation = JSON.parse(localStorage.getItem(name));
      if (Array.isArray(conversation.messages)) found.push(conversation);
    } catch {
      continue;
    }
  }
  return found.sort((a, b) => (a.id < b.id ? 1 : -1));
}

/** Throws where the browser's store is full. */
export function save(conversation) {
  if (conversation.messages.length) localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
}

export function remove(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

/** The beginning of what was asked first. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return first ? first.content.trim().slice(0, 60) || "…" : "New chat";
}

export function loadSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) || {};
  } catch {
    return {};
  }
}

export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

export function loadModel() {
  return localStorage.getItem(MODEL);
}

export function saveModel(name) {
  localStorage.setItem(MODEL, name);
}
