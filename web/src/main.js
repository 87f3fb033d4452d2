// Entry of the chat page: everything that runs in the browser is imported from here.

import { onKeyNeeded } from "./api/client.js";
import { AppState } from "./app_state.js";
import { openStore } from "./chats/store.js";
import { buildPage } from "./page.js";
import { askForKey } from "./ui/dialogs/key.js";
import { applyTheme } from "./ui/theme.js";

applyTheme();
onKeyNeeded(askForKey);
const root = document.getElementById("app");

/** The address names a conversation of this browser, and nothing else: it never sends anything. */
const named = () => /^#chat=([0-9a-f]+)$/.exec(location.hash)?.[1];

async function start() {
  if (!root) return;
  const state = new AppState(await openStore());
  const opened = named();
  if (opened) await state.openChat(opened);
  buildPage(state, root);
  const remember = () => {
    const address = state.chat.isStored ? `#chat=${state.chat.conversation.id}` : location.pathname;
    if (named() !== (state.chat.isStored ? state.chat.conversation.id : undefined))
      history.pushState(null, "", address);
  };
  state.on(["chat", "list"], remember);
  addEventListener("popstate", async () => {
    const id = named();
    if (!id || !(await state.openChat(id))) state.startChat();
  });
  await state.connect();
}

start().catch((error) => {
  if (root)
    root.textContent = `The page could not start: ${error?.message ?? error}. Is storage allowed in this browser?`;
});
