// The page: list, panes, toolbar and keys put together.

import { RAMPS } from "./colours.js";
import { element } from "./element.js";
import { SlideList } from "./list.js";
import { PREDICTED, Pane, TRUE } from "./pane.js";
import { KEYS, START, actionOf, reduce } from "./state.js";

const REFRESH = 20000; // milliseconds
const byId = (id) => document.getElementById(id);

let state = structuredClone(START);
let models = [];
let panes = [];
let item = null;
let leader = null;
const hidden = new Set(); // numbers of models
const list = new SlideList(byId("list"), choose);

function choose(chosen) {
  if (!chosen) return;
  item = chosen;
  location.replace(`#${encodeURIComponent(item.name)}`);
  document.title = `${item.name} – histoloc`;
  list.mark(item.name);
  openPanes();
}

function openPanes() {
  for (const pane of panes) pane.close();
  const shown = item.entries.filter((entry) => !hidden.has(entry.model));
  byId("panes").replaceChildren();
  byId("panes").style.setProperty("--columns", String(Math.min(shown.length, shown.length === 4 ? 2 : 3) || 1));
  const made = shown.map((entry) => element("div", { class: "place" }));
  byId("panes").append(...made); // all places first, so that each has its size when a slide is fitted into it
  panes = shown.map((entry, i) => new Pane(entry, models[entry.model], state, follow, made[i]));
  leader = panes[0] ?? null;
  for (const pane of panes) {
    pane.root.addEventListener("pointerenter", () => { leader = pane; });
    pane.root.addEventListener("pointerdown", () => { leader = pane; }, true);
    pane.root.addEventListener("wheel", () => { leader = pane; }, { capture: true, passive: true });
  }
  show(); // the legend before the slides, since it takes room from them
  for (const pane of panes) pane.start();
}

function follow(moved) {
  if (moved !== leader) return;
  for (const pane of panes) if (pane !== moved) pane.follow(moved);
}

function show() {
  for (const pane of panes) pane.show(state);
  const has = {
    picture: true, heat: panes.some((pane) => pane.heat), outlines: panes.some((pane) => pane.entry.regions),
    uncertainty: panes.some((pane) => pane.doubt), truth: panes.some((pane) => pane.entry.truth),
  };
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.checked = state.layers[box.dataset.layer] && has[box.dataset.layer];
    box.disabled = !has[box.dataset.layer];
  }
  const threshold = state.threshold ?? leader?.modelThreshold ?? 0.5;
  byId("opacity").value = Math.round(100 * state.opacity);
  byId("opacity-shown").textContent = `${Math.round(100 * state.opacity)} %`;
  byId("threshold").value = Math.round(100 * threshold);
  byId("threshold-shown").textContent = threshold.toFixed(2);
  byId("model-threshold").disabled = state.threshold === null;
  legend(has, threshold);
}

function legend(has, threshold) {
  const parts = [];
  const ramp = (kind, name, from) => {
    const bar = element("span", { class: "ramp" }, element("i"));
    bar.style.background = `linear-gradient(to right, ${RAMPS[kind].map((colour) => `#${colour}`).join(", ")})`;
    bar.firstChild.style.width = `${100 * from}%`;
    parts.push(element("span", { class: "key" }, name, " 0", bar, "1"));
  };
  const line = (colour, name, dashed) => {
    const mark = element("i", { class: dashed ? "line dashed" : "line" });
    mark.style.borderColor = colour;
    parts.push(element("span", { class: "key" }, mark, name));
  };
  if (has.heat && state.layers.heat) ramp("heat", "ROI", threshold);
  if (has.uncertainty && state.layers.uncertainty) ramp("uncertainty", "Uncertainty", 0);
  if (has.outlines && state.layers.outlines) line(PREDICTED, "Outline of the model");
  if (has.truth && state.layers.truth) line(TRUE, "Truth", true);
  byId("legend").replaceChildren(...parts);
}

function act(action) {
  if (action === "next" || action === "previous") {
    const neighbour = list.neighbour(action === "next" ? 1 : -1);
    if (neighbour && neighbour !== item) choose(neighbour);
  } else if (action === "help") {
    if (!byId("help").open) byId("help").showModal();
  } else if (action.startsWith("pan") || action.startsWith("zoom")) leader?.move(action);
  else {
    state = reduce(state, action, leader?.modelThreshold);
    show();
  }
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (byId("help").open) return;
    const action = actionOf(event, { tag: event.target.tagName, type: event.target.type });
    if (!action) return;
    event.preventDefault();
    act(action);
  });
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.addEventListener("change", () => act(`toggle-${box.dataset.layer}`));
  }
  for (const name of ["opacity", "threshold"]) {
    byId(name).addEventListener("input", (event) => {
      state = { ...state, [name]: Number(event.target.value) / 100 };
      show();
    });
  }
  byId("model-threshold").addEventListener("click", () => act("threshold-model"));
  for (const action of ["zoom-in", "zoom-out", "zoom-fit"]) byId(action).addEventListener("click", () => act(action));
  byId("help-open").addEventListener("click", () => act("help"));
  byId("keys").append(...KEYS.filter(([, , keys]) => keys).flatMap(([, , keys, text]) =>
    [element("dt", {}, ...keys.split(" ").flatMap((key) => [element("kbd", {}, key), " "])), element("dd", {}, text)]));
}

function modelSwitches() {
  byId("models").hidden = models.length < 2;
  byId("models").replaceChildren("Side by side", ...models.map((model, number) => {
    const box = element("input", { type: "checkbox" });
    box.checked = !hidden.has(number);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(number);
      else hidden.add(number);
      openPanes();
    });
    return element("label", {}, box, element("span", {}, model.name));
  }));
}

async function refresh() {
  const answer = await fetch("/api/list").catch(() => null);
  if (!answer?.ok) return;
  const found = await answer.json();
  const text = JSON.stringify(found);
  if (text === refresh.last) return;
  const first = refresh.last === undefined;
  refresh.last = text;
  models = found.models;
  if (first) modelSwitches();
  list.update(found.items, models);
  const wanted = item?.name ?? decoded(location.hash.slice(1));
  const same = found.items.find((other) => other.name === wanted);
  const keys = (one) => one.entries.map((entry) => entry.key).join();
  if (!item) choose(same ?? list.shown[0]);
  else if (same && keys(same) !== keys(item)) choose(same);
  else if (same) item = same;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

listen();
show();
await refresh();
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH);
