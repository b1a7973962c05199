// The page asks the same service that programs ask; nothing comes from anywhere else.

const SIDE_BY_SIDE = 4;
const TRIES = 4;
const byId = (id) => document.getElementById(id);

const state = { token: "", limits: null, busy: 0, waiting: [] };

function element(name, text = "", properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer. Is it still running, and are you online?");
  }
  if (response.ok) return response;
  const failure = (await response.json().catch(() => null))?.error;
  if (response.status === 401) askForToken();
  const error = new Error(failure?.message ?? `The service answered with ${response.status}.`);
  error.status = response.status;
  error.again = Number(response.headers.get("Retry-After")) || 1;
  throw error;
}

function askForToken() {
  if (!byId("token-form").hidden) return;
  byId("token-form").hidden = false;
  byId("token").focus();
}

async function showModel() {
  const model = await (await ask("model")).json();
  state.limits = model.limits;
  byId("token-form").hidden = true;
  const top1 = model.metrics.after.top1;
  byId("model").textContent =
    `${model.name}, version ${model.version}: tells ${model.classes.length} classes apart, ` +
    `${percent(top1)} right on ${model.metrics.after.n} validation images.`;
  byId("limits").textContent =
    `${model.limits.formats.join(", ")}; up to ${Math.floor(model.limits.max_bytes / 1e6)} MB each.`;
  const facts = {
    "Architecture": model.architecture,
    "Computes in": `${model.precision} on ${model.device}`,
    "Image size": `${model.image_size} px`,
    "Classes": model.classes.join(", "),
    "Made": `${model.created}, run ${model.provenance.run}`,
    "Versions": `mlops_img ${model.provenance.mlops_img}, torch ${model.provenance.torch}`,
  };
  byId("about").replaceChildren(
    ...Object.entries(facts).flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]),
  );
  await showSamples(model.samples);
}

async function showSamples(samples) {
  const shown = await Promise.all(samples.map(async (sample) => {
    const blob = await (await ask(sample.url)).blob();
    const button = element("button", "", { type: "button" });
    button.setAttribute("aria-label", `Try a sample of ${sample.label}`);
    button.append(element("img", "", { src: URL.createObjectURL(blob), alt: "" }));
    button.addEventListener("click", () => look(new File([blob], `sample of ${sample.label}`, { type: blob.type })));
    const item = element("li");
    item.append(button);
    return item;
  }));
  byId("sample-list").replaceChildren(...shown);
  byId("samples").hidden = !shown.length;
}

function take(files) {
  const images = [...files];
  if (!images.length) say("There was no image in that.");
  for (const image of images) look(image);
}

function look(file) {
  const item = resultOf(file);
  byId("results").prepend(item.row);
  state.waiting.push({ file, item });
  next();
}

async function next() {
  if (state.busy >= SIDE_BY_SIDE || !state.waiting.length) return tell();
  const { file, item } = state.waiting.shift();
  state.busy += 1;
  tell();
  try {
    if (state.limits && file.size > state.limits.max_bytes) {
      throw new Error(`This file is larger than ${Math.floor(state.limits.max_bytes / 1e6)} MB.`);
    }
    const start = performance.now();
    const answer = await predict(file);
    item.show(answer, performance.now() - start);
  } catch (error) {
    item.fail(error.message);
  }
  state.busy -= 1;
  next();
}

async function predict(file) {
  for (let tried = 1; ; tried += 1) {
    const body = new FormData();
    body.append("image", file);
    try {
      return await (await ask("predict", { method: "POST", body })).json();
    } catch (error) {
      if (![429, 503].includes(error.status) || tried === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.again * tried));
    }
  }
}

function resultOf(file) {
  const row = element("li");
  const picture = element("img", "", { src: URL.createObjectURL(file), alt: file.name || "your image" });
  picture.addEventListener("load", () => row.classList.toggle("small", picture.naturalWidth < 100));
  picture.addEventListener("error", () => picture.remove());
  const words = element("div");
  words.append(element("h3", "Looking…"), element("p", file.name || "pasted image", { className: "quiet" }));
  row.append(picture, words);
  return {
    row,
    show(answer, milliseconds) {
      const bars = element("ol", "", { className: "bars" });
      for (const each of answer.top_k) {
        const bar = element("li");
        const length = element("i");
        length.style.width = `${100 * each.probability}%`;
        bar.append(length, element("span", each.label), element("span", percent(each.probability)));
        bars.append(bar);
      }
      words.firstChild.textContent = answer.label;
      words.append(bars, element("p", `${Math.round(milliseconds)} ms, of which the model took ` +
        `${Math.round(answer.timing.model_ms)} ms`, { className: "quiet" }));
      say(`${file.name || "The image"}: ${answer.label}, ${percent(answer.probability)}.`);
    },
    fail(message) {
      words.firstChild.textContent = "That did not work";
      words.append(element("p", message, { className: "problem" }));
      say(`${file.name || "The image"}: ${message}`);
    },
  };
}

function tell() {
  const left = state.busy + state.waiting.length;
  if (left) say(left === 1 ? "Looking at one image…" : `Looking at ${left} images…`);
}

function say(text) {
  byId("status").textContent = text;
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 || value < 0.05 ? Math.round(value) : value.toFixed(1)} %`;
}

function images(transfer) {
  return [...(transfer?.files ?? [])];
}

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
}
document.addEventListener("paste", (event) => {
  if (event.target.tagName === "INPUT" && !images(event.clipboardData).length) return;
  take(images(event.clipboardData));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take(images(event.dataTransfer));
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value.trim();
  byId("token-form").hidden = true;
  start();
});

async function start() {
  try {
    await showModel();
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

start();
