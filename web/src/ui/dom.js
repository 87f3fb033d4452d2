// Elements made by calls: no HTML is ever parsed, so that trusted types have nothing to refuse.

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * An element with properties, attributes, listeners and children.
 *
 * A property that is a function is a listener ("onclick"); true makes an empty attribute, null,
 * undefined and false make none; everything else is an attribute's text.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, unknown>} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children.flat().filter(isShown));
  return element;
}

/** @param {Child} child @returns {child is Node | string} */
function isShown(child) {
  return child !== null && child !== undefined && child !== false && child !== "";
}

let last = 0;

/** An id for labels and descriptions. */
export function uniqueId() {
  return `e${++last}`;
}

/** Icons are strokes in a box of 16 by 16. */
const ICONS = {
  attach:
    "M13 7.5 8 12.5a3 3 0 0 1-4.3-4.3l5.6-5.5a2 2 0 0 1 2.9 2.8l-5.5 5.6a1 1 0 0 1-1.5-1.5L10 5",
  branch: "M5 3v10M5 9c4 0 6-1 6-4.5M9 6l2-2.500 2 2.500",
  chart: "M3 13V8m5 5V3m5 10V6",
  check: "M3 8.500 6.500 12 13 4.500",
  close: "M4 4l8 8M12 4l-8 8",
  compare: "M3 3h4v10H3zM9 3h4v10H9z",
  copy: "M6 6h7v7H6zM10 6V3H3v7h3",
  down: "M8 3v10M4 9l4 4 4-4",
  edit: "M3 13l.7-3L10.500 3.200l2.300 2.300L6 12.300z",
  help: "M5.500 6a2.500 2.500 0 1 1 3.500 2.300c-.7.300-1 .8-1 1.700M8 12.500v.1",
  menu: "M2.500 4h11M2.500 8h11M2.500 12h11",
  more: "M3.500 8h.1M8 8h.1M12.500 8h.1",
  next: "M6 3l5 5-5 5",
  play: "M5 3l8 5-8 5z",
  plus: "M8 3v10M3 8h10",
  previous: "M10 3L5 8l5 5",
  regenerate: "M13 8a5 5 0 1 1-1.500-3.500M12 2v3H9",
  replay: "M3 8a5 5 0 1 0 1.500-3.500M4 2v3h3M8 6v2.500l2 1",
  search: "M7 3a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM10 10l3.500 3.500",
  send: "M8 13V3M4 7l4-4 4 4",
  settings:
    "M2.500 5h6M11.500 5h2M2.500 11h2M7.500 11h6M8.500 5a1.500 1.500 0 1 0 3 0 1.500 1.500 0 1 0-3 0M4.500 11a1.500 1.500 0 1 0 3 0 1.500 1.500 0 1 0-3 0",
  stop: "M4.500 4.500h7v7h-7z",
  tokens: "M2.500 4.500h4v3h-4zM8.500 4.500h5v3h-5zM2.500 9.500h6v3h-6zM10.500 9.500h3v3h-3z",
  trash: "M3 4.500h10M6 4.500V3h4v1.500M4.500 4.500l.5 8.500h6l.5-8.500",
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon. Its name is shown beside the icon, or in a bubble on hover and focus.
 * @param {keyof typeof ICONS} name
 * @param {string} label
 * @param {(event: MouseEvent) => void} onclick
 * @param {Record<string, unknown> & {text?: boolean}} [options] text: show the name beside the icon
 */
export function iconButton(name, label, onclick, { text = false, ...props } = {}) {
  const named = text ? {} : { "aria-label": label, "data-tip": label };
  const className = text ? "button" : "button icon-button";
  return h(
    "button",
    { type: "button", class: className, ...named, onclick, ...props },
    icon(name),
    text && label,
  );
}

/** Changes the name of an icon button. @param {HTMLElement} button @param {string} label */
export function rename(button, label) {
  if (button.getAttribute("aria-label") === label) return;
  button.setAttribute("aria-label", label);
  button.dataset.tip = label;
}

/**
 * A label with its control, and a hint that a screen reader reads with it.
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [hint]
 */
export function field(label, control, hint) {
  control.id ||= uniqueId();
  const note = hint ? h("small", { id: `${control.id}-hint`, class: "hint" }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, note);
}

/** Runs `draw` with the next frame, however often it is asked for. @param {() => void} draw */
export function frame(draw) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  };
}
