// Messages as elements. Everything that a model or a user says becomes text, never markup.

const NAMES = { user: "You", assistant: "Model", tool: "Tool" };

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A message that is complete. `actions`: buttons for below it. */
export function messageElement(message, actions = []) {
  const article = element("article", { className: message.role });
  article.append(element("h2", { textContent: nameOf(message) }));
  if (message.reasoning) article.append(folded("Reasoning", message.reasoning));
  if (message.content) article.append(textElement(message.content));
  for (const call of message.calls || []) article.append(folded(`Calls ${call.name}`, pretty(call.arguments)));
  if (message.error) article.append(element("p", { className: "error", textContent: message.error }));
  const facts = factsOf(message);
  if (facts || actions.length) article.append(element("footer", {}, element("span", { textContent: facts }), ...actions));
  return article;
}

/** Who speaks. */
function nameOf(message) {
  if (message.role === "tool") return `Result of ${message.name || "a tool"}`;
  return message.model || NAMES[message.role];
}

/** Text with its fenced code in blocks. */
function textElement(text) {
  const box = element("div", { className: "text" });
  text.split(/^```/m).forEach((part, place) => {
    if (place % 2 === 0) {
      if (part) box.append(part.replace(/^\n/, ""));
      return;
    }
    const [, language, code] = /^([^\n]*)\n?([\s\S]*)$/.exec(part);
    const block = element("pre", { tabIndex: 0 }, element("code", { textContent: code }));
    block.setAttribute("aria-label", `Code ${language}`);
    box.append(block);
  });
  return box;
}

function folded(title, text) {
  return element("details", {}, element("summary", { textContent: title }), element("pre", { textContent: text }));
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

/** "TTFT 85 ms · 41.3 tokens/s · 120 tokens" */
function factsOf(message) {
  const { ttft, tokens, seconds, reason } = message.facts || {};
  const parts = [];
  if (ttft != null) parts.push(`TTFT ${ttft < 10000 ? `${Math.round(ttft)} ms` : `${(ttft / 1000).toFixed(1)} s`}`);
  if (tokens > 1 && seconds > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  if (tokens != null) parts.push(`${tokens} tokens`);
  if (reason) parts.push(reason);
  return parts.join(" · ");
}

/** The answer `message` while it is written: `show` takes what has come, and the screen follows once a frame. */
export class LiveMessage {
  constructor(log, message) {
    this.log = log;
    this.text = document.createTextNode("");
    this.thought = document.createTextNode("");
    this.thoughts = element("details", { hidden: true }, element("summary", { textContent: "Reasoning…" }));
    this.thoughts.append(element("pre", {}, this.thought));
    this.calls = element("p", { hidden: true });
    this.article = element("article", { className: "assistant" }, element("h2", { textContent: nameOf(message) }));
    this.article.append(this.thoughts, element("div", { className: "text" }, this.text), this.calls);
    this.article.setAttribute("aria-busy", "true");
    log.append(this.article);
    this.message = message;
    this.frame = 0;
    scrollDown(log);
  }

  show(message) {
    this.message = message;
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  /** Only what is new is added: the cost of a frame does not grow with the answer. */
  paint() {
    this.frame = 0;
    const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    const { content, reasoning, calls } = this.message;
    if (content.length > this.text.length) this.text.appendData(content.slice(this.text.length));
    if (reasoning.length > this.thought.length) this.thought.appendData(reasoning.slice(this.thought.length));
    this.thoughts.hidden = !reasoning;
    this.calls.hidden = !calls.length;
    this.calls.textContent = calls.length ? `Calls ${calls.map((call) => call.name).join(", ")}…` : "";
    if (follows) scrollDown(this.log);
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.article.remove();
  }
}

export function scrollDown(log) {
  log.scrollTop = log.scrollHeight;
}
