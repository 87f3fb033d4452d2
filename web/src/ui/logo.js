// A gemmule: the bud of a sponge, with what the sponge was inside.

const SPACE = "http://www.w3.org/2000/svg";
/** Center and radius, in a box of 32 by 32. @type {[number, number, number][]} */
const CELLS = [
  [13, 13, 2.2],
  [18.5, 12, 1.6],
  [12, 18.5, 1.7],
  [17.5, 17.5, 2.5],
  [21.5, 16, 1.2],
];

export function logo() {
  const svg = document.createElementNS(SPACE, "svg");
  svg.setAttribute("viewBox", "0 0 32 32");
  svg.setAttribute("class", "logo");
  svg.setAttribute("aria-hidden", "true");
  /** @param {number} cx @param {number} cy @param {number} r @param {string} className */
  const circle = (cx, cy, r, className) => {
    const element = document.createElementNS(SPACE, "circle");
    for (const [name, value] of Object.entries({ cx, cy, r, class: className }))
      element.setAttribute(name, String(value));
    svg.append(element);
  };
  circle(16, 15.5, 11, "shell");
  for (const [cx, cy, r] of CELLS) circle(cx, cy, r, "cell");
  circle(26.5, 26, 3, "bud");
  return svg;
}
