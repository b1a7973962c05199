// Requests to the service, and error messages for people.

const ATTEMPTS = 4;
// Milliseconds. A large photo takes long over a slow line, but a broken line must not keep the page waiting for ever.
const TIMEOUT = 120_000;
// Errors that may be temporary, of the service or of a proxy in front of it.
const RETRYABLE = [429, 500, 502, 503, 504];

let token = storedToken();

export class Failure extends Error {
  constructor(message, { status = 0, retryable = false, wait = 1 } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
    this.wait = wait; // seconds before a retry
  }
}

export const hasToken = () => token !== "";

// Stored for this tab: phones discard a page while their camera is open, and load it again.
export function useToken(given) {
  token = given;
  try {
    sessionStorage.setItem("token", given);
  } catch { /* without storage, the page asks for the token again */ }
}

function storedToken() {
  try {
    return sessionStorage.getItem("token") ?? "";
  } catch {
    return "";
  }
}

// Returns the body of the response, read as `kind`: "json" or "blob".
export async function request(path, kind = "json", options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(TIMEOUT) });
    if (response.ok) return await response[kind]();
    throw await failureOf(response);
  } catch (error) {
    if (error instanceof Failure) throw error;
    const timedOut = error.name === "TimeoutError";
    throw new Failure(
      timedOut ? "No response within two minutes." : "The service cannot be reached. Is it running, and are you online?",
      { retryable: true },
    );
  }
}

async function failureOf(response) {
  const status = response.status;
  const message = (await response.json().catch(() => null))?.error?.message;
  const retryable = RETRYABLE.includes(status);
  const wait = Number(response.headers.get("Retry-After")) || 1;
  const fallback = retryable ? "The service is temporarily unavailable." : `The service responded with status ${status}.`;
  return new Failure(message ?? fallback, { status, retryable, wait });
}

// Classifies one image. `busy(seconds)` is called before a retry if the service is overloaded.
export async function predict(file, busy) {
  const body = new FormData();
  body.append("image", new Blob([await bytesOf(file)], { type: file.type }), file.name);
  for (let attempt = 1; ; attempt += 1) {
    const start = performance.now();
    try {
      const answer = await request("predict", "json", { method: "POST", body });
      return { ...answer, milliseconds: performance.now() - start };
    } catch (failure) {
      if (![429, 503].includes(failure.status) || attempt === ATTEMPTS) throw failure;
      busy(failure.wait * attempt);
      await new Promise((resolve) => setTimeout(resolve, 1000 * failure.wait * attempt));
    }
  }
}

// Read here: a fetch that cannot read a file fails as if the service could not be reached.
async function bytesOf(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Failure("This file cannot be read. If it is a folder, choose the images in it.");
  }
}
