// Where a message is written: text, files, send and stop, and how full the context is.

import { readTextFile } from "../chats/text_files.js";
import { taken } from "../generation/context.js";
import { notify } from "./announcer.js";
import { frame, h, iconButton } from "./dom.js";
import { count, plural } from "./figures.js";

/** Milliseconds without a key before a draft is saved. */
const DRAFT_AFTER = 400;
/** Characters from which a pasted text becomes a file. */
const LONG_PASTE = 8000;

export class Composer {
  #state;
  /** @type {import("../types.js").TextFile[]} */
  #files = [];
  #timer = 0;
  #clock = 0;
  #chat;
  #area = h("textarea", {
    id: "prompt",
    rows: 1,
    placeholder: "Write a message",
    "aria-label": "Message",
    dir: "auto",
  });
  #chips = h("ul", { class: "chips", "aria-label": "Attached files", hidden: true });
  #send = iconButton("send", "Send", () => this.send(), { class: "button icon-button primary" });
  #stop = iconButton("stop", "Stop answering", () => this.stop(), {
    class: "button icon-button primary",
    hidden: true,
  });
  #gauge = h("meter", { min: 0, id: "context-gauge" });
  #gaugeText = h("span", { class: "gauge-text" });
  #picker = h("input", { type: "file", multiple: true, hidden: true });
  #notice = h("span", { class: "notice", role: "status" });

  /** @param {import("../app_state.js").AppState} state */
  constructor(state) {
    this.#state = state;
    this.#chat = state.chat;
    const attach = iconButton("attach", "Attach text files", () => this.#picker.click());
    this.#picker.addEventListener("change", () => {
      this.addFiles([...(this.#picker.files ?? [])]);
      this.#picker.value = "";
    });
    this.#area.addEventListener("input", () => this.#changed());
    this.#area.addEventListener("keydown", (event) => {
      // An Enter that ends the composition of a character sends nothing.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.#area.addEventListener("paste", (event) => this.#paste(event));
    this.element = h(
      "form",
      {
        class: "composer",
        "aria-label": "New message",
        onsubmit: (/** @type {Event} */ event) => event.preventDefault(),
      },
      h(
        "div",
        { class: "box" },
        this.#chips,
        this.#area,
        this.#picker,
        h("div", { class: "row" }, attach, h("span", { class: "grow" }), this.#send, this.#stop),
      ),
      h(
        "div",
        { class: "status" },
        this.#notice,
        h("label", { class: "gauge" }, this.#gaugeText, this.#gauge),
      ),
    );
    state.on(["chat"], () => this.#load());
    state.on(["running", "server", "models", "path", "chat", "settings"], () => this.#update());
    addEventListener("pagehide", () => this.#saveDraft());
    this.#load();
    this.#update();
  }

  focus() {
    this.#area.focus();
  }

  stop() {
    this.#state.stop();
    this.focus();
  }

  async send() {
    const text = this.#area.value.trim();
    if (!text && !this.#files.length) return;
    if (this.#state.running().length)
      return notify("The answer before is still being made. Stop it to send another message.");
    if (this.#state.server === "locked") await this.#state.connect(); // This asks for the key.
    if (!this.#state.models.length)
      return notify("There is no connection to the server yet. Your message is kept.");
    const draft = { text, files: this.#files };
    this.#area.value = "";
    this.#files = [];
    this.#changed();
    this.#saveDraft();
    await this.#state.send(this.#state.chat.path.at(-1)?.id ?? null, draft);
  }

  /** Puts a text into the box, where one can change it before it is sent. @param {string} text */
  fill(text) {
    this.#area.value = text;
    this.#changed();
    this.focus();
  }

  /** @param {File[]} files */
  async addFiles(files) {
    for (const file of files) {
      try {
        this.#files.push(await readTextFile(file));
      } catch (error) {
        notify(error instanceof Error ? error.message : String(error));
      }
    }
    this.#changed();
    this.focus();
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (!files.length && text.length < LONG_PASTE) return;
    event.preventDefault();
    if (files.length) this.addFiles(files);
    else {
      this.#files.push({ name: `pasted-${this.#files.length + 1}.txt`, text });
      this.#changed();
    }
  }

  #changed() {
    this.#drawChips();
    this.#resize();
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#saveDraft(), DRAFT_AFTER);
  }

  // As high as its text, up to what the style allows.
  #resize = frame(() => {
    this.#area.style.setProperty("height", "auto");
    this.#area.style.setProperty("height", `${this.#area.scrollHeight}px`);
  });

  #drawChips() {
    this.#chips.hidden = !this.#files.length;
    this.#chips.replaceChildren(
      ...this.#files.map((file, index) =>
        h(
          "li",
          {},
          file.name,
          h("small", {}, plural(file.text.length, "character")),
          iconButton("close", `Remove ${file.name}`, () => {
            this.#files.splice(index, 1);
            this.#changed();
            this.focus();
          }),
        ),
      ),
    );
  }

  /** A conversation that is not in the store shares its draft with all new ones. */
  get #draftKey() {
    return this.#chat.isStored ? this.#chat.conversation.id : "";
  }

  async #load() {
    if (this.#chat !== this.#state.chat) {
      this.#saveDraft();
      this.#chat = this.#state.chat;
    }
    const chat = this.#chat;
    const draft = await this.#state.store.draft(this.#draftKey).catch(() => undefined);
    if (chat !== this.#chat) return;
    this.#area.value = draft?.text ?? "";
    this.#files = draft?.files ?? [];
    this.#drawChips();
    this.#resize();
  }

  #saveDraft() {
    clearTimeout(this.#timer);
    const draft = { text: this.#area.value, files: this.#files };
    this.#state.store.saveDraft(this.#draftKey, draft).catch(() => {});
  }

  #update() {
    const running = this.#state.running();
    const focused = document.activeElement === this.#send || document.activeElement === this.#stop;
    this.#send.hidden = running.length > 0;
    this.#stop.hidden = running.length === 0;
    if (focused) (running.length ? this.#stop : this.#send).focus();
    this.#notice.textContent = {
      ready: "",
      connecting: "Connecting",
      locked: "The server wants an API key. Send your message to give it.",
      lost: "The server does not answer. Trying again; what you write is kept.",
    }[this.#state.server];
    this.#updateGauge();
    clearInterval(this.#clock);
    if (running.length) this.#clock = window.setInterval(() => this.#updateGauge(), 500);
  }

  #updateGauge() {
    const runs = this.#state.chat.path.flatMap(({ runs }) => runs?.at(-1) ?? []);
    const size = this.#state.model(runs.at(-1)?.model ?? this.#state.chosenModels[0])?.gemmule
      ?.context_length;
    this.#gauge.hidden = !size;
    this.#gaugeText.textContent = "";
    if (!size) return;
    // An answer that failed at once says nothing: what is known of the one before it holds.
    const used = runs.map((run) => takenBy(run, this.#state.running())).findLast(Boolean) ?? 0;
    this.#gauge.max = size;
    this.#gauge.high = size * 0.8;
    this.#gauge.optimum = 0;
    this.#gauge.value = used;
    this.#gaugeText.textContent = `Context ${count(used)} of ${count(size)} tokens`;
  }
}

/**
 * Tokens of the context that an answer's last run takes, so far if it is being made.
 * @param {import("../types.js").Run} run
 * @param {import("../generation/generation.js").Generation[]} running
 */
function takenBy(run, running) {
  const generation = running.find(({ answer }) => answer.runs?.includes(run));
  return generation?.taken ?? taken(run);
}
