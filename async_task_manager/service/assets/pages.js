// The page of a task, and that of a user.

import { request } from "./api.js";
import { clock, count, el, number, span, table, taskLink, toast, userLink } from "./dom.js";

const ENDED = new Set(["SUCCESS", "FAILURE", "REVOKED"]);

const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
const at = (instant) => el("time", { datetime: new Date(instant * 1000).toISOString() }, clock(instant));

export async function taskPage(place, id) {
  const task = await request("GET", `/task/${encodeURIComponent(id)}`);
  const over = ENDED.has(task.task_status);
  const heading = el(
    "div",
    { class: "heading" },
    el("h2", {}, `${task.task} `, el("span", { class: `badge ${task.task_status}` }, task.task_status)),
    over ? null : cancelButton(task),
  );
  const facts = el(
    "dl",
    { class: "facts" },
    ...fact("Id", el("code", {}, task.task_id)),
    ...fact("User", el("a", { href: userLink(task.user_id) }, task.user_id)),
    ...(task.level !== null ? fact("Level", task.level) : []),
    ...(task.priority !== null ? fact("Priority", String(task.priority)) : []),
    ...(task.cost !== null ? fact("Cost", JSON.stringify(task.cost)) : []),
    ...(task.provider !== null ? fact("Provider", task.provider) : []),
    ...(task.valid_after !== null ? fact("Not before", at(task.valid_after)) : []),
    ...fact("Attempts", String(task.attempt)),
    ...(task.position !== null ? fact("Place in line", `${count(task.position)}`) : []),
  );
  const parts = [el("section", { class: "panel" }, heading, facts)];
  if (task.waits_for.length) {
    const reasons = task.waits_for.map(({ what }) => el("li", {}, what));
    parts.push(el("section", { class: "panel", id: "why" }, el("h2", {}, "Why it waits"), el("ul", { class: "reasons" }, ...reasons)));
  }
  parts.push(el("section", { class: "panel", id: "history" }, el("h2", {}, "History"), history(task)));
  if (over && task.task_status !== "REVOKED") {
    const shown = task.task_status === "FAILURE" && task.task_result?.type
      ? `${task.task_result.type}: ${task.task_result.message}`
      : JSON.stringify(task.task_result, null, 2);
    const title = task.task_status === "FAILURE" ? "Error" : "Result";
    parts.push(el("section", { class: "panel" }, el("h2", {}, title), el("pre", { tabindex: "0" }, shown)));
  }
  place.replaceChildren(...parts);
  return over;
}

function history(task) {
  const steps = [el("li", {}, "Submitted", at(task.submitted_at))];
  for (const attempt of task.earlier_attempts) {
    const why = attempt.error ? `${attempt.error.type}: ${attempt.error.message}` : "its result was not liked";
    const ran = attempt.started_at && attempt.ended_at ? ` after ${span(attempt.ended_at - attempt.started_at)}` : "";
    const when = attempt.started_at ? at(attempt.started_at) : null;
    steps.push(el("li", { class: "bad" }, `Attempt ${attempt.attempt} ended${ran}: ${why}`, when));
  }
  if (task.started_at !== null) {
    const waited = span(task.started_at - task.submitted_at);
    const note = task.attempt > 1 ? "" : `, after a wait of ${waited}`;
    steps.push(el("li", {}, `Attempt ${task.attempt} started${note}`, at(task.started_at)));
  }
  if (task.finished_at !== null) {
    const kind = task.task_status === "SUCCESS" ? "ok" : "bad";
    const words = { SUCCESS: "Succeeded", FAILURE: "Failed", REVOKED: "Cancelled" }[task.task_status];
    const ran = task.started_at !== null ? ` after ${span(task.finished_at - task.started_at)}` : "";
    steps.push(el("li", { class: kind }, `${words}${ran}`, at(task.finished_at)));
  } else {
    steps.push(el("li", { class: "next" }, task.task_status === "STARTED" ? "Running" : "Waiting"));
  }
  return el("ol", { class: "history" }, ...steps);
}

let asked = "";

function cancelButton(task) {
  const ask = async (event) => {
    if (asked !== task.task_id) {
      asked = task.task_id;
      event.target.textContent = "Really cancel it?";
      return;
    }
    asked = "";
    event.target.disabled = true;
    try {
      const answer = await request("DELETE", `/task/${encodeURIComponent(task.task_id)}`);
      toast(answer.task_status === "REVOKED" ? "The task is cancelled." : "The task was told to end.");
    } catch (error) {
      toast(error.message);
    }
  };
  const text = asked === task.task_id ? "Really cancel it?" : "Cancel";
  return el("button", { type: "button", class: "danger", onclick: ask, id: "cancel" }, text);
}

const TASKS = [
  { name: "Task", kind: "id", text: (t) => t.task_id.split("-")[0], link: (t) => taskLink(t.task_id), title: (t) => t.task_id },
  { name: "Function", kind: "function", text: (t) => t.task, title: (t) => t.task },
  { name: "Status", kind: "", text: (t) => t.task_status, badge: true },
  { name: "Submitted", kind: "number", text: (t) => clock(t.submitted_at) },
  {
    name: "Waited",
    kind: "number wide",
    text: (t) => (t.started_at === null ? "–" : span(t.started_at - t.submitted_at)),
  },
  {
    name: "Ran",
    kind: "number wide",
    text: (t) => (t.started_at === null || t.finished_at === null ? "–" : span(t.finished_at - t.started_at)),
  },
];

export async function userPage(place, name) {
  const [{ tasks }, { users }] = await Promise.all([
    request("GET", `/tasks?user_id=${encodeURIComponent(name)}`),
    request("GET", `/users?user_id=${encodeURIComponent(name)}`),
  ]);
  const [user] = users;
  let list = place.querySelector("#tasks");
  if (place.dataset.shows !== `user ${name}` || !list) {
    list = el("div", { id: "tasks", class: "scroll" });
    place.replaceChildren(
      el("section", { class: "panel" }, el("div", { class: "heading" }, el("h2", {}, name)), el("dl", { class: "facts", id: "user-facts" })),
      el("section", { class: "panel" }, el("h2", {}, "Latest tasks"), list),
    );
    place.dataset.shows = `user ${name}`;
  }
  const facts = place.querySelector("#user-facts");
  facts.replaceChildren(
    ...fact("Queued", count(user.queued)),
    ...fact("Running", count(user.running)),
    ...(user.recent_use !== null ? fact("Used lately", number(user.recent_use)) : []),
    ...(user.level !== null ? fact("Level of the next task", String(user.level)) : []),
    ...(user.weight !== null ? fact("Weight", number(user.weight)) : []),
  );
  table(list, TASKS, tasks, (t) => t.task_id, "No tasks of this user are kept.");
}
