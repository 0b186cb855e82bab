// What the page asks of the server.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Return the JSON of a GET route. Raises ServerError.
export async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  const text = await response.text();
  if (!response.ok) throw errorOf(response, text);
  return text ? JSON.parse(text) : null;
}

// Post a streaming request, and yield the JSON of each event. Raises ServerError.
export async function* stream(path, body, key, signal) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }).catch(lost);
  if (!response.ok) throw errorOf(response, await response.text());
  let buffered = "";
  for await (const text of textOf(response.body)) {
    const events = (buffered + text).split("\n\n");
    buffered = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n").trim();
      if (!data || data === "[DONE]") continue;
      const json = JSON.parse(data);
      if (json.error) throw new ServerError(500, json.error.message ?? json.error);
      yield json;
    }
  }
}

async function* textOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(lost);
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function lost(error) {
  throw error.name === "AbortError" ? error : new ServerError(0, "The connection to the server is lost.");
}

function errorOf(response, text) {
  let message = text;
  try {
    const { error } = JSON.parse(text);
    message = error?.message ?? error ?? text;
  } catch { /* the body is plain text */ }
  return new ServerError(response.status, message || `${response.status} ${response.statusText}`);
}

// Return the samples of `/metrics`: a map from "name" or "name{labels}" to a number.
export async function metrics() {
  const response = await fetch("metrics?names=tgi");
  const text = await response.text();
  if (!response.ok) throw errorOf(response, text);
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const space = line.lastIndexOf(" ");
    samples.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return samples;
}
