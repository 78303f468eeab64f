// Lengths: the scale bar, and how numbers are written.

/** The longest of 1, 2, 5 times a power of ten µm that fits; `perPixel` is µm per pixel of the screen. */
export function scaleBar(perPixel, longest = 160) {
  const room = perPixel * longest;
  const power = 10 ** Math.floor(Math.log10(room));
  const length = [5, 2, 1].map((factor) => factor * power).find((value) => value <= room * (1 + 1e-9));
  return { length, pixels: length / perPixel, text: lengthText(length) };
}

/** A length in µm, as nm, µm, mm or cm. */
export function lengthText(micrometres) {
  const [factor, unit] = micrometres < 1 ? [1000, "nm"] : micrometres < 1000 ? [1, "µm"]
    : micrometres < 10000 ? [1e-3, "mm"] : [1e-4, "cm"];
  return `${Number((micrometres * factor).toPrecision(3))} ${unit}`;
}

/** Micrometres per pixel of the screen, to three digits. */
export function resolutionText(perPixel) {
  return `${perPixel >= 100 ? Math.round(perPixel) : Number(perPixel.toPrecision(3))} µm/px`;
}

/** A measurement of an outline as [name, value]: "Area mm^2" becomes an area in mm², small ones in µm². */
export function measurementText(name, value) {
  if (name === "Area mm^2") {
    return ["Area", value < 0.01 ? `${Math.round(value * 1e6).toLocaleString("en")} µm²` : `${value.toPrecision(3)} mm²`];
  }
  if (name === "Area px") return ["Area", `${value.toLocaleString("en")} pixels`];
  return [name, Number.isInteger(value) ? String(value) : value.toFixed(name === "Probability" ? 2 : 3)];
}
