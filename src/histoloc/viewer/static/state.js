// What is shown, and how keys and sliders change it. Pure: nothing here touches the page.

export const LAYERS = ["picture", "heat", "outlines", "uncertainty", "truth"];

export const START = {
  layers: { picture: true, heat: true, outlines: true, uncertainty: false, truth: true },
  opacity: 0.55,
  threshold: null, // null: where each model cuts its map
};

export const KEYS = [
  [["ArrowLeft"], "pan-left", "← → ↑ ↓", "move"],
  [["ArrowRight"], "pan-right"],
  [["ArrowUp"], "pan-up"],
  [["ArrowDown"], "pan-down"],
  [["+", "="], "zoom-in", "+ −", "zoom in, out"],
  [["-", "_", "−"], "zoom-out"],
  [["0"], "zoom-fit", "0", "whole slide"],
  [["n"], "next", "n p", "next, previous slide"],
  [["p"], "previous"],
  [["s"], "toggle-picture", "s", "tissue"],
  [["h"], "toggle-heat", "h", "heatmap"],
  [["o"], "toggle-outlines", "o", "outlines"],
  [["u"], "toggle-uncertainty", "u", "uncertainty"],
  [["t"], "toggle-truth", "t", "truth, where a person drew one"],
  [["]"], "opacity-up", "[ ]", "opacity down, up"],
  [["["], "opacity-down"],
  [["."], "threshold-up", ", .", "threshold down, up"],
  [[","], "threshold-down"],
  [["m"], "threshold-model", "m", "threshold of the model"],
  [["?"], "help", "?", "this help"],
];

const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];

/** The action of a key, or null; `target` is what has the focus: {tag, type}. */
export function actionOf(event, target = {}) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const typing = target.tag === "TEXTAREA" || target.tag === "SELECT"
    || (target.tag === "INPUT" && !["checkbox", "range"].includes(target.type));
  if (typing || (target.type === "range" && ARROWS.includes(event.key))) return null;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return KEYS.find(([keys]) => keys.includes(key))?.[1] ?? null;
}

/** The state after an action; actions that move or choose slides leave it as it is. */
export function reduce(state, action, modelThreshold = 0.5) {
  const [what, how] = [action.slice(0, action.indexOf("-")), action.slice(action.indexOf("-") + 1)];
  if (what === "toggle") return { ...state, layers: { ...state.layers, [how]: !state.layers[how] } };
  if (what === "opacity") return { ...state, opacity: stepped(state.opacity, how) };
  if (what === "threshold") {
    return { ...state, threshold: how === "model" ? null : stepped(state.threshold ?? modelThreshold, how) };
  }
  return state;
}

function stepped(value, how) {
  const next = value + (how === "up" ? 0.05 : -0.05);
  return Math.min(1, Math.max(0, Math.round(next * 100) / 100));
}

/** Items to list: those whose name or class holds the text, in the order asked for. */
export function listed(items, text, order) {
  const wanted = text.trim().toLowerCase();
  const found = items.filter((item) => !wanted || item.name.toLowerCase().includes(wanted)
    || item.entries.some((entry) => entry.label?.toLowerCase().includes(wanted)));
  if (order === "name") found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  if (order === "low") found.sort((a, b) => (a.score ?? 2) - (b.score ?? 2));
  return found; // the server sorts by score
}
