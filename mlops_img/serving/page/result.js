// One image in the list of results: waiting, classified or failed.

// Images up to this many pixels are enlarged with sharp pixels instead of a blur.
const SMALL = 100;

export function element(name, text = "", properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text;
  return made;
}

// A number stays on one line with its unit.
export function noBreak(text) {
  return text.replaceAll(" ", "\u00a0");
}

export function percent(share) {
  if (share > 0 && share < 0.0005) return "<\u00a00.1%";
  if (share < 1 && share > 0.9995) return ">\u00a099.9%";
  return `${(100 * share).toFixed(share === 1 ? 0 : 1)}%`;
}

export function picture(blob, alt) {
  const image = element("img", "", { src: URL.createObjectURL(blob), alt, decoding: "async" });
  image.addEventListener("load", () => {
    image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL);
  });
  return image;
}

export class Result {
  constructor(file) {
    this.file = file;
    this.name = file.name || "pasted image";
    this.image = picture(file, this.name);
    // Browsers cannot show every format that the service reads.
    this.image.addEventListener("error", () => this.image.replaceWith(element("span", "No preview")));
    this.frame = element("div", "", { className: "frame" });
    this.frame.append(this.image);
    this.title = element("h3");
    const head = element("div", "", { className: "head" });
    head.append(this.title, element("p", this.name, { className: "quiet" }));
    this.details = element("div", "", { className: "details" });
    this.row = element("li");
    this.row.append(this.frame, head, this.details);
    this.wait("Waiting…");
  }

  wait(title, note = "") {
    this.failure = null;
    this.answer = null;
    this.#render("waiting", title, note && element("p", note, { className: "quiet" }));
  }

  show(answer) {
    this.answer = answer;
    const bars = element("ol", "", { className: "bars" });
    for (const { label, probability } of answer.top_k) {
      const bar = element("li");
      const length = element("i");
      length.style.width = `${100 * probability}%`;
      bar.append(length, element("span", label), element("span", percent(probability)));
      bars.append(bar);
    }
    const [all, model] = [answer.milliseconds, answer.timing.model_ms].map(Math.round);
    const time = element("p", `${noBreak(`${all} ms`)} in total, ${noBreak(`${model} ms`)} in the model`, {
      className: "quiet",
    });
    this.#render("shown", answer.label, bars, time);
  }

  fail(failure) {
    this.failure = failure;
    this.#render("failed", "Failed", element("p", failure.message, { className: "problem" }));
  }

  get summary() {
    if (this.failure) return `${this.name}: ${this.failure.message}`;
    return `${this.name}: ${this.answer.label}, ${percent(this.answer.probability)}.`;
  }

  remove() {
    URL.revokeObjectURL(this.image.src);
    this.row.remove();
  }

  #render(className, title, ...details) {
    this.row.className = className;
    this.title.textContent = title;
    this.details.replaceChildren(...details);
  }
}
