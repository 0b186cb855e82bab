// The frame around both views: which is shown, the theme, and what state the server is in.

import { showChat } from "./chat.js";
import { showEngine } from "./engine.js";
import { get } from "./server.js";
import { load, save } from "./store.js";

const $ = (id) => document.getElementById(id);

// Behind --root-path, the server is asked at addresses relative to the page's.
if (!location.pathname.endsWith("/")) location.replace(`${location.pathname}/${location.search}${location.hash}`);

function show() {
  const engine = location.hash === "#engine";
  $("chat-view").hidden = engine;
  $("engine-view").hidden = !engine;
  $("menu").hidden = $("settings-toggle").hidden = engine;
  $("to-chat").toggleAttribute("aria-current", !engine);
  $("to-engine").toggleAttribute("aria-current", engine);
  showEngine(engine);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function changeTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
  save("theme", document.documentElement.dataset.theme);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Say what the server is doing until it is ready, and again whenever it is not.
async function watch() {
  let wait = 10_000;
  try {
    await get("health");
    if (!$("notice").hidden || $("model").textContent === "tgi") await ready();
  } catch (error) {
    wait = 1000;
    notice(error.status ? `The server is not ready: ${error.message}` : "The server does not answer.");
  }
  setTimeout(watch, wait);
}

async function ready() {
  const { data: [model] } = await get("v1/models");
  $("model").textContent = model.id;
  document.title = `${model.id} · tgi`;
  notice("");
}

setTheme(load("theme"));
$("theme").addEventListener("click", changeTheme);
addEventListener("hashchange", show);
showChat();
show();
watch();
