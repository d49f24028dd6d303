// One answer: what is asked of the API, and what becomes of its chunks.

import { streamChat } from "./api.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

/** The body of a request for the answer to `messages`. `model`: null leaves the choice to the server. */
export function requestBody(messages, settings, model) {
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  const body = { messages: [...system, ...messages.map(asSent)] };
  if (model !== null) body.model = model;
  for (const name of NUMBERS) if (settings[name]) body[name] = Number(settings[name]);
  if (settings.tools?.trim()) body.tools = JSON.parse(settings.tools);
  return body;
}

function asSent(message) {
  const sent = { role: message.role, content: message.content };
  if (message.role === "tool") sent.tool_call_id = message.callId;
  if (message.calls?.length) {
    sent.tool_calls = message.calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
  }
  return sent;
}

/** Fills `message` with the answer as it comes; `onNews` after each chunk. Throws what ends it early. */
export async function readAnswer(message, body, signal, onNews) {
  const start = performance.now();
  let first = null;
  let last = start;
  try {
    for await (const chunk of streamChat(body, signal)) {
      const choice = chunk.choices[0];
      if (choice && take(message, choice)) {
        last = performance.now();
        first ??= last;
        onNews();
      }
      if (chunk.usage) message.facts.tokens = chunk.usage.completion_tokens;
    }
  } finally {
    if (first !== null) {
      message.facts.ttft = first - start;
      message.facts.seconds = (last - first) / 1000;
    }
  }
}

/** → whether the chunk's choice said something. */
function take(message, { delta, finish_reason: reason }) {
  if (reason === "length") message.facts.reason = "stopped at the token limit";
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning += delta.reasoning_content;
  for (const piece of delta.tool_calls || []) {
    const call = (message.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    if (piece.id) call.id = piece.id;
    if (piece.function.name) call.name = piece.function.name;
    call.arguments += piece.function.arguments || "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls);
}

/** The calls of the last answer that nobody has answered yet. */
export function openCalls(messages) {
  const place = messages.findLastIndex((message) => message.role === "assistant");
  if (place < 0) return [];
  const answered = new Set(messages.slice(place + 1).map((message) => message.callId));
  return messages.slice(place + 1).some((message) => message.role === "user")
    ? []
    : (messages[place].calls || []).filter((call) => !answered.has(call.id));
}
