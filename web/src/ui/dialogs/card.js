// The card of a model: what it is, what it was made of, where it fails.

import { fetchCard } from "../../api/client.js";
import { markdownView } from "../../markdown/view.js";
import { h } from "../dom.js";
import { openDialog } from "./ask.js";

/** @param {string} name */
export async function showCard(name) {
  const body = h(
    "div",
    { class: "markdown", tabindex: "0", role: "region", "aria-label": "Model card" },
    "Loading",
  );
  openDialog(name, [body], "wide");
  try {
    const text = withoutPlaces(withoutFrontMatter(await fetchCard(name)));
    body.replaceChildren();
    markdownView(body).finish(text);
  } catch (error) {
    body.textContent = error instanceof Error ? error.message : String(error);
  }
}

/** Cards of the Hugging Face hub begin with YAML for programs. @param {string} text */
function withoutFrontMatter(text) {
  return text.replace(/^---\r?\n[^]*?\n---\r?\n/, "");
}

/** Links to places in the card become their text: the page has no such places. @param {string} text */
function withoutPlaces(text) {
  return text.replace(/\[([^[\]]*)\]\(#[^()\s]*\)/g, "$1");
}
