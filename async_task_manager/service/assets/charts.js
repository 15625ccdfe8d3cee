// Two charts of the last five minutes, a point per second.

import { clock, el, number, span } from "./dom.js";

const SECONDS = 300;
const seconds = new Map(); // by second: [at, succeeded, failed, p50, p95]
let charts = [];

export function remember(points, now) {
  for (const point of points) seconds.set(point[0], point);
  for (const at of seconds.keys()) if (at < now - SECONDS - 5) seconds.delete(at);
}

function columns(now) {
  const last = Math.floor(now) - 1; // the present second isn't over
  const at = Array.from({ length: SECONDS }, (_, i) => last - SECONDS + 1 + i);
  const column = (i, none) => at.map((second) => seconds.get(second)?.[i] ?? none);
  return { at, succeeded: column(1, 0), failed: column(2, 0), p50: column(3, null), p95: column(4, null) };
}

function options(width, height, series, format) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const font = "12px system-ui, sans-serif";
  return {
    width,
    height,
    legend: { show: false },
    cursor: { points: { size: 6 }, drag: { setScale: false }, y: false },
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(high * 1.15, format === span ? 0.01 : 1)] } },
    axes: [
      { ...axis, font, size: 30, space: 70, values: (_, ticks) => ticks.map((at) => clock(at).slice(-8)) },
      { ...axis, font, size: 58, space: 34, values: (_, ticks) => ticks.map((value) => format(value)) },
    ],
    series: [
      {},
      ...series.map(({ name, line, fill, lone }) => ({
        label: name,
        stroke: colour(line),
        width: 1.5,
        fill: fill ? `${colour(line)}22` : undefined,
        points: { show: lone, size: 3 },
        spanGaps: false,
        value: (_, value) => (value === null ? "–" : format(value)),
      })),
    ],
    plugins: [tip(series, format)],
  };
}

// What the point under the cursor says.
function tip(series, format) {
  const node = el("div", { class: "u-tip", hidden: true });
  return {
    hooks: {
      init: (chart) => chart.over.append(node),
      setCursor: (chart) => {
        const { idx, left } = chart.cursor;
        node.hidden = idx === null || idx === undefined || left < 0;
        if (node.hidden) return;
        const values = series.map(({ name }, i) => {
          const value = chart.data[i + 1][idx];
          return `${name} ${value === null ? "–" : format(value)}`;
        });
        node.textContent = [clock(chart.data[0][idx]), ...values].join(" · ");
        const most = chart.over.clientWidth - node.offsetWidth - 4;
        node.style.left = `${Math.max(0, Math.min(left + 10, most))}px`;
        node.style.top = "2px";
      },
    },
  };
}

const KINDS = [
  {
    id: "chart-ends",
    format: number,
    data: (c) => [c.at, c.succeeded, c.failed],
    series: [
      { name: "succeeded", line: "--ok", fill: true, lone: false },
      { name: "failed", line: "--bad", fill: true, lone: false },
    ],
  },
  {
    id: "chart-waits",
    format: span,
    data: (c) => [c.at, c.p50, c.p95],
    series: [
      { name: "p50", line: "--accent", fill: false, lone: true },
      { name: "p95", line: "--warn", fill: false, lone: true },
    ],
  },
];

export function draw(now) {
  const found = columns(now);
  for (const { kind, chart } of charts) chart.setData(kind.data(found));
}

// Anew for another theme.
export function build(now) {
  for (const { chart, watch } of charts) {
    watch.disconnect();
    chart.destroy();
  }
  const found = columns(now);
  charts = KINDS.map((kind) => {
    const place = document.getElementById(kind.id);
    const size = () => ({ width: Math.max(200, place.clientWidth), height: Math.max(120, place.clientHeight) });
    const { width, height } = size();
    const chart = new uPlot(options(width, height, kind.series, kind.format), kind.data(found), place);
    const watch = new ResizeObserver(() => chart.setSize(size()));
    watch.observe(place);
    return { kind, chart, watch };
  });
}
