// Colours of maps: tables of 256 colours, looked up in the browser so that sliders act at once.

// matplotlib's viridis at 17 points, right within 6 of 255 between them.
const VIRIDIS =
  "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725";
// One hue that neither tissue nor viridis has where it is strong.
const AMBER = "fff6d6 ffe9a8 ffd56e ffb938 fb9514 e2710a b74c06 7f2f05";

export const RAMPS = { heat: VIRIDIS.split(" "), uncertainty: AMBER.split(" ") };
const FULL_UNCERTAINTY = 0.5; // most opaque from here

/** Colour of a ramp at `value` in [0, 1], as [red, green, blue] from 0 to 255. */
export function colourAt(ramp, value) {
  const place = Math.min(1, Math.max(0, value)) * (ramp.length - 1);
  const below = Math.min(ramp.length - 2, Math.floor(place));
  return [0, 2, 4].map((i) => {
    const [a, b] = [below, below + 1].map((k) => parseInt(ramp[k].slice(i, i + 2), 16));
    return Math.round(a + (b - a) * (place - below));
  });
}

/** Opacity in [0, 1] of a map's value; 0 outside the tissue, where maps are 0. */
export function alphaAt(kind, value, opacity, threshold) {
  if (value <= 0) return 0;
  if (kind === "uncertainty") return opacity * Math.min(1, value / FULL_UNCERTAINTY);
  return value + 1e-9 >= threshold ? opacity : 0;
}

/** Red, green, blue, alpha of each grey value from 0 to 255, as 1024 bytes. */
export function colourTable(kind, opacity, threshold) {
  const table = new Uint8ClampedArray(1024);
  for (let grey = 0; grey < 256; grey++) {
    const colour = colourAt(RAMPS[kind], grey / 255);
    table.set([...colour, Math.round(255 * alphaAt(kind, grey / 255, opacity, threshold))], 4 * grey);
  }
  return table;
}

/** Colour grey values: `rgba` has four bytes for each byte of `grey`. */
export function colourise(grey, table, rgba) {
  const colours = new Uint32Array(table.buffer);
  const pixels = new Uint32Array(rgba.buffer);
  for (let i = 0; i < grey.length; i++) pixels[i] = colours[grey[i]];
}
