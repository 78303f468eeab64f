// Outlines: GeoJSON in pixels of level 0, drawn at any zoom and found under the pointer.

/** What can be drawn of a FeatureCollection: [{label, measurements, rings, box}]. */
export function readOutlines(geojson) {
  const found = [];
  for (const feature of geojson?.features ?? []) {
    const { type, coordinates } = feature?.geometry ?? {};
    const polygons = type === "Polygon" ? [coordinates] : type === "MultiPolygon" ? coordinates : [];
    const rings = polygons.flat();
    if (!rings.length) continue;
    const properties = feature.properties ?? {};
    found.push({
      label: String(properties.classification?.name ?? "ROI"),
      measurements: Object.entries(properties.measurements ?? {}).filter(([, value]) => Number.isFinite(value)),
      rings,
      box: boxOf(rings),
    });
  }
  return found;
}

function boxOf(rings) {
  const box = { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
  for (const [x, y] of rings.flat()) {
    box.x0 = Math.min(box.x0, x);
    box.y0 = Math.min(box.y0, y);
    box.x1 = Math.max(box.x1, x);
    box.y1 = Math.max(box.y1, y);
  }
  return box;
}

/** Whether a point lies inside rings, holes being outside. */
export function inside(rings, x, y) {
  let within = false;
  for (const ring of rings) {
    for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
      const [[xi, yi], [xj, yj]] = [ring[i], ring[j]];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
    }
  }
  return within;
}

/** The outline under a point, the smallest where several are, or null. */
export function outlineAt(outlines, x, y) {
  let best = null;
  for (const outline of outlines) {
    const { x0, y0, x1, y1 } = outline.box;
    if (x < x0 || x > x1 || y < y0 || y > y1 || !inside(outline.rings, x, y)) continue;
    const size = (x1 - x0) * (y1 - y0);
    if (!best || size < best.size) best = { outline, size };
  }
  return best?.outline ?? null;
}

/** Draw outlines: a line in a dark one, which shows on any tissue. `view` as for maps, `dpr` pixels per CSS pixel. */
export function drawOutlines(context, outlines, view, dpr, { colour, dashes = [], hovered = null }) {
  const seen = outlines.filter(({ box }) => view.x + box.x1 * view.scale >= 0 && view.y + box.y1 * view.scale >= 0
    && view.x + box.x0 * view.scale <= context.canvas.width && view.y + box.y0 * view.scale <= context.canvas.height);
  const path = new Path2D();
  for (const outline of seen) path.addPath(pathOf(outline), new DOMMatrix([view.scale, 0, 0, view.scale, view.x, view.y]));
  context.save();
  context.lineJoin = "round";
  stroke(context, path, "rgba(12, 14, 16, 0.85)", 3.6 * dpr, []);
  stroke(context, path, colour, 1.8 * dpr, dashes.map((dash) => dash * dpr));
  if (hovered && seen.includes(hovered)) {
    const one = new Path2D();
    one.addPath(pathOf(hovered), new DOMMatrix([view.scale, 0, 0, view.scale, view.x, view.y]));
    stroke(context, one, "#ffd23f", 3 * dpr, []);
  }
  context.restore();
}

function stroke(context, path, style, width, dashes) {
  context.strokeStyle = style;
  context.lineWidth = width;
  context.setLineDash(dashes);
  context.stroke(path);
}

function pathOf(outline) {
  if (!outline.path) {
    outline.path = new Path2D();
    for (const ring of outline.rings) {
      ring.forEach(([x, y], i) => (i ? outline.path.lineTo(x, y) : outline.path.moveTo(x, y)));
      outline.path.closePath();
    }
  }
  return outline.path;
}
