// The conversations of this browser: search, open, rename, delete, export and import.

import { newId } from "../chats/chat.js";
import { Search, wordsOf } from "../chats/search.js";
import { exportText, importText } from "../chats/transfer.js";
import { announce, notify } from "./announcer.js";
import { confirmDialog, promptDialog } from "./dialogs/ask.js";
import { h, iconButton } from "./dom.js";
import { plural } from "./figures.js";

/** @typedef {import("../types.js").Conversation} Conversation */

export class ConversationList {
  #state;
  #onopen;
  #query = "";
  #drawn = 0;
  #search = h("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search conversations",
  });
  #list = h("ul", { class: "conversations" });
  #picker = h("input", { type: "file", accept: ".json,application/json", hidden: true });

  /**
   * @param {import("../app_state.js").AppState} state
   * @param {() => void} onopen told when the user goes to a conversation
   */
  constructor(state, onopen) {
    this.#state = state;
    this.#onopen = onopen;
    this.#search.addEventListener("input", () => {
      this.#query = this.#search.value;
      this.draw(true);
    });
    this.#picker.addEventListener("change", () => this.#import());
    this.element = h(
      "div",
      { class: "conversation-list" },
      h(
        "div",
        { class: "row" },
        iconButton("plus", "New conversation", () => this.#startNew(), {
          text: true,
          class: "button grow",
        }),
      ),
      this.#search,
      this.#list,
      h(
        "footer",
        {},
        h("p", { class: "hint" }, "Kept in this browser only. Export what you want to keep."),
        h(
          "div",
          { class: "row" },
          h(
            "button",
            { type: "button", class: "button", onclick: () => this.#exportAll() },
            "Export all",
          ),
          h(
            "button",
            { type: "button", class: "button", onclick: () => this.#picker.click() },
            "Import",
          ),
          this.#picker,
        ),
      ),
    );
    state.on(["list", "chat", "running"], () => this.draw());
    this.draw();
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  #startNew() {
    this.#state.startChat();
    this.#onopen();
  }

  /** @param {boolean} [say] tell a screen reader how many were found */
  async draw(say = false) {
    const turn = ++this.#drawn;
    const all = await this.#state.store.conversations();
    const shown = await this.#matches(all);
    if (turn !== this.#drawn) return;
    const focused = this.#list.contains(document.activeElement)
      ? document.activeElement?.closest("li")?.dataset.id
      : undefined;
    this.#list.replaceChildren(...shown.map((conversation) => this.#item(conversation)));
    if (!shown.length) {
      const text = wordsOf(this.#query).length
        ? "No conversation has all of these words."
        : "No conversations yet.";
      this.#list.append(h("li", { class: "hint" }, text));
    }
    if (focused) {
      /** @type {HTMLElement | null} */ (
        this.#list.querySelector(`[data-id="${focused}"] button`)
      )?.focus();
    }
    if (say) announce(plural(shown.length, "conversation"));
  }

  /** @param {Conversation[]} all */
  async #matches(all) {
    if (!wordsOf(this.#query).length) return all;
    const search = new Search(this.#query);
    for (const { id, title } of all) search.visit(id, title);
    await this.#state.store.visitTexts((id, text) => search.visit(id, text));
    return all.filter(({ id }) => search.found(id));
  }

  /** @param {Conversation} conversation */
  #item(conversation) {
    const { id, title } = conversation;
    const current = this.#state.chat.conversation.id === id;
    const running = this.#state.running(id).length > 0;
    const open = h(
      "button",
      {
        type: "button",
        class: "open",
        "aria-current": current ? "page" : null,
        onclick: () => this.#open(id),
      },
      h("span", { class: "title" }, title),
      running && h("span", { class: "pulse" }),
      running && h("span", { class: "visually-hidden" }, " (being answered)"),
    );
    const tools = h(
      "span",
      { class: "tools" },
      iconButton("edit", `Rename ${title}`, () => this.#rename(conversation), {
        "data-tip": "Rename",
      }),
      iconButton("down", `Export ${title}`, () => this.#export([conversation]), {
        "data-tip": "Export",
      }),
      iconButton("trash", `Delete ${title}`, () => this.#delete(conversation), {
        "data-tip": "Delete",
      }),
    );
    return h("li", { "data-id": id, class: current ? "current" : "" }, open, tools);
  }

  /** @param {string} id */
  async #open(id) {
    if (!(await this.#state.openChat(id))) notify("This conversation was deleted in another tab.");
    this.#onopen();
  }

  /** @param {Conversation} conversation */
  async #rename(conversation) {
    const title = await promptDialog("Rename the conversation", "Name", conversation.title);
    if (!title?.trim()) return;
    // The open conversation is newer in memory than in the store.
    const open = this.#state.chat.conversation;
    const target = open.id === conversation.id ? open : conversation;
    Object.assign(target, { title: title.trim(), named: true });
    await this.#state.store.save(target);
    this.#state.emit("list");
    this.#state.emit("settings");
  }

  /** @param {Conversation} conversation */
  async #delete({ id, title }) {
    const sure = await confirmDialog(
      "Delete the conversation?",
      `“${title}” is deleted from this browser. There is no way back.`,
      "Delete",
    );
    if (!sure) return;
    await this.#state.deleteChat(id);
    announce("Deleted.");
    this.#search.focus();
  }

  async #exportAll() {
    await this.#export(await this.#state.store.conversations());
  }

  /** @param {Conversation[]} conversations */
  async #export(conversations) {
    const chats = await Promise.all(
      conversations.map(async (conversation) => ({
        conversation,
        messages: await this.#state.store.messages(conversation.id),
      })),
    );
    const url = URL.createObjectURL(new Blob([exportText(chats)], { type: "application/json" }));
    const day = new Date().toISOString().slice(0, 10);
    h("a", { href: url, download: `gemmule-conversations-${day}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    announce(`Exported ${plural(chats.length, "conversation")}.`);
  }

  async #import() {
    const [file] = this.#picker.files ?? [];
    this.#picker.value = "";
    if (!file) return;
    try {
      const chats = importText(await file.text(), newId);
      for (const { conversation, messages } of chats)
        await this.#state.store.save(conversation, messages);
      this.#state.emit("list");
      notify(`Imported ${plural(chats.length, "conversation")}.`);
    } catch (error) {
      await confirmDialog(
        "Nothing was imported",
        error instanceof Error ? error.message : String(error),
        null,
      );
    }
  }
}
