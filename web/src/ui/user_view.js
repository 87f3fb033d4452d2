// A message of the user.

import { h } from "./dom.js";
import { plural } from "./figures.js";

/** @param {import("../types.js").Message} message */
export function userContent(message) {
  const files = (message.files ?? []).map(({ name, text }) =>
    h(
      "details",
      { class: "file" },
      h("summary", {}, name, h("small", {}, ` ${plural(text.split("\n").length, "line")}`)),
      h("pre", { tabindex: "0", "aria-label": name }, text),
    ),
  );
  return h(
    "div",
    { class: "user-content" },
    ...files,
    message.content && h("p", { dir: "auto" }, message.content),
  );
}
