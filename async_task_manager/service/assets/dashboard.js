// Which page is shown, and what people do.

import { follow, request } from "./api.js";
import { build, draw, remember } from "./charts.js";
import { el, setText, toast } from "./dom.js";
import { show } from "./overview.js";
import { taskPage, userPage } from "./pages.js";

const overview = document.getElementById("overview");
const page = document.getElementById("page");
const status = document.getElementById("state");
const pause = document.getElementById("pause");
const query = document.getElementById("query");

let state = null;
let received = 0;
const now = () => (state ? state.at + (performance.now() - received) / 1000 : Date.now() / 1000);

// ---- live ---------------------------------------------------------------------------------------

function render() {
  if (!state || document.hidden || overview.hidden) return;
  show(state, now());
  draw(now());
}

function tell(kind, text) {
  status.className = `state ${kind}`;
  setText(status, text);
}

function onSnapshot(snapshot) {
  const { series, ...rest } = snapshot;
  const first = state === null;
  state = rest;
  received = performance.now();
  remember(series, state.at);
  tell(state.paused ? "paused" : "live", state.paused ? "paused: nothing is started" : "live");
  setText(pause, state.paused ? "Resume" : "Pause");
  pause.disabled = false;
  document.title = state.queued ? `(${state.queued}) Tasks` : "Tasks";
  if (first) build(now());
  render();
}

function onLost() {
  tell("lost", "no connection, trying again …");
  pause.disabled = true;
}

// ---- pages --------------------------------------------------------------------------------------

let turn = 0;

async function route() {
  const mine = ++turn;
  const [, kind, rest] = location.hash.match(/^#\/(task|user)\/(.+)$/) ?? [];
  overview.hidden = Boolean(kind);
  page.hidden = !kind;
  if (!kind) {
    delete page.dataset.shows;
    render();
    return;
  }
  page.replaceChildren(el("p", { class: "empty" }, "…"));
  delete page.dataset.shows;
  let name;
  try {
    name = decodeURIComponent(rest);
  } catch {
    name = rest;
  }
  while (mine === turn) {
    let over = false;
    try {
      const place = mine === turn ? page : el("div");
      if (kind === "task") over = await taskPage(place, name);
      else await userPage(place, name);
    } catch (error) {
      if (mine === turn) page.replaceChildren(el("section", { class: "panel" }, el("h2", {}, "Not found"), el("p", { class: "error" }, error.message)));
      if (error.status) return;
    }
    if (over) return;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// ---- what people do -----------------------------------------------------------------------------

pause.addEventListener("click", async () => {
  pause.disabled = true;
  try {
    const { paused } = await request("POST", state.paused ? "/resume" : "/pause");
    toast(paused ? "Paused: what runs goes on, nothing new starts." : "Going on.");
  } catch (error) {
    toast(error.message);
  }
  pause.disabled = false;
});

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text) return;
  location.hash = /^\d+-[\w-]{10,}$/.test(text) ? `#/task/${encodeURIComponent(text)}` : `#/user/${encodeURIComponent(text)}`;
  query.blur();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement && event.target.type !== "checkbox";
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (typing) event.target.blur();
    else location.hash = "#/";
  }
});

const root = document.documentElement;
const chosen = localStorage.getItem("atm-theme");
if (chosen) root.dataset.theme = chosen;
const dark = matchMedia("(prefers-color-scheme: dark)");

document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("atm-theme", root.dataset.theme);
  if (state) build(now());
});
dark.addEventListener("change", () => state && build(now()));

addEventListener("hashchange", () => {
  route();
  document.getElementById("main").focus();
});
document.addEventListener("visibilitychange", render);
setInterval(render, 1000);
route();
follow(onSnapshot, onLost);
