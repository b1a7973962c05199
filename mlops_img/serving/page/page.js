// The page asks the same service that programs ask; nothing comes from anywhere else.

import { element, percent, picture, Result, unbroken } from "./result.js";
import { ask, Failure, hasToken, predict, useToken } from "./service.js";

const SIDE_BY_SIDE = 4;
// A request is a little larger than the file in it.
const FORM_BYTES = 1000;
const CLASSES_NAMED = 10;
const byId = (id) => document.getElementById(id);

// results: all that are listed. waiting: those not asked about yet. busy: how many are being asked about.
// round: those that came since there was last nothing to do. locked: a token is needed first.
const state = { model: null, asking: false, results: new Set(), waiting: [], busy: 0, round: [], locked: false };

// The model ---------------------------------------------------------------------------------------------------------

async function start() {
  if (state.asking) return;
  state.asking = true;
  byId("model").textContent = "Asking which model this is…";
  try {
    const model = await ask("model");
    hide("reach");
    showModel(model);
    unlock();
  } catch (failure) {
    if (failure.status === 401) return lock();
    byId("model").textContent = failure.message;
    byId("reach").hidden = false;
  } finally {
    state.asking = false;
  }
}

function showModel(model) {
  state.model = model;
  const { classes, limits } = model;
  const { after } = model.metrics;
  const split = after.split === "val" ? "validation" : after.split;
  byId("model").textContent =
    `${model.name}, version ${model.version}. It names one of ${classes.length} classes: ${some(classes)}. ` +
    `Of ${after.n} ${split} images it named ${percent(after.top1)} right${between(after)}.`;
  byId("limits").textContent = `${limits.formats.join(", ")}; up to ${size(limits.max_bytes)} each.`;
  byId("facts").replaceChildren(
    ...factsOf(model).flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]),
  );
  byId("classes-title").textContent = `Its ${classes.length} classes`;
  byId("class-list").replaceChildren(...classes.map((name) => element("li", name)));
  byId("about").hidden = byId("classes").hidden = false;
  showSamples(model.samples);
}

function factsOf(model) {
  const { metrics, provenance, limits } = model;
  const right = (measured) =>
    `${percent(measured.top1)} at the first guess${between(measured)}` +
    (model.classes.length > 5 ? `, ${percent(measured.top5)} among five` : "");
  const made = new Date(model.created).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
  return [
    ["Architecture", model.architecture],
    ["Computes in", `${model.precision} on ${model.device}`],
    ["Looks at", `${model.image_size} × ${model.image_size} pixels`],
    ["Right, validation", right(metrics.after)],
    ["Right, test", metrics.test && `${right(metrics.test)} (before its export)`],
    ["Made", made],
    ["Run", provenance.run],
    ["Commit", provenance.commit?.slice(0, 12)],
    ["Versions", `mlops_img ${provenance.mlops_img}, torch ${provenance.torch}`],
    ["Takes", `up to ${size(limits.max_bytes)} and ${limits.max_pixels / 1e6} million pixels an image`],
  ].filter(([, fact]) => fact);
}

// Bundles of format 1 have no interval.
function between({ top1_interval: interval }) {
  return interval ? ` (95 % interval ${percent(interval[0])} to ${percent(interval[1])})` : "";
}

// The samples are extra: without them the page is whole.
async function showSamples(samples) {
  const answers = await Promise.allSettled(samples.map(({ url }) => ask(url, "blob")));
  const items = answers.flatMap(({ value: blob }, place) => (blob ? [sampleItem(blob, samples[place].label)] : []));
  byId("sample-list").replaceChildren(...items);
  byId("samples").hidden = !items.length;
}

function sampleItem(blob, label) {
  const button = element("button", "", { type: "button", title: label });
  button.setAttribute("aria-label", `Try a sample of ${label}`);
  button.append(picture(blob, ""));
  button.addEventListener("click", () => take([new File([blob], `Sample of ${label}`, { type: blob.type })]));
  const item = element("li");
  item.append(button);
  return item;
}

function some(names) {
  const more = names.length - CLASSES_NAMED;
  const named = more > 0 ? [...names.slice(0, CLASSES_NAMED), `${more} more`] : names;
  return new Intl.ListFormat("en-GB").format(named);
}

function size(bytes) {
  return unbroken(bytes >= 1e6 ? `${Math.floor(bytes / 1e5) / 10} MB` : `${Math.floor(bytes / 1e3)} kB`);
}

// The token ---------------------------------------------------------------------------------------------------------

function lock() {
  hide("reach");
  if (!state.model) byId("model").textContent = "This service only answers those who have a token.";
  // Only the first of several refusals: somebody may be typing by now.
  if (state.locked) return;
  state.locked = true;
  byId("token-problem").textContent = hasToken() ? "This token is not accepted." : "";
  byId("token-form").hidden = false;
  byId("token").select();
}

// What waited for the token goes on.
function unlock() {
  hide("token-form");
  state.locked = false;
  work();
  tell();
}

// The images --------------------------------------------------------------------------------------------------------

function take(files) {
  if (!files.length) {
    return say("There was no image in that. Save it as a file first, then choose or drop the file.");
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
  state.round.push(...results);
  work();
  tell();
}

function work() {
  while (state.busy < SIDE_BY_SIDE && state.waiting.length && !state.locked) {
    state.busy += 1;
    look(state.waiting.shift()).finally(() => {
      state.busy -= 1;
      work();
      tell();
    });
  }
}

async function look(result) {
  result.wait("Looking…");
  try {
    const most = state.model?.limits.max_bytes ?? Infinity;
    if (result.file.size + FORM_BYTES > most) {
      throw new Failure(`This file is too large: ${size(result.file.size)}, and up to ${size(most)} can be sent.`);
    }
    const answer = await predict(result.file, (seconds) => {
      result.wait("Looking…", `There is much to do: asking again in ${seconds} s.`);
    });
    result.show(answer);
    // It was away when the page was opened, or another version took its place.
    if (answer.model.version !== state.model?.version || answer.model.name !== state.model.name) start();
  } catch (failure) {
    if (failure.status !== 401) return result.fail(failure);
    result.wait("Waiting for the token");
    if (state.results.has(result)) state.waiting.unshift(result); // not removed meanwhile
    lock();
  }
}

// The line above the results. It is read out, so it changes when a round begins and ends, not with each image.
function tell() {
  const { round, results } = state;
  const done = round.filter((result) => result.answer || result.failure);
  const again = [...results].filter((result) => result.failure?.passing);
  const over = done.length === round.length;
  byId("results-title").hidden = byId("clear").hidden = !results.size;
  byId("progress").hidden = over || round.length === 1;
  byId("progress").max = round.length;
  byId("progress").value = done.length;
  byId("retry").hidden = !over || !again.length;
  byId("retry").textContent = again.length === 1 ? "Try it again" : `Try ${again.length} again`;
  if (state.locked && !over) return say("Waiting for the token.");
  if (!over) return say(round.length === 1 ? "Looking at one image…" : `Looking at ${round.length} images…`);
  if (round.length) say(outcome(round));
  state.round = [];
}

function outcome(round) {
  if (round.length === 1) return round[0].summary;
  const failed = round.filter((result) => result.failure).length;
  return `${round.length} images are done` + (failed ? `; ${failed} of them did not work.` : ".");
}

function say(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

// Whoever works by keyboard is not to lose the place when what has the focus goes.
function hide(id) {
  if (byId(id).contains(document.activeElement)) byId("choose").focus();
  byId(id).hidden = true;
}

// Ways in -----------------------------------------------------------------------------------------------------------

for (const [button, id] of [["choose", "files"], ["photograph", "camera"]]) {
  byId(button).addEventListener("click", () => byId(id).click());
  byId(id).addEventListener("change", (event) => {
    if (event.target.files.length) take(event.target.files);
    event.target.value = ""; // the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length || event.target.tagName !== "INPUT") take(files);
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
  take(event.dataTransfer.files);
});
byId("retry").addEventListener("click", () => {
  byId("results-title").focus(); // the button is about to go
  enqueue([...state.results].filter((result) => result.failure?.passing));
});
byId("clear").addEventListener("click", () => {
  for (const result of state.results) result.remove();
  state.results.clear();
  state.waiting = [];
  state.round = [];
  tell();
  say("All results are removed.");
  byId("choose").focus();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value.trim());
  state.locked = false;
  start();
});
byId("docs").addEventListener("click", async (event) => {
  if (!hasToken()) return;
  event.preventDefault(); // a plain link sends no token
  try {
    const blob = await ask("docs.json", "blob");
    element("a", "", { href: URL.createObjectURL(blob), download: "docs.json" }).click();
  } catch (failure) {
    say(failure.message);
  }
});
byId("reach").addEventListener("click", start);
window.addEventListener("online", () => state.model ?? start());

start();
