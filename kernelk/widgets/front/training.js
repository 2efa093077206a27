// The loss of each function that trains, call by call, in the colour and dashes of the engine that computed it.

import { h, number, refill, s } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 160;

// By an engine's place in the bar of engines, for all functions.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b0478c", "#8a63d2", "#94751a"];
const DASHES = ["", "9 6", "1 5", "12 5 1 5", "4 5", "16 6 5 6"];

export class Training {
  constructor(panel) {
    this.panel = panel;
    this.losses = { functions: [], hidden: 0 };
    this.el = h("div", { class: "kk-timings" });
    this.draw();
  }

  show(losses) {
    this.losses = losses;
    if (this.panel.selected === "training") this.draw();
  }

  draw() {
    const { functions, hidden } = this.losses;
    const sections = functions.map((one) => this.section(one));
    if (hidden > 0) sections.push(h("p", { class: "kk-note" }, `and ${hidden} more`));
    if (!sections.length) {
      const line = "Nothing has been trained yet: the first output of a K.function with updates is drawn here, call by call, if it is a scalar.";
      sections.push(h("p", { class: "kk-empty" }, line));
    }
    refill(this.el, sections);
  }

  section(one) {
    const row = this.panel.tensors.rows.get(one.key);
    const name = row?.names[0] ?? one.name;
    const last = one.runs[one.runs.length - 1];
    const title = h("h3", {}, `Loss of ${name}, `, h("span", { class: "kk-note" }, `${one.calls} call${one.calls === 1 ? "" : "s"}`));
    const words = [];
    if (one.every > 1) words.push(`Each point is the mean of up to ${one.every} calls.`);
    if (one.dropped) words.push(`The first ${one.dropped} calls are no longer kept.`);
    const { drawing, logarithmic } = this.curve(one, `Loss of ${name}: ${last.loss} in ${last.calls}, on ${last.title}; below, engine by engine`);
    if (logarithmic) words.push("The scale is logarithmic.");
    const note = words.length ? h("p", { class: "kk-note" }, words.join(" ")) : null;
    const runs = one.runs.map((run) => {
      return h("li", {}, this.key(run.engine), h("span", { class: "kk-run-engine" }, run.title), ` ${run.calls}: `, h("span", { class: "kk-run-loss" }, run.loss));
    });
    if (one.earlier_runs) runs.unshift(h("li", { class: "kk-note" }, `${one.earlier_runs} earlier runs on one engine`));
    return h("section", { class: "kk-training" }, title, drawing, note, h("ul", { class: "kk-runs", "aria-label": `Loss of ${name}, engine by engine` }, ...runs));
  }

  line(engine) {
    const i = (this.panel.engines.facts?.engines ?? []).findIndex((one) => one.name === engine);
    const place = Math.max(0, i) % COLOURS.length;
    return { class: "kk-loss", stroke: COLOURS[place], "stroke-dasharray": DASHES[place] || null, "vector-effect": "non-scaling-stroke" };
  }

  key(engine) {
    const drawing = s("svg", { class: "kk-run-key", viewBox: "0 0 28 10", "aria-hidden": "true" });
    drawing.append(s("path", { d: "M1 5H27", ...this.line(engine) }));
    return drawing;
  }

  // Numbers that aren't finite come as strings, and leave gaps.
  curve(one, words) {
    const known = one.points.map(([, , mean]) => mean).filter((mean) => typeof mean === "number");
    const least = known.reduce((a, b) => Math.min(a, b), Infinity);
    const most = known.reduce((a, b) => Math.max(a, b), -Infinity);
    const logarithmic = least > 0 && most > 100 * least;
    const scaled = (value) => (logarithmic ? Math.log(value) : value);
    const span = scaled(most) - scaled(least) || 1;
    const begin = one.dropped + 1;
    const calls = Math.max(1, one.calls - begin);
    const x = (first, count) => (WIDTH * (first + (count - 1) / 2 - begin)) / calls;
    const y = (value) => (most === least ? HEIGHT / 2 : HEIGHT * (1 - (scaled(value) - scaled(least)) / span));
    const drawing = s("svg", { class: "kk-curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words });
    const paths = [];
    let engine = null;
    let whole = "";
    let pen = "M";
    for (const [first, count, mean, name] of one.points) {
      if (name !== engine) {
        const edge = (WIDTH * (first - 0.5 - begin)) / calls;
        if (engine !== null) drawing.append(s("path", { class: "kk-swap-line", d: `M${edge} 0V${HEIGHT}`, "vector-effect": "non-scaling-stroke" }));
        paths.push([name, ""]);
        engine = name;
      }
      if (typeof mean !== "number") {
        pen = "M";
        continue;
      }
      const place = `${x(first, count).toFixed(1)} ${y(mean).toFixed(1)}`;
      whole += `${pen}${place}`;
      const part = paths[paths.length - 1];
      // A line of no length is a dot, since its ends are round.
      part[1] += part[1] && pen === "L" ? `L${place}` : `M${place}h0`;
      pen = "L";
    }
    drawing.append(s("path", { class: "kk-loss-all", d: whole, "vector-effect": "non-scaling-stroke" }));
    for (const [name, d] of paths) drawing.append(s("path", { d, ...this.line(name) }));
    const scale = known.length ? [h("span", {}, number(most)), h("span", {}, number(least))] : [h("span", {}, "no finite value")];
    const box = h(
      "div",
      { class: "kk-plot" },
      h("div", { class: "kk-plot-scale", "aria-hidden": "true" }, ...scale),
      drawing,
      h("div", { class: "kk-plot-calls", "aria-hidden": "true" }, h("span", {}, `call ${begin}`), h("span", {}, String(one.calls))),
    );
    return { drawing: box, logarithmic };
  }
}
