// Numbers for reading.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** @param {number} value @returns {string} "1,234" */
export const count = (value) => whole.format(value);

/**
 * Three digits of what matters, without a trailing zero: 0.0123, 1.23, 12.3, 123.
 * @param {number} value
 */
export function short(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 100) return count(value);
  return String(Number(value.toPrecision(3)));
}

/** @param {number} value of a model's parameters: "2.6B", "1.1M" */
export function parameters(value) {
  const units = /** @type {const} */ ([
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "K"],
  ]);
  for (const [size, unit] of units) if (value >= size) return `${short(value / size)}${unit}`;
  return String(value);
}

/** @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/**
 * Joules and grams, in the unit that keeps the figure readable.
 * @param {import("../types.js").Energy} energy
 */
export function energyText({ joules, gco2e }) {
  if (joules === null) return "energy not measured";
  const carbon =
    gco2e === null
      ? ""
      : ` · ${gco2e < 0.1 ? `${short(gco2e * 1000)} mg ` : `${short(gco2e)} g `}CO₂e`;
  return `${short(joules)} J${carbon}`;
}
