// The last measurement of each kind as bars, and the swaps with their phases.

import { bars, parts } from "./bars.js";
import { h, number, refill } from "./dom.js";

export class Timings {
  constructor() {
    this.el = h("div", { class: "kk-timings" });
  }

  show(facts) {
    const measured = [
      ["compare", "Engines side by side", "%%kcompare"],
      ["per_op", "Ops on each engine", "%%kcompare --per-op"],
      ["compare_layers", "Layers on each engine", "%%kcompare --per-op"],
      ["profile", "Ops, one by one", "%kprofile"],
      ["profile_layers", "Layers", "%kprofile"],
      ["engine_profile", "Engine's own profiler", "%kprofile --engine"],
      ["time", "A call", "%ktime"],
    ].filter(([name]) => facts[name]);
    const sections = measured.map(([name, title, magic]) => {
      const result = facts[name];
      const notes = result.notes.map((note) => h("li", {}, note));
      const more = notes.length ? h("details", {}, h("summary", {}, "Notes and conditions"), h("ul", { class: "kk-notes" }, ...notes)) : null;
      const heading = h("h3", {}, title, " ", h("code", {}, magic));
      return h("section", {}, heading, h("p", { class: "kk-note" }, result.title), bars(result.bars, `${title}, ${magic}`), more);
    });
    if (facts.swaps.length) sections.push(this.swaps(facts));
    if (!sections.length) {
      const line = "Nothing has been measured yet: %ktime f([x]), %kprofile f([x]), %%kcompare tensorflow theano; swaps are listed here, too.";
      sections.push(h("p", { class: "kk-empty" }, line));
    }
    refill(this.el, sections);
  }

  swaps(facts) {
    const most = Math.max(...facts.swaps.map((swap) => swap.total), 1e-9);
    const items = facts.swaps.map((swap) => {
      const entries = Object.entries(swap.seconds).map(([name, seconds]) => [name, seconds, swap.shown[name]]);
      const title = swap.restarted ? `${swap.to} restarted` : `${swap.from} → ${swap.to}`;
      const differs = swap.difference === null ? null : h("span", { class: "kk-note" }, `largest difference ${number(swap.difference, 2)}`);
      return h("li", { class: "kk-swap" }, h("span", { class: "kk-swap-title", title: swap.words }, title), differs, parts(entries, most));
    });
    const hidden = facts.swap_count - facts.swaps.length;
    const more = hidden > 0 ? h("p", { class: "kk-note" }, `and ${hidden} earlier ones`) : null;
    return h("section", {}, h("h3", {}, "Swaps, most recent first"), h("ol", { class: "kk-swaps" }, ...items), more);
  }
}
