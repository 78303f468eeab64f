// One model's view of one slide: OpenSeadragon below, maps and outlines on a canvas over it.

/* global OpenSeadragon */
import { colourTable } from "./colours.js";
import { element } from "./element.js";
import { MapLayer } from "./maplayer.js";
import { drawOutlines, outlineAt, readOutlines } from "./outlines.js";
import { measurementText, resolutionText, scaleBar } from "./scale.js";
import { TILE, finestLevel } from "./zoom.js";

export const PREDICTED = "#ffffff";
export const TRUE = "#35e0ff";

export class Pane {
  /** `entry` is one of the list's; `followed` is called with this pane when its view moves; `place` holds it. */
  constructor(entry, model, state, followed, place) {
    Object.assign(this, { entry, state, followed });
    this.version = 0;
    this.outlines = [];
    this.truth = [];
    this.hovered = null;
    this.build(model);
    place.append(this.root);
    const drawSoon = () => this.drawSoon();
    this.heat = entry.map && new MapLayer(`/tiles/${entry.key}/map`, entry.map, drawSoon);
    this.doubt = entry.uncertainty && new MapLayer(`/tiles/${entry.key}/uncertainty`, entry.uncertainty, drawSoon);
    if (entry.regions) this.load("outlines");
    if (entry.truth) this.load("truth");
    this.show(state);
  }

  build(model) {
    this.stage = element("div", { class: "stage" });
    this.canvas = element("canvas", { class: "overlay" });
    this.tip = element("div", { class: "tip", hidden: "", role: "status" });
    this.bar = element("div", { class: "bar" }, element("span"), element("i"));
    this.resolution = element("div", { class: "resolution" });
    this.notice = element("p", { class: "notice", role: "alert", hidden: "" });
    this.surface = element("div", { class: "surface" }, this.stage, this.canvas, this.notice,
      element("div", { class: "scale" }, this.bar, this.resolution), this.tip);
    this.root = element("section", { class: "pane", "aria-label": `${model.name}` }, header(model, this.entry), this.surface);
    this.say(this.entry.problem);
  }

  /** Fit the slide into the pane, once all panes have their places and sizes. */
  start() {
    const { key, width, height } = this.entry;
    const picture = { width, height, tileSize: TILE, minLevel: 0, maxLevel: finestLevel(width, height),
      tileExists: () => !this.entry.problem && !this.failed, // what cannot be read is asked for once
      getTileUrl: (level, x, y) => `/tiles/${key}/picture/${level}/${x}_${y}` };
    this.viewer = OpenSeadragon({
      element: this.stage, drawer: "canvas", showNavigationControl: false, tileSources: width ? [picture] : [],
      animationTime: 0.5, springStiffness: 9, maxZoomPixelRatio: 8, visibilityRatio: 0.4, minZoomImageRatio: 0.6,
      zoomPerScroll: 1.25, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, imageLoaderLimit: 6,
      placeholderFillStyle: "#24282d",
    });
    this.viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // main.js has the keys
    for (const name of ["open", "resize", "update-viewport"]) this.viewer.addHandler(name, () => this.draw());
    this.viewer.addHandler("viewport-change", () => this.followed(this));
    this.viewer.addHandler("tile-load-failed", (event) => { if (!this.failed && !this.entry.problem) this.explain(event.tile.getUrl()); });
    this.surface.addEventListener("pointermove", (event) => this.hover(event));
    this.surface.addEventListener("pointerleave", () => this.leave());
  }

  async explain(address) {
    this.failed = true;
    const answer = await fetch(address).catch(() => null);
    if (answer && !answer.ok) this.say(await answer.text());
    else if (!answer) this.say("The viewer has been ended; start it again and reload the page.");
  }

  say(text) {
    this.notice.textContent = text;
    this.notice.hidden = !text;
  }

  async load(what) {
    const answer = await fetch(`/api/${what}/${this.entry.key}`).catch(() => null);
    if (!answer) return;
    if (!answer.ok) return this.say(await answer.text());
    try {
      this[what] = readOutlines(await answer.json());
    } catch {
      this.say(`The ${what} of this slide cannot be read; predict it again.`);
    }
    this.drawSoon();
  }

  get modelThreshold() {
    return this.entry.map?.threshold ?? 0.5;
  }

  /** Show the layers, opacity and threshold of a state. */
  show(state) {
    this.state = state;
    this.version++;
    this.heatColours = colourTable("heat", state.opacity, state.threshold ?? this.modelThreshold);
    this.doubtColours = colourTable("uncertainty", state.opacity, 0);
    this.stage.style.opacity = state.layers.picture ? "1" : "0";
    this.drawSoon();
  }

  drawSoon() {
    if (this.planned) return;
    this.planned = requestAnimationFrame(() => {
      this.planned = 0;
      this.draw();
    });
  }

  /** Screen position of the slide's corner, and screen pixels per pixel of level 0. */
  view(factor = 1) {
    const { viewport } = this.viewer;
    const corner = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const far = viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    return { x: corner.x * factor, y: corner.y * factor, scale: ((far.x - corner.x) / this.entry.width) * factor };
  }

  draw() {
    const { clientWidth, clientHeight } = this.surface;
    if (!this.viewer?.viewport || !clientWidth || !this.entry.width) return;
    const dpr = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(clientWidth * dpr), Math.round(clientHeight * dpr)];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const view = this.view(dpr);
    const { layers } = this.state;
    if (layers.heat && this.heat) this.heat.draw(context, view, this.heatColours, this.version);
    if (layers.uncertainty && this.doubt) this.doubt.draw(context, view, this.doubtColours, this.version);
    if (layers.truth) drawOutlines(context, this.truth, view, dpr, { colour: TRUE, dashes: [7, 4] });
    if (layers.outlines) drawOutlines(context, this.outlines, view, dpr, { colour: PREDICTED, hovered: this.hovered });
    this.measure(view.scale / dpr);
  }

  measure(scale) {
    const { mpp } = this.entry;
    this.bar.hidden = this.resolution.hidden = !mpp;
    if (!mpp) return;
    const { pixels, text } = scaleBar(mpp / scale);
    this.bar.firstChild.textContent = text;
    this.bar.lastChild.style.width = `${pixels}px`;
    this.resolution.textContent = resolutionText(mpp / scale);
  }

  hover(event) {
    const place = this.surface.getBoundingClientRect();
    const [x, y] = [event.clientX - place.left, event.clientY - place.top];
    const view = this.entry.width && this.view();
    const found = view && this.state.layers.outlines
      ? outlineAt(this.outlines, (x - view.x) / view.scale, (y - view.y) / view.scale) : null;
    if (found !== this.hovered) {
      this.hovered = found;
      this.drawSoon();
      this.tip.replaceChildren(...(found ? told(found) : []));
    }
    this.tip.hidden = !found;
    const right = x > place.width - 240;
    this.tip.style.left = right ? "auto" : `${x + 16}px`;
    this.tip.style.right = right ? `${place.width - x + 16}px` : "auto";
    this.tip.style.top = `${Math.min(y + 16, place.height - 110)}px`;
  }

  leave() {
    this.hovered = null;
    this.tip.hidden = true;
    this.drawSoon();
  }

  /** Take over another pane's view at once. */
  follow(other) {
    const [own, its] = [this.viewer.viewport, other.viewer.viewport];
    if (!own || !its) return;
    own.zoomTo(its.getZoom(true), null, true);
    own.panTo(its.getCenter(true), true);
    this.drawSoon();
  }

  /** Move or zoom: an action of the keyboard. */
  move(action) {
    const { viewport } = this.viewer;
    if (!viewport) return;
    const step = 0.15 * viewport.getBounds(false).width;
    const [dx, dy] = { "pan-left": [-1, 0], "pan-right": [1, 0], "pan-up": [0, -1], "pan-down": [0, 1] }[action] ?? [0, 0];
    if (action === "zoom-fit") viewport.goHome();
    else if (action === "zoom-in") viewport.zoomBy(1.5);
    else if (action === "zoom-out") viewport.zoomBy(1 / 1.5);
    else viewport.panBy(new OpenSeadragon.Point(dx * step, dy * step));
    viewport.applyConstraints();
  }

  close() {
    cancelAnimationFrame(this.planned);
    this.viewer.destroy();
    this.root.remove();
  }
}

function header(model, entry) {
  const title = model.title && model.title !== model.name ? element("small", {}, model.title) : "";
  const answer = element("span", { class: "answer" });
  if (entry.label !== null) {
    const probability = entry.probabilities[entry.label];
    answer.append(element("b", {}, entry.label), probability === undefined ? "" : ` ${probability.toFixed(2)}`);
  } else if (entry.score !== null) answer.append(`${entry.score_of} ${entry.score.toFixed(2)}`);
  const rule = entry.rule ? element("details", { class: "rule" }, element("summary", {}, "how?"), element("p", {}, entry.rule)) : "";
  const facts = entry.facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("header", {}, element("h2", {}, model.name, " ", title), answer, rule, element("dl", { class: "facts" }, ...facts));
}

function told(outline) {
  const values = outline.measurements.map(([name, value]) => measurementText(name, value));
  return [element("b", {}, outline.label),
    ...values.map(([name, value]) => element("div", {}, element("span", {}, name), " ", value))];
}
