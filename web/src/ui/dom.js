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
  branch: "M5 3v10M5 9c4 0 6-1 6-4.5M9 6l2-2.5 2 2.5",
  close: "M4 4l8 8M12 4l-8 8",
  compare: "M3 3h4v10H3zM9 3h4v10H9z",
  copy: "M6 6h7v7H6zM10 6V3H3v7h3",
  down: "M8 3v10M4 9l4 4 4-4",
  edit: "M3 13l.7-3L10.5 3.2l2.3 2.3L6 12.3z",
  help: "M5.5 6a2.5 2.5 0 1 1 3.5 2.3c-.7.3-1 .8-1 1.7M8 12.5v.1",
  menu: "M2.5 4h11M2.5 8h11M2.5 12h11",
  next: "M6 3l5 5-5 5",
  play: "M5 3l8 5-8 5z",
  plus: "M8 3v10M3 8h10",
  previous: "M10 3L5 8l5 5",
  regenerate: "M13 8a5 5 0 1 1-1.5-3.5M12 2v3H9",
  replay: "M3 8a5 5 0 1 0 1.5-3.5M4 2v3h3M8 6v2.5l2 1",
  send: "M8 13V3M4 7l4-4 4 4",
  settings:
    "M2.5 5h6M11.5 5h2M2.5 11h2M7.5 11h6M8.5 5a1.5 1.5 0 1 0 3 0 1.5 1.5 0 1 0-3 0M4.5 11a1.5 1.5 0 1 0 3 0 1.5 1.5 0 1 0-3 0",
  stop: "M4 4h8v8H4z",
  tokens: "M2.5 4.5h4v3h-4zM8.5 4.5h5v3h-5zM2.5 9.5h6v3h-6zM10.5 9.5h3v3h-3z",
  trash: "M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.5 8.5h6l.5-8.5",
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
