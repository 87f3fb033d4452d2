// Maths as MathML, made by Temml and checked element by element.

import temml from "temml";

const ELEMENTS = new Set([
  "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "merror",
  "mpadded", "mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts",
  "mprescripts", "none", "mtable", "mtr", "mtd", "menclose", "semantics", "span",
]);
const ATTRIBUTES = new Set([
  "class", "style", "display", "displaystyle", "scriptlevel", "mathvariant", "mathsize", "mathcolor",
  "stretchy", "symmetric", "fence", "separator", "form", "lspace", "rspace", "minsize", "maxsize", "movablelimits",
  "largeop", "accent", "accentunder", "linethickness", "width", "height", "depth", "voffset", "columnalign",
  "rowalign", "columnspacing", "rowspacing", "columnlines", "rowlines", "frame", "columnspan", "rowspan",
  "notation", "linebreak",
]);

/** An element that shows the formula; its source where it is not valid TeX.
 * @param {Element} source whose text is the formula, of class "display" or not
 * @param {boolean} open more of the formula may follow
 * @returns {Element}
 */
export function mathElement(source, open) {
  const tex = source.textContent ?? "";
  const displayMode = source.classList.contains("display");
  const shown = document.createElement(source.tagName);
  shown.className = source.className;
  try {
    temml.render(tex, shown, {
      displayMode,
      throwOnError: true,
      trust: false, // no \href, \includegraphics, \class, …
      strict: false,
      maxSize: [20, 200],
      maxExpand: 200,
      macros: { "\\pmb": "\\boldsymbol{#1}" }, // Temml's own sets a style that the page's policy forbids
    });
    check(shown);
  } catch {
    const code = document.createElement("code");
    code.textContent = tex;
    shown.replaceChildren(code);
    if (!open) shown.title = "not valid TeX";
    return shown;
  }
  return shown;
}

/** @param {Element} root */
function check(root) {
  for (const element of root.querySelectorAll("*")) {
    if (!ELEMENTS.has(element.localName)) throw new Error(`${element.localName} in maths`);
    for (const { name } of [...element.attributes]) {
      if (!ATTRIBUTES.has(name)) element.removeAttribute(name);
    }
  }
}
