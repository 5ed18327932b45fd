// The server's API: JSON, and streams of server-sent events by fetch, which EventSource cannot post.

const KEY = "dsv3c.key";
const LONG = "Begin a new conversation, or edit an earlier message: that leaves out what follows it.";

/** What the server or the network says went wrong. status 0: no answer came at all. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, hint = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, hint, retryAfter });
  }
}

let key = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** For this tab alone: a key is not left behind on the disk. */
export function setKey(text) {
  key = text.trim();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // It is still used while the page is open.
  }
}

export const getKey = () => key;

/** Raises ApiError; AbortError where `signal` ends it. */
async function request(path, { body, signal } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    throw asApiError(error);
  }
  if (!response.ok) throw await fault(response);
  return response;
}

function asApiError(error) {
  if (error.name === "AbortError" || error instanceof ApiError) return error;
  if (error instanceof SyntaxError) return new ApiError("The server sent what is no JSON.");
  return new ApiError("The server cannot be reached.", { hint: "See that it is still running, then try again." });
}

async function fault(response) {
  const { status } = response;
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const retryAfter = Number.isFinite(wait) ? wait : null;
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // No JSON: the status has to do.
  }
  return new ApiError(said.message ?? `The server answered ${status} ${response.statusText}`.trim(), {
    status,
    code: said.code ?? said.type ?? null,
    param: said.param ?? null,
    hint: said.hint ?? hintFor(status, said.code, retryAfter),
    retryAfter,
  });
}

function told(error) {
  return new ApiError(error.message ?? "The server reported an error.", { status: 500, ...error });
}

function hintFor(status, code, retryAfter) {
  if (code === "context_length_exceeded") return LONG;
  if (status === 401 || status === 403) return "Enter the API key under Parameters.";
  if (status === 429) return `All places are taken. Try again ${retryAfter ? `in ${retryAfter} s` : "in a moment"}.`;
  if (status === 503) return "Try again in a moment.";
  return null;
}

export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

export async function getText(path, signal) {
  return (await request(path, { signal })).text();
}

export async function post(path, body, signal) {
  return (await request(path, { body, signal })).json();
}

/** The objects of a stream, up to [DONE]. Raises ApiError, also for an error that the stream tells. */
export async function* stream(path, body, signal) {
  const response = await request(path, { body: { ...body, stream: true }, signal });
  const events = new EventReader();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("The stream ended before the answer did.", { hint: "Try again." });
      for (const data of events.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw told(chunk.error);
        yield chunk;
      }
    }
  } catch (error) {
    throw asApiError(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Server-sent events: lines end in LF, CR or both, an empty one ends an event, comments keep the connection open. */
export class EventReader {
  #rest = "";
  #data = [];

  push(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?=[^])/); // a CR at the end may be half of a line's end
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      if (line || !this.#data.length) continue;
      found.push(this.#data.join("\n"));
      this.#data = [];
    }
    return found;
  }
}
