// Talks to the server. Paths are relative, so that the page also works behind a proxy's prefix.

/** What the API refused or broke off with, in its own words. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** sessionStorage: a key is forgotten with the tab. */
export const key = {
  get: () => sessionStorage.getItem("pagoda.key") || "",
  set: (value) => (value ? sessionStorage.setItem("pagoda.key", value) : sessionStorage.removeItem("pagoda.key")),
};

function headers() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

async function refusal(response) {
  const text = await response.text();
  let message = text || response.statusText;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // not the API's form: a proxy's page, say
  }
  return new ApiError(message, response.status);
}

/** The JSON at `path`. */
export async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** The chunks of an answer as they come. Throws ApiError; AbortError once `signal` says so. */
export async function* streamChat(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw await refusal(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 200);
    yield chunk;
  }
  throw new ApiError("the connection ended in the middle of the answer", 200);
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
