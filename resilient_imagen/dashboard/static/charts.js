// Charts: bars for each minute of the last hour, and the same numbers as a table.

import { byId, dollars, make, number, reconcile, setText } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 4; // of a bar and its gap, in the picture's units
const HEIGHT = 60;
const sum = (values) => values.reduce((total, each) => total + each, 0);
const seconds = (value) => `${number(value)} s`;

// Each part is stacked on the one before it.
const CHARTS = [
  {
    title: "Images",
    parts: [
      { name: "first route", style: "first", of: (m) => m.images - m.fallback_images },
      { name: "fallback", style: "second", of: (m) => m.fallback_images },
      { name: "calls without an image", style: "failed", of: (m) => m.failed },
    ],
    show: number,
    total: sum,
  },
  {
    title: "Requests to providers",
    parts: [
      { name: "answered", style: "first", of: (m) => m.requests - m.request_failures },
      { name: "failed", style: "failed", of: (m) => m.request_failures },
    ],
    show: number,
    total: sum,
  },
  {
    title: "Waits",
    parts: [
      { name: "longest wait of a call", style: "plain", of: (m) => m.longest_wait_s },
    ],
    show: seconds,
    total: (values) => Math.max(0, ...values),
    totalName: "longest",
  },
  {
    title: "Cost",
    parts: [{ name: "US dollars", style: "plain", of: (m) => m.cost_usd }],
    show: dollars,
    total: sum,
  },
];

const COLUMNS = [
  ["minutes ago", (_, ago) => String(ago)],
  ["calls", (m) => number(m.calls)],
  ["images", (m) => number(m.images)],
  ["from a fallback", (m) => number(m.fallback_images)],
  ["without an image", (m) => number(m.failed)],
  ["requests", (m) => number(m.requests)],
  ["failed requests", (m) => number(m.request_failures)],
  ["waits, all calls", (m) => seconds(m.wait_s)],
  ["longest wait", (m) => seconds(m.longest_wait_s)],
  ["cost", (m) => dollars(m.cost_usd) + (m.unpriced ? ` + ${m.unpriced} unpriced` : "")],
];

export function showMinutes(minutes) {
  reconcile(byId("charts"), CHARTS, (chart) => chart.title, createChart, (figure, chart) =>
    updateChart(figure, chart, minutes));
  if (byId("minutes").closest("details").open) showTable(minutes);
}

function createChart(chart) {
  const figure = make("figure");
  const caption = make("figcaption");
  caption.append(make("strong", "", chart.title), make("span", "now"), make("span", "total"));
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  const legend = make("p", "legend");
  for (const part of chart.parts) legend.append(make("span", `key ${part.style}`, part.name));
  figure.append(caption, picture, legend);
  return figure;
}

function updateChart(figure, chart, minutes) {
  const rows = minutes.map((minute) => chart.parts.map((part) => part.of(minute)));
  const heights = rows.map(sum);
  const highest = Math.max(...heights);
  const total = `${chart.totalName ?? "hour"} ${chart.show(chart.total(heights))}`;
  const now = `this minute ${chart.show(heights.at(-1))}`;
  setText(figure.querySelector(".now"), now);
  setText(figure.querySelector(".total"), total);
  const picture = figure.querySelector("svg");
  const drawn = JSON.stringify(rows);
  if (picture.dataset.drawn === drawn) return;
  picture.dataset.drawn = drawn;
  const parts = chart.parts.map(
    (part, index) => `${part.name} ${chart.show(chart.total(rows.map((row) => row[index])))}`);
  picture.setAttribute("aria-label",
    `${chart.title} per minute, last hour: ${now}, ${total}, maximum ${chart.show(highest)}; ` +
    parts.join(", "));
  picture.setAttribute("viewBox", `0 0 ${minutes.length * WIDTH} ${HEIGHT}`);
  picture.replaceChildren(...rows.flatMap((row, index) => bars(row, index, highest, chart.parts)));
}

function bars(row, index, highest, parts) {
  let base = HEIGHT;
  const drawn = [];
  row.forEach((value, part) => {
    if (!value) return;
    const height = Math.max(1, (value / highest) * (HEIGHT - 2));
    base -= height;
    const bar = document.createElementNS(SVG, "rect");
    bar.setAttribute("class", parts[part].style);
    bar.setAttribute("x", index * WIDTH);
    bar.setAttribute("y", base);
    bar.setAttribute("width", WIDTH - 1);
    bar.setAttribute("height", height);
    drawn.push(bar);
  });
  return drawn;
}

function showTable(minutes) {
  const table = byId("minutes");
  if (!table.tHead) {
    const row = table.createTHead().insertRow();
    for (const [name] of COLUMNS) {
      const cell = make("th", "", name);
      cell.scope = "col";
      row.append(cell);
    }
    table.createTBody();
  }
  const rows = minutes.map((minute, index) => [minute, minutes.length - 1 - index]).reverse();
  reconcile(table.tBodies[0], rows, (_, index) => index,
    () => { const row = make("tr"); row.append(...COLUMNS.map(() => make("td"))); return row; },
    (row, [minute, ago]) => COLUMNS.forEach(([, show], at) => setText(row.cells[at], show(minute, ago))));
}
