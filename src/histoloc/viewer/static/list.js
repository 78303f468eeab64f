// The list of slides on the left.

import { element } from "./element.js";
import { listed } from "./state.js";

export class SlideList {
  /** `chosen` is called with an item when the user chooses it. */
  constructor(root, chosen) {
    Object.assign(this, { root, chosen });
    this.items = [];
    this.shown = [];
    this.current = null;
    this.filter = document.getElementById("filter");
    this.order = document.getElementById("order");
    for (const control of [this.filter, this.order]) control.addEventListener("input", () => this.draw());
  }

  /** Show other items, keeping what is chosen by its name. */
  update(items, models) {
    Object.assign(this, { items, models });
    this.draw();
  }

  draw() {
    this.shown = listed([...this.items], this.filter.value, this.order.value);
    this.root.replaceChildren(...this.shown.map((item) => this.row(item)));
    const [count, all] = [this.shown.length, this.items.length];
    const images = this.items.every((item) => item.kind === "image") && all;
    const noun = `${images ? "image" : "slide"}${all === 1 ? "" : "s"}`;
    document.getElementById("count").textContent = count === all ? `${all} ${noun}` : `${count} of ${all} ${noun}`;
    if (!all) this.root.append(element("li", { class: "empty" }, "No slide is finished yet; they appear here by themselves."));
    else if (!count) this.root.append(element("li", { class: "empty" }, "Nothing matches the filter."));
  }

  row(item) {
    const [first] = item.entries;
    const picture = element("img", { alt: "", loading: "lazy", width: "72", height: "72" });
    if (first.width && !first.problem) picture.src = `/tiles/${first.key}/picture/0/0_0`;
    picture.addEventListener("error", () => picture.classList.add("missing"));
    const answers = item.entries.map((entry) => this.answer(entry));
    const button = element("button", { type: "button", title: item.name }, picture,
      element("span", { class: "what" }, element("span", { class: "name" }, shortName(item.name)), ...answers));
    button.addEventListener("click", () => this.chosen(item));
    const row = element("li", {}, button);
    if (item.name === this.current) button.setAttribute("aria-current", "true");
    return row;
  }

  answer(entry) {
    const line = element("span", { class: "line" });
    if (this.models.length > 1) line.append(element("span", { class: "model" }, this.models[entry.model].name));
    line.append(element("span", { class: "label" }, entry.label ?? ""));
    if (entry.score !== null) {
      const meter = element("span", { class: "meter" }, element("i"));
      meter.firstChild.style.width = `${100 * entry.score}%`;
      const of = entry.score_of === entry.label ? "" : `${entry.score_of} `;
      line.append(element("span", { class: "number" }, `${of}${entry.score.toFixed(2)}`), meter);
    }
    if (entry.problem) line.append(element("span", { class: "problem", title: entry.problem }, entry.problem));
    return line;
  }

  mark(name) {
    this.current = name;
    for (const button of this.root.querySelectorAll("button")) { // rows stay, so that pictures do not flicker
      if (button.title === name) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    this.root.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  }

  /** The item `step` places further in the list as it is shown. */
  neighbour(step) {
    const place = this.shown.findIndex((item) => item.name === this.current);
    return this.shown[Math.min(this.shown.length - 1, Math.max(0, place + step))];
  }
}

function shortName(name) {
  return name.split("/").at(-1);
}
