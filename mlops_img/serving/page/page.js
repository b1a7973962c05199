// The page uses the API of the service that it comes from, and nothing else.

import { element, noBreak, percent, picture, Result } from "./result.js";
import { Failure, hasToken, predict, request, useToken } from "./service.js";

const MAX_CONCURRENT = 4;
// Bytes by which a request is larger than the file in it.
const FORM_BYTES = 1000;
const CLASSES_LISTED = 10;
const byId = (id) => document.getElementById(id);

// results: all that are listed. waiting: results to be requested. active: requests under way.
// batch: results since all earlier ones were finished. locked: a token is required first.
const state = { model: null, loading: false, results: new Set(), waiting: [], active: 0, batch: [], locked: false };

// The model ---------------------------------------------------------------------------------------------------------

async function loadModel() {
  if (state.loading) return;
  state.loading = true;
  byId("model").textContent = "Loading the description of the model…";
  try {
    const model = await request("model");
    hide("reload");
    showModel(model);
    unlock();
  } catch (failure) {
    if (failure.status === 401) return lock();
    byId("model").textContent = failure.message;
    byId("reload").hidden = false;
  } finally {
    state.loading = false;
  }
}

function showModel(model) {
  state.model = model;
  const { classes, limits } = model;
  const { after } = model.metrics;
  const split = after.split === "val" ? "validation" : after.split;
  byId("model").textContent =
    `${model.name}, version ${model.version}, tells ${classes.length} classes apart: ${listed(classes)}. ` +
    `Its accuracy is ${percent(after.top1)} on ${after.n} ${split} images${interval(after)}.`;
  byId("limits").textContent = `${limits.formats.join(", ")}; up to ${size(limits.max_bytes)} each.`;
  byId("facts").replaceChildren(
    ...factsOf(model).flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]),
  );
  byId("classes-title").textContent = `All ${classes.length} classes`;
  byId("class-list").replaceChildren(...classes.map((name) => element("li", name)));
  byId("about").hidden = byId("classes").hidden = false;
  showSamples(model.samples);
}

function factsOf(model) {
  const { metrics, provenance, limits } = model;
  const accuracy = (measured) =>
    `${percent(measured.top1)}${interval(measured)}` +
    (model.classes.length > 5 ? `, top-5 ${percent(measured.top5)}` : "");
  const created = new Date(model.created).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
  return [
    ["Architecture", model.architecture],
    ["Precision", `${model.precision} on ${model.device}`],
    ["Input", `${model.image_size} × ${model.image_size} pixels`],
    ["Validation accuracy", accuracy(metrics.after)],
    ["Test accuracy", metrics.test && `${accuracy(metrics.test)}, before export`],
    ["Created", created],
    ["Training run", provenance.run],
    ["Commit", provenance.commit?.slice(0, 12)],
    ["Versions", `mlops_img ${provenance.mlops_img}, torch ${provenance.torch}`],
    ["Limits", `${size(limits.max_bytes)} and ${limits.max_pixels / 1e6} million pixels per image`],
  ].filter(([, fact]) => fact);
}

// Bundles of format 1 have no interval.
function interval({ top1_interval: bounds }) {
  return bounds ? ` (95% confidence interval ${percent(bounds[0])} to ${percent(bounds[1])})` : "";
}

// Samples are optional: the page works without them.
async function showSamples(samples) {
  const responses = await Promise.allSettled(samples.map(({ url }) => request(url, "blob")));
  const items = responses.flatMap(({ value: blob }, place) => (blob ? [sampleItem(blob, samples[place].label)] : []));
  byId("sample-list").replaceChildren(...items);
  byId("samples").hidden = !items.length;
}

function sampleItem(blob, label) {
  const button = element("button", "", { type: "button", title: label });
  button.setAttribute("aria-label", `Try a sample of ${label}`);
  button.append(picture(blob, ""));
  button.addEventListener("click", () => addFiles([new File([blob], `Sample of ${label}`, { type: blob.type })]));
  const item = element("li");
  item.append(button);
  return item;
}

function listed(names) {
  const more = names.length - CLASSES_LISTED;
  const shown = more > 0 ? [...names.slice(0, CLASSES_LISTED), `${more} more`] : names;
  return new Intl.ListFormat("en-GB").format(shown);
}

function size(bytes) {
  return noBreak(bytes >= 1e6 ? `${Math.floor(bytes / 1e5) / 10} MB` : `${Math.floor(bytes / 1e3)} kB`);
}

// The token ---------------------------------------------------------------------------------------------------------

function lock() {
  hide("reload");
  if (!state.model) byId("model").textContent = "This service requires a token.";
  // Only for the first of several refused requests: later the user may be typing.
  if (state.locked) return;
  state.locked = true;
  byId("token-problem").textContent = hasToken() ? "This token is not valid." : "";
  byId("token-form").hidden = false;
  byId("token").select();
}

function unlock() {
  hide("token-form");
  state.locked = false;
  startNext();
  updateStatus();
}

// The images --------------------------------------------------------------------------------------------------------

function addFiles(files) {
  if (!files.length) {
    return setStatus("No image file found. Save the image first, then choose or drop the file.");
  }
  const results = [...files].map((file) => new Result(file));
  for (const result of results) state.results.add(result);
  byId("results").prepend(...results.map((result) => result.row));
  enqueue(results);
  byId("results").firstChild.scrollIntoView({ block: "nearest" });
}

function enqueue(results) {
  for (const result of results) result.wait(state.locked ? "Waiting for the token" : "Waiting…");
  state.waiting.push(...results);
  state.batch.push(...results);
  startNext();
  updateStatus();
}

function startNext() {
  while (state.active < MAX_CONCURRENT && state.waiting.length && !state.locked) {
    state.active += 1;
    classify(state.waiting.shift()).finally(() => {
      state.active -= 1;
      startNext();
      updateStatus();
    });
  }
}

async function classify(result) {
  result.wait("Classifying…");
  try {
    const limit = state.model?.limits.max_bytes ?? Infinity;
    if (result.file.size + FORM_BYTES > limit) {
      throw new Failure(`This file is too large: ${size(result.file.size)}. The limit is ${size(limit)}.`);
    }
    const answer = await predict(result.file, (seconds) => {
      result.wait("Classifying…", `The service is busy. Retrying in ${seconds} s.`);
    });
    result.show(answer);
    // The model was not available when the page was opened, or has been replaced since.
    if (answer.model.version !== state.model?.version || answer.model.name !== state.model.name) loadModel();
  } catch (failure) {
    if (failure.status !== 401) return result.fail(failure);
    result.wait("Waiting for the token");
    if (state.results.has(result)) state.waiting.unshift(result); // unless it was removed meanwhile
    lock();
  }
}

// The line above the results. Screen readers read it out, so it changes once per batch, not with each image.
function updateStatus() {
  const { batch, results } = state;
  const finished = batch.filter((result) => result.answer || result.failure);
  const retryable = [...results].filter((result) => result.failure?.retryable);
  const complete = finished.length === batch.length;
  byId("results-title").hidden = byId("clear").hidden = !results.size;
  byId("progress").hidden = complete || batch.length === 1;
  byId("progress").max = batch.length;
  byId("progress").value = finished.length;
  byId("retry").hidden = !complete || !retryable.length;
  byId("retry").textContent = retryable.length === 1 ? "Retry" : `Retry ${retryable.length} images`;
  if (state.locked && !complete) return setStatus("Waiting for the token.");
  if (!complete) return setStatus(batch.length === 1 ? "Classifying the image…" : `Classifying ${batch.length} images…`);
  if (batch.length) setStatus(summaryOf(batch));
  state.batch = [];
}

function summaryOf(batch) {
  if (batch.length === 1) return batch[0].summary;
  const failed = batch.filter((result) => result.failure).length;
  if (!failed) return `${batch.length} images classified.`;
  return `${batch.length - failed} of ${batch.length} images classified, ${failed} failed.`;
}

function setStatus(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

// Keyboard users must not lose their place when the focused element disappears.
function hide(id) {
  if (byId(id).contains(document.activeElement)) byId("choose").focus();
  byId(id).hidden = true;
}

// Events ------------------------------------------------------------------------------------------------------------

for (const [button, id] of [["choose", "files"], ["photograph", "camera"]]) {
  byId(button).addEventListener("click", () => byId(id).click());
  byId(id).addEventListener("change", (event) => {
    if (event.target.files.length) addFiles(event.target.files);
    event.target.value = ""; // the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length || event.target.tagName !== "INPUT") addFiles(files);
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
  addFiles(event.dataTransfer.files);
});
byId("retry").addEventListener("click", () => {
  byId("results-title").focus(); // the button is about to disappear
  enqueue([...state.results].filter((result) => result.failure?.retryable));
});
byId("clear").addEventListener("click", () => {
  for (const result of state.results) result.remove();
  state.results.clear();
  state.waiting = [];
  state.batch = [];
  updateStatus();
  setStatus("Results cleared.");
  byId("choose").focus();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value.trim());
  state.locked = false;
  loadModel();
});
byId("docs").addEventListener("click", async (event) => {
  if (!hasToken()) return;
  event.preventDefault(); // a plain link would not send the token
  try {
    const blob = await request("docs.json", "blob");
    element("a", "", { href: URL.createObjectURL(blob), download: "docs.json" }).click();
  } catch (failure) {
    setStatus(failure.message);
  }
});
byId("reload").addEventListener("click", loadModel);
window.addEventListener("online", () => state.model ?? loadModel());

loadModel();
