// Asking the service, and saying for people what went wrong.

const TRIES = 4;
// A large photo over a slow line takes long; but a line that broke must not keep somebody waiting for ever.
const PATIENCE = 120_000;
// What a proxy in front of the service says while the service is away or busy, and what the service says itself.
const PASSING = [429, 500, 502, 503, 504];

let token = remembered();

export class Failure extends Error {
  constructor(message, { status = 0, passing = false, wait = 1 } = {}) {
    super(message);
    this.status = status;
    this.passing = passing; // whether it may go well another time
    this.wait = wait; // seconds
  }
}

export const hasToken = () => token !== "";

// For this tab only: phones drop a page from memory while their camera is open, and load it anew.
export function useToken(given) {
  token = given;
  try {
    sessionStorage.setItem("token", given);
  } catch { /* the browser keeps nothing: the token is asked for again */ }
}

function remembered() {
  try {
    return sessionStorage.getItem("token") ?? "";
  } catch {
    return "";
  }
}

// Returns the answer's body, read as `kind`: "json" or "blob".
export async function ask(path, kind = "json", options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE) });
    if (response.ok) return await response[kind]();
    throw await failureOf(response);
  } catch (error) {
    if (error instanceof Failure) throw error;
    const late = error.name === "TimeoutError";
    throw new Failure(
      late ? "No answer came in two minutes." : "The service does not answer. Is it running, and are you online?",
      { passing: true },
    );
  }
}

async function failureOf(response) {
  const status = response.status;
  const said = (await response.json().catch(() => null))?.error?.message;
  const passing = PASSING.includes(status);
  const wait = Number(response.headers.get("Retry-After")) || 1;
  const instead = passing ? "The service cannot answer just now." : `The service answered with ${status}.`;
  return new Failure(said ?? instead, { status, passing, wait });
}

// Tells of one image; `busy(seconds)` is called when the service has too much to do and is asked again later.
export async function predict(file, busy) {
  const body = new FormData();
  body.append("image", new Blob([await bytesOf(file)], { type: file.type }), file.name);
  for (let tried = 1; ; tried += 1) {
    const start = performance.now();
    try {
      const answer = await ask("predict", "json", { method: "POST", body });
      return { ...answer, milliseconds: performance.now() - start };
    } catch (failure) {
      if (![429, 503].includes(failure.status) || tried === TRIES) throw failure;
      busy(failure.wait * tried);
      await new Promise((resolve) => setTimeout(resolve, 1000 * failure.wait * tried));
    }
  }
}

// Read here, since a fetch that cannot read a file fails as if the service were away.
async function bytesOf(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Failure("This cannot be read. If it is a folder, choose the images in it.");
  }
}
