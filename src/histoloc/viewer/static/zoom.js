// Which tiles of a deep zoom are seen. Pure. Level 0 is one tile; each level halves the one above it.

export const TILE = 256;

/** Number of the finest level. */
export function finestLevel(width, height) {
  return Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / TILE)));
}

/** The level whose pixels come nearest to the screen's, `scale` being screen pixels per pixel of the map. */
export function levelFor(width, height, scale) {
  const finest = finestLevel(width, height);
  return Math.min(finest, Math.max(0, finest - Math.round(Math.log2(1 / scale))));
}

/**
 * What is seen of a level, in whole blocks so that small moves change nothing.
 * `box` is {x0, y0, x1, y1} in pixels of the map. Returns null where nothing is seen, else {x0, y0, x1, y1} in
 * pixels of the level and `factor`, pixels of the map per pixel of the level.
 */
export function seen(width, height, level, box, block = 64) {
  const factor = 2 ** (finestLevel(width, height) - level);
  const [across, down] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const low = (value) => Math.max(0, Math.floor((value / factor - 1) / block) * block);
  const high = (value, end) => Math.min(end, Math.ceil((value / factor + 1) / block) * block);
  const range = { x0: low(box.x0), y0: low(box.y0), x1: high(box.x1, across), y1: high(box.y1, down), factor };
  return range.x0 < range.x1 && range.y0 < range.y1 ? range : null;
}
