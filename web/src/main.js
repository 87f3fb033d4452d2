// Entry of the chat page: everything that runs in the browser is imported from here.

import { markdownView } from "./markdown/view.js";

const app = document.getElementById("app");
if (app) markdownView(app).finish("gemmule");
