// The server's interface: what is asked, and what went wrong as a sentence for people.

/** `message` is a sentence; `status` 0: there was no answer. `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running?";
const LOST = "The connection to the server was lost before the answer was complete.";
const KEY_NAME = "edgekit-key";

export class Api {
  #key = readKey();

  get hasKey() {
    return this.#key !== "";
  }

  /** Kept for this tab, as long as it is open. */
  setKey(key) {
    this.#key = key.trim();
    try {
      if (this.#key) sessionStorage.setItem(KEY_NAME, this.#key);
      else sessionStorage.removeItem(KEY_NAME);
    } catch {
      // a browser that keeps nothing asks again
    }
  }

  /** The one model that is served. Throws `ApiError`. */
  async model() {
    const response = await this.#fetch("v1/models");
    return (await response.json()).data[0];
  }

  /** Throws `ApiError`. */
  async status() {
    const response = await this.#fetch("v1/status", { signal: AbortSignal.timeout(5000) });
    return response.json();
  }

  /** Chunks of an answer as they come. Throws `ApiError`, and the signal's reason when aborted. */
  async *chat(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    let isWhole = false;
    for await (const data of readEvents(response.body, signal)) {
      if (data === "[DONE]") {
        isWhole = true;
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(sentence(chunk.error.message), { ...chunk.error });
      yield chunk;
    }
    if (!isWhole) throw new ApiError(LOST);
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      if (options.signal?.aborted && options.method) throw error;
      throw new ApiError(UNREACHABLE);
    }
    if (!response.ok) throw await this.#problem(response);
    return response;
  }

  async #problem(response) {
    const { status } = response;
    const told = await response.json().catch(() => ({}));
    const { message = "", code = "" } = told.error ?? {};
    const retryAfter = Number(response.headers.get("Retry-After")) || 0;
    return new ApiError(this.#words(status, code, message, retryAfter), {
      status,
      code,
      retryAfter,
    });
  }

  #words(status, code, message, retryAfter) {
    if (status === 401) {
      return this.#key ? "The server does not know this API key." : "This server needs an API key.";
    }
    const later = retryAfter ? ` Try again in ${retryAfter} s.` : "";
    if (status === 429) return `The server is busy: too many questions are waiting.${later}`;
    if (status === 503 && code === "shutting_down") {
      return "The server is shutting down and takes no new questions.";
    }
    if (status === 503) return `The server is not ready.${later}`;
    return message ? sentence(message) : `The server answered ${status}.`;
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  } catch {
    return "";
  }
}

/** A message of the server's, as the beginning of a text. */
function sentence(message) {
  const text = message.trim();
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?`]$/.test(text) ? "" : "."}`;
}

/** The data of server-sent events. Throws `ApiError` when the connection breaks. */
async function* readEvents(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    throw signal.aborted ? error : new ApiError(LOST);
  } finally {
    reader.cancel().catch(() => {});
  }
}
