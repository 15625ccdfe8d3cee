// Building and updating the page. Whatever comes from outside goes in as text, never as markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The children of a container by key: those that stay keep their focus, selection and place.
export function keyed(container, items, keyOf, make, update) {
  const known = new Map([...container.children].map((node) => [node.dataset.key, node]));
  let place = container.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = known.get(key);
    known.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    if (node === place) place = place.nextElementSibling;
    else container.insertBefore(node, place);
    update(node, item);
  }
  for (const node of known.values()) node.remove();
}

// A table in a container. A column is {name, kind, text(row), link(row), badge}.
export function table(container, columns, rows, keyOf, empty) {
  let body = container.querySelector("tbody");
  if (!rows.length) {
    if (body || !container.firstChild) container.replaceChildren(el("p", { class: "empty" }, empty));
    return;
  }
  if (!body) {
    body = el("tbody");
    const heads = columns.map((c) => el("th", { scope: "col", class: c.kind || "" }, c.name));
    container.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body));
  }
  const make = (row) =>
    el("tr", {}, ...columns.map((c) => el("td", { class: c.kind || "" }, c.link ? el("a") : el("span"))));
  const update = (node, row) =>
    columns.forEach((column, i) => {
      const cell = node.children[i].firstChild;
      setText(cell, column.text(row));
      if (column.link) cell.setAttribute("href", column.link(row));
      if (column.badge) cell.className = `badge ${column.text(row)}`;
      if (column.title) cell.title = column.title(row);
    });
  keyed(body, rows, keyOf, make, update);
}

const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => whole.format(value);
export const number = (value) => numbers.format(value);

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0) seconds = 0;
  if (seconds < 0.0995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function clock(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString([], { hour12: false });
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString()} ${time}`;
}

export const taskLink = (id) => `#/task/${encodeURIComponent(id)}`;
export const userLink = (name) => `#/user/${encodeURIComponent(name)}`;

let hiding = 0;
export function toast(text) {
  const node = document.getElementById("toast");
  node.textContent = text;
  node.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (node.hidden = true), 6000);
}
