// The page put together: landmarks, panels, and what the keys do.

import { announcements, announce, notify } from "./ui/announcer.js";
import { Composer } from "./ui/composer.js";
import { ConversationList } from "./ui/conversation_list.js";
import { confirmDialog } from "./ui/dialogs/ask.js";
import { h, iconButton } from "./ui/dom.js";
import { Drawer } from "./ui/drawer.js";
import { acceptFiles } from "./ui/file_drop.js";
import { logo } from "./ui/logo.js";
import { ModelPicker } from "./ui/model_picker.js";
import { SettingsPanel } from "./ui/settings_panel.js";
import { listen, shortcut, showHelp } from "./ui/shortcuts.js";
import { speakAnswers } from "./ui/speaker.js";
import { Transcript } from "./ui/transcript.js";
import { welcome } from "./ui/welcome.js";
import { branchFrom } from "./generation/tokens.js";

/** @typedef {import("./types.js").Message} Message */

/** @param {import("./app_state.js").AppState} state @param {HTMLElement} root */
export function buildPage(state, root) {
  const composer = new Composer(state);
  const transcript = new Transcript(
    state,
    messageActions(state),
    welcome((text) => composer.fill(text)),
  );
  transcript.onfocuslost = () => composer.focus();
  const title = h("h1", { class: "title" });
  const main = h("main", { id: "main" });
  const panel = h(
    "aside",
    { id: "panel", class: "drawer panel", "aria-label": "Settings" },
    new SettingsPanel(state).element,
  );
  const nav = h("nav", { id: "sidebar", class: "drawer sidebar", "aria-label": "Conversations" });

  /** @type {Drawer[]} */
  const drawers = [];
  /** @param {Drawer} opened */
  const onsettle = (opened) => {
    for (const drawer of drawers) if (drawer !== opened) drawer.giveWay();
  };
  const list = new ConversationList(state, () => {
    sidebar.giveWay();
    composer.focus();
  });
  nav.append(h("p", { class: "brand" }, logo(), "gemmule"), list.element);
  const sidebar = new Drawer({
    element: nav,
    main,
    icon: "menu",
    label: "Conversations",
    open: true,
    onsettle,
  });
  const settings = new Drawer({
    element: panel,
    main,
    icon: "settings",
    label: "Settings",
    open: false,
    onsettle,
  });
  drawers.push(sidebar, settings);

  const shortcuts = [
    shortcut("KeyN", "N", "New conversation", () => {
      state.startChat();
      composer.focus();
    }),
    shortcut("KeyK", "K", "Search conversations", () => {
      if (!sidebar.isOpen) sidebar.open();
      list.focusSearch();
    }),
    shortcut("KeyM", "M", "To the message box", () => composer.focus()),
    shortcut("KeyE", "E", "Edit your last message", () => transcript.last("user")?.edit()),
    shortcut("KeyR", "R", "Answer again", () => {
      const answer = transcript.last("assistant");
      if (answer) messageActions(state).onregenerate(answer.message);
    }),
    shortcut("KeyC", "C", "Continue the last answer", () => {
      const answer = transcript.last("assistant");
      if (answer) messageActions(state).oncontinue(answer.message);
    }),
    shortcut("ArrowUp", "↑", "To the message before", () => transcript.walk(-1)),
    shortcut("ArrowDown", "↓", "To the next message", () => transcript.walk(1)),
    shortcut("KeyS", "S", "Settings", () => settings.toggle()),
    {
      keys: "Escape",
      does: "Stop answering",
      matches: (/** @type {KeyboardEvent} */ event) =>
        event.key === "Escape" && state.running().length > 0,
      run: () => composer.stop(),
    },
    shortcut("KeyH", "H", "These shortcuts", () => showHelp(shortcuts)),
  ];
  listen(shortcuts);

  const help = iconButton("help", "Keyboard shortcuts", () => showHelp(shortcuts));
  main.append(
    h(
      "header",
      { class: "bar" },
      sidebar.button,
      title,
      new ModelPicker(state).element,
      help,
      settings.button,
    ),
    transcript.element,
    composer.element,
  );
  const scrim = h("div", {
    class: "scrim",
    onclick: () => drawers.forEach((drawer) => drawer.giveWay()),
  });
  const skip = h(
    "a",
    {
      class: "skip",
      href: "#prompt",
      onclick: (/** @type {Event} */ event) => {
        event.preventDefault(); // The address names the conversation.
        composer.focus();
      },
    },
    "To the message box",
  );
  root.replaceChildren(skip, nav, main, panel, scrim, announcements());

  acceptFiles(document.documentElement, (files) => composer.addFiles(files));
  speakAnswers(state);
  const retitle = () => {
    const { conversation } = state.chat;
    title.textContent = conversation.title;
    document.title = `${conversation.title} · gemmule`;
  };
  state.on(["chat", "path", "settings"], retitle);
  state.on(["chat"], () => announce(state.chat.conversation.title));
  retitle();
  composer.focus();
}

/**
 * @param {import("./app_state.js").AppState} state
 * @returns {import("./ui/message_view.js").Actions}
 */
function messageActions(state) {
  /**
   * One answer at a time in a conversation, as each is part of what follows.
   * @param {() => Promise<void>} act
   */
  const alone = (act) => {
    if (state.running().length) notify("An answer is being made. Stop it first.");
    else if (!state.models.length) notify("There is no connection to the server.");
    else act().catch((error) => notify(String(error)));
  };
  const chat = () => state.chat;
  return {
    onregenerate: (message) =>
      alone(async () => {
        const user = message.parent && chat().tree.byId.get(message.parent);
        const models = chat()
          .tree.pairOf(message)
          .map(({ runs }) => runs?.at(-1)?.model ?? "");
        if (user)
          await state.answer(
            user,
            message.pair ? models.filter((name) => state.model(name)) : undefined,
          );
      }),
    onedit: (message, text) =>
      alone(async () => {
        if (message.role === "user")
          return state.send(message.parent, { text, files: message.files ?? [] });
        const edited = chat().add({
          parent: message.parent,
          role: "assistant",
          content: text,
          edited: true,
        });
        await chat().save(edited);
        state.emit("path");
      }),
    oncontinue: (message) => {
      if (state.isFull(message)) notify("The context is full: this model can write no more here.");
      else alone(() => state.goOn(message));
    },
    onretry: (message) => alone(() => state.retry(message)),
    onbranch: (message, piece, choice) =>
      alone(async () => {
        const branch = branchFrom(message, piece, choice);
        await state.goOn(chat().add({ parent: message.parent, role: "assistant", ...branch }));
      }),
    ondelete: (message) =>
      alone(async () => {
        const sure = await confirmDialog(
          "Delete from here on?",
          "This message and all that follow it are deleted from this browser.",
          "Delete",
        );
        if (!sure) return;
        await chat().remove(message);
        state.emit("path");
        announce("Deleted");
      }),
    onselect: (message) => {
      chat()
        .select(message)
        .catch((error) => notify(String(error)));
      state.emit("path");
    },
  };
}
