// The overview: what waits, runs, and ended, as it changes.

import { request } from "./api.js";
import { clock, count, el, keyed, number, setText, span, table, taskLink, toast, userLink } from "./dom.js";

const place = (id) => document.querySelector(`#${id} > .scroll`);
const note = (id, text) => setText(document.querySelector(`#${id} > h2 > small`), text);
const short = (id) => id.split("-")[0];

function tiles(state) {
  const ended = state.ended;
  const all = [
    ["Queued", count(state.queued)],
    ["Running", count(state.running_count)],
    ["Per second", number(state.per_second)],
    ["Median wait", span(state.wait_p50)],
    ["95 % wait", span(state.wait_p95)],
    ["Succeeded", count(ended.SUCCESS ?? 0)],
    ["Failed", count(ended.FAILURE ?? 0)],
    ["Cancelled", count(ended.REVOKED ?? 0)],
  ];
  keyed(
    document.getElementById("tiles"),
    all,
    ([name]) => name,
    ([name]) => el("div", { class: "tile" }, el("b"), el("span", {}, name)),
    (node, [name, value]) => {
      setText(node.firstChild, value);
      node.classList.toggle("bad", name === "Failed" && value !== "0");
    },
  );
}

const USERS = [
  { name: "User", kind: "name", text: (u) => u.user_id, link: (u) => userLink(u.user_id), title: (u) => u.user_id },
  { name: "Queued", kind: "number", text: (u) => count(u.queued) },
  { name: "Running", kind: "number", text: (u) => count(u.running) },
];
const FAIR = [
  { name: "Lately", kind: "number", text: (u) => (u.recent_use === null ? "–" : number(u.recent_use)) },
  { name: "Level", kind: "number", text: (u) => (u.level === null ? "–" : String(u.level)) },
  { name: "Weight", kind: "number wide", text: (u) => (u.weight === null ? "–" : number(u.weight)) },
];
const LEVELS = [
  { name: "Level", kind: "name", text: ([level]) => level },
  { name: "Queued", kind: "number", text: ([, queued]) => count(queued) },
];

const running = (now) => [
  { name: "Task", kind: "id", text: (t) => short(t.task_id), link: (t) => taskLink(t.task_id), title: (t) => t.task_id },
  { name: "Function", kind: "function", text: (t) => t.task, title: (t) => t.task },
  { name: "User", kind: "name", text: (t) => t.user_id, link: (t) => userLink(t.user_id), title: (t) => t.user_id },
  { name: "Provider", kind: "name wide", text: (t) => t.provider ?? "–" },
  { name: "Attempt", kind: "number wide", text: (t) => String(t.attempt) },
  { name: "Runs for", kind: "number", text: (t) => span(t.started_at === null ? null : now - t.started_at) },
];
const FAILURES = [
  { name: "Task", kind: "id", text: (t) => short(t.task_id), link: (t) => taskLink(t.task_id), title: (t) => t.task_id },
  { name: "User", kind: "name wide", text: (t) => t.user_id, link: (t) => userLink(t.user_id), title: (t) => t.user_id },
  { name: "Then", kind: "", text: (t) => t.status, badge: true },
  { name: "Error", kind: "", text: (t) => (t.error ? `${t.error.type}: ${t.error.message}` : "–") },
  { name: "At", kind: "number", text: (t) => clock(t.at) },
];
const ENDS = [
  { name: "Task", kind: "id", text: (t) => short(t.task_id), link: (t) => taskLink(t.task_id), title: (t) => t.task_id },
  { name: "Function", kind: "function wide", text: (t) => t.task, title: (t) => t.task },
  { name: "User", kind: "name", text: (t) => t.user_id, link: (t) => userLink(t.user_id), title: (t) => t.user_id },
  { name: "Status", kind: "", text: (t) => t.status, badge: true },
  { name: "At", kind: "number", text: (t) => clock(t.at) },
];

function limitRow() {
  const line = el("div", {}, el("span"), el("span", { class: "use" }));
  return el("div", { class: "limit" }, el("h3", { hidden: true }), line, el("progress", { max: 1 }));
}

function limitUse(node, limit, now) {
  const [heading, line, bar] = node.children;
  const [text, use] = line.children;
  const single = limit.key === null || limit.key === undefined;
  heading.hidden = !limit.heads;
  setText(heading, limit.heads ? limit.limit : "");
  setText(text, single ? limit.limit : String(limit.key));
  const capacity = limit.capacity;
  const frees = limit.frees_at !== null && limit.frees_at > now ? `, frees in ${span(limit.frees_at - now)}` : "";
  setText(use, capacity === null ? number(limit.used) : `${number(limit.used)} of ${number(capacity)}${frees}`);
  bar.hidden = capacity === null;
  bar.value = capacity ? Math.min(1, limit.used / capacity) : 0;
  bar.classList.toggle("full", capacity !== null && limit.used >= capacity);
  bar.setAttribute("aria-label", `in use of ${limit.limit}`);
}

// The chain's own; of one that is split by keys, those that are in use, under one heading. What
// has no capacity limits nothing: fairness alone, which the users' table tells of.
function ownLimits(limits) {
  const bounded = limits.filter((limit) => !limit.provider && limit.capacity !== null);
  const own = bounded.filter((limit) => limit.key === null || limit.used > 0);
  return own.map((limit, i) => ({ ...limit, heads: limit.key !== null && own[i - 1]?.limit !== limit.limit }));
}

async function flip(event) {
  const box = event.target;
  const name = box.dataset.provider;
  box.disabled = true;
  try {
    const changed = await request("PATCH", `/providers/${encodeURIComponent(name)}`, { enabled: box.checked });
    box.checked = changed.enabled;
    toast(changed.enabled ? `${name} is switched on` : `${name} is switched off: what runs there goes on`);
  } catch (error) {
    box.checked = !box.checked;
    toast(error.message);
  } finally {
    box.disabled = false;
  }
}

function providerRow(provider) {
  const box = el("input", { type: "checkbox", role: "switch", onchange: flip, "aria-label": `${provider.name} takes tasks` });
  box.dataset.provider = provider.name;
  return el(
    "div",
    { class: "provider" },
    el("div", {}, el("strong", {}, provider.name), el("span", { class: "badge" }), el("label", { class: "switch" }, el("span"), box)),
    el("div", { class: "limits" }),
  );
}

function providerState(node, provider, now) {
  const [, badge, label] = node.firstChild.children;
  setText(badge, `${provider.running} running`);
  setText(label.firstChild, provider.enabled ? "on" : "off");
  const box = label.lastChild;
  if (!box.disabled) box.checked = provider.enabled;
  const limits = provider.limits.map((limit, i) => ({ ...limit, i }));
  node.lastChild.style.display = "block";
  keyed(node.lastChild, limits, (limit) => limit.i, limitRow, (row, limit) => limitUse(row, limit, now));
}

export function show(state, now) {
  tiles(state);
  const fair = state.users.some((user) => user.weight !== null);
  table(place("users"), fair ? [...USERS, ...FAIR] : USERS, state.users, (u) => u.user_id, "Nobody has tasks here.");
  note("users", state.more_users ? `and ${count(state.more_users)} more` : "");
  const levels = Object.entries(state.levels).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  document.getElementById("levels").hidden = !levels.length;
  table(place("levels"), LEVELS, levels, ([level]) => level, "");
  table(place("running"), running(now), state.running, (t) => t.task_id, "Nothing runs.");
  const hidden = state.running_count - state.running.length;
  note("running", hidden > 0 ? `the oldest ${state.running.length} of ${count(state.running_count)}` : "");
  const own = ownLimits(state.limits);
  document.getElementById("limits").hidden = !own.length;
  keyed(place("limits"), own, (l) => `${l.limit} ${l.key}`, limitRow, (row, limit) => limitUse(row, limit, now));
  document.getElementById("providers").hidden = !state.providers.length;
  keyed(place("providers"), state.providers, (p) => p.name, providerRow, (row, provider) => providerState(row, provider, now));
  table(place("failures"), FAILURES, state.failures, (t) => `${t.task_id} ${t.at}`, "Nothing has failed.");
  table(place("ends"), ENDS, state.ends, (t) => t.task_id, "Nothing has ended yet.");
}
