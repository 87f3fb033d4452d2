// An answer token by token: how likely each was, what else could have come, and going on from that.

import { percent, piecesOf, surprise, visible } from "../generation/tokens.js";
import { h, iconButton } from "./dom.js";

/** @typedef {import("../generation/tokens.js").Piece} Piece */
/** @typedef {import("../types.js").TokenChoice} TokenChoice */

const HELP =
  "Arrow keys walk through the tokens, Enter goes to the alternatives, Escape comes back. " +
  "Shaded tokens were less likely.";

/**
 * @param {import("../types.js").Message} answer
 * @param {(piece: Piece, choice: TokenChoice) => void} onbranch
 */
export function tokenView(answer, onbranch) {
  const pieces = piecesOf(answer);
  const details = h("div", { class: "token-details", role: "group", "aria-label": "Alternatives" });
  const strip = h("div", { class: "token-strip", role: "group", "aria-label": `Tokens. ${HELP}` });
  /** @type {HTMLButtonElement[]} */
  const buttons = [];
  let current = -1;

  /** @param {number} index */
  function show(index) {
    if (index === current) return;
    buttons[current]?.setAttribute("tabindex", "-1");
    buttons[current]?.removeAttribute("aria-current");
    current = index;
    const button = buttons[index];
    const piece = shown[index];
    if (!button || !piece) return;
    button.setAttribute("tabindex", "0");
    button.setAttribute("aria-current", "true");
    details.replaceChildren(...detailsOf(piece, (choice) => onbranch(piece, choice)));
  }

  /** @type {Piece[]} */
  const shown = [];
  for (const piece of pieces) {
    const [token] = piece.tokens;
    if (!token) {
      strip.append(piece.text);
      continue;
    }
    const index = shown.push(piece) - 1;
    const level = surprise(Math.min(...piece.tokens.map(({ logprob }) => logprob)));
    const label = `${visible({ text: piece.text, logprob: 0 })}, ${percent(token.logprob)}`;
    const button = h(
      "button",
      {
        type: "button",
        class: `token surprise-${level}${token.chosen ? " chosen" : ""}`,
        tabindex: "-1",
        "aria-label": label,
        onfocus: () => show(index),
        onpointerenter: () => show(index),
      },
      // A line's end has no width to point at.
      piece.text.includes("\n") ? `${piece.text.replace(/\n[^]*/, "")}↵` : piece.text,
    );
    buttons.push(button);
    strip.append(button, piece.text.match(/\n[^]*/)?.[0] ?? "");
  }

  strip.addEventListener("click", (event) => {
    if (event.target instanceof HTMLElement && event.target.closest(".token"))
      details.querySelector("button")?.focus();
  });
  strip.addEventListener("keydown", (event) => {
    const last = buttons.length - 1;
    const steps = {
      ArrowRight: current + 1,
      ArrowDown: current + 1,
      ArrowLeft: current - 1,
      ArrowUp: current - 1,
      Home: 0,
      End: last,
    };
    const to = steps[/** @type {keyof typeof steps} */ (event.key)];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(last, to))]?.focus();
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    buttons[current]?.focus();
  });

  if (buttons.length) show(0);
  else
    details.append(
      h(
        "p",
        { class: "hint" },
        "This answer was made without token probabilities. They can be asked for in the settings.",
      ),
    );
  return h("div", { class: "token-view" }, strip, details);
}

/** @param {Piece} piece @param {(choice: TokenChoice) => void} onbranch */
function detailsOf(piece, onbranch) {
  const [token] = piece.tokens;
  if (!token) return [];
  const chosen = token.chosen ? " · chosen by you" : "";
  const parts =
    piece.tokens.length > 1 ? ` · first of ${piece.tokens.length} tokens of one character` : "";
  const title = h(
    "p",
    {},
    h("code", {}, visible(token)),
    ` ${percent(token.logprob)}${chosen}${parts}`,
  );
  if (!token.alternatives.length) return [title];
  const rows = token.alternatives.map((choice) => {
    const same = choice.text === token.text && String(choice.bytes) === String(token.bytes);
    return h(
      "li",
      {},
      h("code", {}, visible(choice)),
      bar(choice),
      h("span", {}, percent(choice.logprob)),
      action(choice, same, onbranch),
    );
  });
  return [title, h("ul", {}, ...rows)];
}

/** @param {TokenChoice} choice */
function bar(choice) {
  const meter = h("meter", { min: 0, max: 1, "aria-hidden": "true" });
  meter.value = Math.exp(choice.logprob);
  return meter;
}

/**
 * @param {TokenChoice} choice
 * @param {boolean} same
 * @param {(choice: TokenChoice) => void} onbranch
 */
function action(choice, same, onbranch) {
  if (same) return h("span", { class: "hint" }, "in the answer");
  if (choice.bytes) return h("span", { class: "hint" }, "part of a character");
  if (!choice.text) return h("span", { class: "hint" }, "ends the answer");
  const button = iconButton("branch", "Go on", () => onbranch(choice), { text: true });
  button.append(h("span", { class: "wide-only" }, "from this one"));
  button.setAttribute(
    "aria-label",
    `Go on from this one: ${visible(choice)}, ${percent(choice.logprob)}`,
  );
  return button;
}
