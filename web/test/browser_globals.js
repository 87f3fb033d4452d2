// What the page's modules expect of a browser, from jsdom; import it before them.
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!doctype html><body></body>", { pretendToBeVisual: true });
for (const name of ["window", "document", "Node", "Element", "HTMLElement", "Text"]) {
  Object.assign(globalThis, { [name]: window[name] });
}

/** Callbacks of requestAnimationFrame that were not called yet.
 * @type {Map<number, () => void>}
 */
const frames = new Map();
let frameCount = 0;
Object.assign(globalThis, {
  requestAnimationFrame(/** @type {() => void} */ callback) {
    frames.set((frameCount += 1), callback);
    return frameCount;
  },
  cancelAnimationFrame: (/** @type {number} */ frame) => frames.delete(frame),
});

/** Draws the next frame. */
export function nextFrame() {
  const due = [...frames.values()];
  frames.clear();
  for (const callback of due) callback();
}
