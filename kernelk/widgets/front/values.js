// What a value is like: a small histogram for a row; figures, histogram and heat map or text for the one that is open.

import { h, number, s, shape, size } from "./dom.js";

export function sparkline(found, width = 56, height = 18) {
  const counts = found.histogram?.counts;
  if (!counts?.length) return null;
  const most = Math.max(...counts);
  const step = width / counts.length;
  const drawn = counts.map((count, i) => {
    const tall = count ? Math.max(1, (height * count) / most) : 0;
    return s("rect", { x: i * step, y: height - tall, width: Math.max(0.5, step - 0.6), height: tall });
  });
  return s("svg", { class: "kk-spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...drawn);
}

export function notFinite(found) {
  return [found.nan ? `${found.nan} NaN` : "", found.inf ? `${found.inf} Inf` : ""].filter(Boolean).join(", ");
}

export function range(found) {
  if (found.min === null || found.min === undefined) return "";
  return found.min === found.max ? number(found.min, 3) : `${number(found.min, 3)} … ${number(found.max, 3)}`;
}

function histogram(found) {
  const { counts, edges } = found.histogram;
  const width = 280;
  const height = 90;
  const most = Math.max(...counts);
  const step = width / counts.length;
  const bars = counts.map((count, i) => {
    const tall = count ? Math.max(1, (height * count) / most) : 0;
    const words = `${number(edges[i])} to ${number(edges[i + 1])}: ${count}`;
    const place = { x: i * step, y: height - tall, width: Math.max(1, step - 1), height: tall };
    return s("rect", place, s("title", {}, words));
  });
  const label = `Histogram of ${found.looked_at} values from ${number(edges[0])} to ${number(edges.at(-1))}`;
  const line = s("line", { x1: 0, x2: width, y1: height, y2: height, class: "kk-axis" });
  const drawing = s("svg", { class: "kk-histogram", viewBox: `0 0 ${width} ${height + 2}`, role: "img", "aria-label": label }, ...bars, line);
  const ends = h("div", { class: "kk-ends" }, h("span", {}, number(edges[0])), h("span", {}, number(edges.at(-1))));
  return h("figure", { class: "kk-figure" }, drawing, ends, h("figcaption", {}, `distribution of ${found.looked_at} values`));
}

// The values' places between the smallest and the largest, and for what isn't finite a sign.
function heatMap(preview) {
  const { values, rows, columns } = preview;
  const finite = values.flat().filter((value) => typeof value === "number");
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const cell = Math.max(6, Math.min(22, Math.floor(320 / Math.max(rows, columns))));
  const cells = [];
  values.forEach((row, y) =>
    row.forEach((value, x) => {
      const place = { x: x * cell, y: y * cell, width: cell, height: cell };
      const words = s("title", {}, `[${y}, ${x}] ${number(value, 6)}`);
      if (typeof value === "number") {
        const part = high > low ? (value - low) / (high - low) : 0.5;
        cells.push(s("rect", { ...place, class: "kk-heat", style: { fillOpacity: String(0.08 + 0.92 * part) } }, words));
        return;
      }
      cells.push(s("rect", { ...place, class: "kk-heat-bad" }, words));
      const cross = `M${place.x + 1},${place.y + 1}l${cell - 2},${cell - 2}m0,${2 - cell}l${2 - cell},${cell - 2}`;
      cells.push(s("path", { d: cross, class: "kk-heat-cross" }));
    }),
  );
  const label = `Heat map of ${rows} by ${columns} values from ${number(low)} to ${number(high)}`;
  const box = { viewBox: `0 0 ${columns * cell} ${rows * cell}`, width: columns * cell, height: rows * cell };
  const key = h("div", { class: "kk-ends" }, h("span", {}, number(low)), h("span", { class: "kk-scale", "aria-hidden": "true" }), h("span", {}, number(high)));
  return h("div", {}, s("svg", { ...box, class: "kk-heatmap", role: "img", "aria-label": label }, ...cells), finite.length ? key : null);
}

function table(preview) {
  const rows = preview.values.map((row) => h("tr", {}, ...row.map((value) => h("td", {}, number(value)))));
  return h("div", { class: "kk-scroll", tabindex: "0", role: "region", "aria-label": "Values" }, h("table", { class: "kk-values" }, h("tbody", {}, ...rows)));
}

// Two ways to look at the values, by two buttons; small ones are text at first.
function preview(found, mode, choose) {
  const shown = found.preview;
  if (!shown?.rows || !shown.columns) return null;
  const button = (name, words) =>
    h("button", { type: "button", class: "kk-button", "aria-pressed": String(mode === name), onclick: () => choose(name), "data-focus": `mode-${name}` }, words);
  const buttons = h("div", { class: "kk-group", role: "group", "aria-label": "Display values as" }, button("heat", "Heat map"), button("text", "Text"));
  const cut = shown.cut ? h("figcaption", {}, `${shown.cut}: the rest isn't shown`) : null;
  return h("figure", { class: "kk-figure" }, buttons, mode === "heat" ? heatMap(shown) : table(shown), cut);
}

export function firstMode(found) {
  return (found?.preview?.rows ?? 0) * (found?.preview?.columns ?? 0) > 24 ? "heat" : "text";
}

export function details(found, mode, choose) {
  const note = found.note ? h("p", { class: "kk-box kk-info" }, h("span", {}, found.note)) : null;
  if (found.size === null) return [note];
  const origins = { committed: "committed value", fed: "as last fed", shown: "as last shown", evaluated: "evaluated just now" };
  const figures = [
    ["value", [origins[found.origin] ?? "", found.engine ? `by ${found.engine}` : ""].filter(Boolean).join(" ")],
    ["shape", `${shape(found.shape)} ${found.dtype}`],
    ["size", `${found.size} elements, ${size(found.bytes)}`],
    ["min", number(found.min)],
    ["max", number(found.max)],
    ["mean", number(found.mean)],
    ["std", number(found.std)],
    ["NaN", String(found.nan ?? 0)],
    ["infinite", String(found.inf ?? 0)],
  ].filter(([, value]) => value);
  const list = h("dl", { class: "kk-facts" });
  for (const [name, value] of figures) {
    const bad = ["NaN", "infinite"].includes(name) && value !== "0";
    list.append(h("dt", {}, name), h("dd", { class: bad ? "kk-bad" : "" }, bad ? `⚠ ${value}` : value));
  }
  return [note, list, found.histogram ? histogram(found) : null, preview(found, mode, choose)];
}
