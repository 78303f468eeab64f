// Prints as JSON what the page's pure functions say; test_viewer_page.py compares.

const [folder] = process.argv.slice(2);
const { RAMPS, alphaAt, colourAt, colourTable, colourise } = await import(`${folder}/colours.js`);
const { scaleBar, lengthText, measurementText } = await import(`${folder}/scale.js`);
const { START, KEYS, actionOf, reduce, listed } = await import(`${folder}/state.js`);
const { finestLevel, levelFor, seen } = await import(`${folder}/zoom.js`);
const { inside, outlineAt, readOutlines } = await import(`${folder}/outlines.js`);

const after = (keys, state = START) => keys.reduce((s, key) => reduce(s, actionOf({ key }), 0.4), state);
const table = colourTable("heat", 0.5, 0.5);
const rgba = new Uint8ClampedArray(16);
colourise(new Uint8Array([0, 127, 128, 255]), table, rgba);
const square = (x, y, side) => [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]];
const polygon = (...rings) => ({ type: "Feature", geometry: { type: "Polygon", coordinates: rings },
  properties: { classification: { name: "metastatic" }, measurements: { Probability: 0.9, bad: null } } });
const outlines = readOutlines({ features: [polygon(square(0, 0, 100), square(20, 20, 40)), polygon(square(30, 30, 10)), {}, null] });
const at = (x, y) => outlines.indexOf(outlineAt(outlines, x, y));
const items = [
  { name: "b10", score: 0.9, entries: [{ label: "metastatic" }] },
  { name: "b9", score: 0.5, entries: [{ label: "normal" }] },
  { name: "a", score: null, entries: [{ label: null }] },
];

console.log(JSON.stringify({
  viridis: Array.from({ length: 256 }, (_, grey) => colourAt(RAMPS.heat, grey / 255)),
  rgba: Array.from(rgba),
  alpha: [alphaAt("heat", 0, 1, 0), alphaAt("heat", 0.5, 0.7, 0.5), alphaAt("uncertainty", 0.25, 0.8, 0), alphaAt("uncertainty", 0.9, 0.8, 0)],
  bars: [0.25, 1, 3.7, 100].map((perPixel) => scaleBar(perPixel)),
  lengths: [0.5, 20, 200, 2000, 20000].map(lengthText),
  measurements: [["Area mm^2", 0.1234], ["Area mm^2", 0.00012], ["Probability", 0.987], ["Area px", 2400]].map(([n, v]) => measurementText(n, v)),
  layers: after(["h", "u", "U", "t"]).layers,
  opacity: [after(["]"]).opacity, after(Array(30).fill("]")).opacity, after(Array(30).fill("[")).opacity],
  threshold: [after([]).threshold, after(["."]).threshold, after([",", ","]).threshold, after([".", "m"]).threshold],
  untouched: JSON.stringify(after(["ArrowLeft", "+", "n", "?"])) === JSON.stringify(START),
  keys: ["n", "p", "+", "-", "ArrowUp", "?", "x"].map((key) => actionOf({ key })),
  typing: [actionOf({ key: "h" }, { tag: "INPUT", type: "search" }), actionOf({ key: "ArrowLeft" }, { tag: "INPUT", type: "range" }),
    actionOf({ key: "h" }, { tag: "INPUT", type: "range" }), actionOf({ key: "p", ctrlKey: true })],
  doubled: KEYS.flatMap(([keys]) => keys).length - new Set(KEYS.flatMap(([keys]) => keys)).size,
  listed: [listed([...items], "", "score"), listed([...items], "", "low"), listed([...items], "", "name"), listed([...items], " META ", "score")]
    .map((found) => found.map((item) => item.name)),
  finest: [[1, 1], [256, 10], [257, 10], [3000, 2100], [100000, 5]].map(([w, h]) => finestLevel(w, h)),
  levels: [4, 1, 0.5, 0.26, 0.01].map((scale) => levelFor(3000, 2100, scale)),
  seen: [seen(3000, 2100, 4, { x0: -50, y0: 100, x1: 500, y1: 9999 }), seen(3000, 2100, 3, { x0: 300, y0: 300, x1: 310, y1: 310 }),
    seen(3000, 2100, 4, { x0: 5000, y0: 0, x1: 6000, y1: 10 })],
  inside: [inside([square(0, 0, 10)], 5, 5), inside([square(0, 0, 10)], 15, 5)],
  hits: [at(10, 10), at(50, 50), at(35, 35), at(200, 1)],
  outline: [outlines.length, outlines[0].label, outlines[0].measurements, outlines[0].box],
}));
