// Bars, drawn as plain boxes: what each stands for is written beside it.

import { h } from "./dom.js";

// `bars`: {label, text, detail, seconds, low, high, strong}; seconds may be null. On a logarithmic scale if far apart.
export function bars(items, caption) {
  const known = items.map((item) => item.seconds).filter((value) => value > 0);
  const most = Math.max(...items.map((item) => item.high ?? item.seconds ?? 0), 1e-12);
  const least = known.length ? Math.min(...known) : 1;
  const logarithmic = known.length > 1 && most > 100 * least;
  const floor = least / 2;
  const width = (value) => {
    if (!(value > 0)) return 0;
    const part = logarithmic ? Math.log(value / floor) / Math.log(most / floor) : value / most;
    return 100 * Math.min(1, Math.max(0.004, part));
  };
  const rows = items.map((item) => {
    const filled = h("span", { class: "kk-bar-fill", style: { width: `${width(item.seconds)}%` } });
    const track = h("span", { class: "kk-bar-track", "aria-hidden": "true" }, filled);
    if (item.low > 0 && item.high > item.low) {
      const from = width(item.low);
      const style = { left: `${from}%`, width: `${Math.max(0, width(item.high) - from)}%` };
      track.append(h("span", { class: "kk-bar-interval", style }));
    }
    const label = h("span", { class: "kk-bar-label", title: item.detail || item.label }, item.label);
    const row = h("li", { class: item.strong ? "kk-bar kk-strong" : "kk-bar" }, label, track);
    row.append(h("span", { class: "kk-bar-text" }, item.text));
    if (item.detail) row.append(h("span", { class: "kk-bar-detail" }, item.detail));
    return row;
  });
  const scale = logarithmic ? h("p", { class: "kk-note" }, "The bars' scale is logarithmic.") : null;
  return h("div", {}, h("ul", { class: "kk-bars", "aria-label": caption }, ...rows), scale);
}

// One bar in parts: [[name, seconds, text]]; each part has its own pattern and its words below.
export function parts(entries, most) {
  const total = entries.reduce((sum, [, seconds]) => sum + seconds, 0);
  const track = h("span", { class: "kk-parts", "aria-hidden": "true", style: { width: `${Math.max(1, (100 * total) / most)}%` } });
  const words = h("span", { class: "kk-parts-words" });
  entries.forEach(([name, seconds, text], i) => {
    if (!(seconds > 0)) return;
    track.append(h("span", { class: `kk-part kk-part-${i % 4}`, style: { width: `${(100 * seconds) / total}%` } }));
    words.append(h("span", {}, h("span", { class: `kk-key kk-part-${i % 4}`, "aria-hidden": "true" }), `${name} ${text}`));
  });
  return h("div", { class: "kk-parted" }, h("div", { class: "kk-parts-track" }, track), words);
}
