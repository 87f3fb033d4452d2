// Asks for the API key when the server wants one.

import { key } from "../../api/client.js";
import { promptDialog } from "./ask.js";

/** @returns {Promise<boolean>} whether a key was given */
export async function askForKey() {
  const value = await promptDialog("This server wants an API key", "API key", "", {
    type: "password",
    hint: key.get()
      ? "The key given before was not accepted. It is kept until this tab is closed."
      : "It is kept until this tab is closed, and sent to this server only.",
    action: "Use this key",
  });
  if (!value?.trim()) return false;
  key.set(value.trim());
  return true;
}
