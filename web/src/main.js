// Entry of the chat page: everything that runs in the browser is imported from here.

const app = document.getElementById("app");
if (app) app.textContent = "gemmule";
