// One view of the panel: its parts, and the messages between them and the kernel.

import { h, roving } from "./dom.js";
import { Engines } from "./engines.js";
import { Tensors } from "./tensors.js";
import { Training } from "./training.js";
import { Timings } from "./timings.js";
import { Graph } from "./graph.js";
import { Native } from "./native.js";
import { keepSaved } from "./saved.js";

// So long a kernel that does nothing else may take to say that it has heard.
const PATIENCE = 300;

const TABS = ["tensors", "training", "timings", "graph", "native"];
const TITLES = { tensors: "Tensors", training: "Training", timings: "Timings", graph: "Graph", native: "Native" };

class Panel {
  constructor(model) {
    this.model = model;
    this.id = `kk-${Math.random().toString(36).slice(2, 10)}`;
    this.count = 0;
    this.unheard = new Map(); // a request's number -> its timer and words
    this.engines = new Engines(this);
    this.tensors = new Tensors(this);
    this.training = new Training(this);
    this.timings = new Timings(this);
    this.graph = new Graph(this);
    this.native = new Native(this);
    this.gone = h("div", { class: "kk-box kk-error kk-gone", role: "alert", hidden: true });
    const tabs = TABS.map((name) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `${this.id}-tab-${name}`,
          class: "kk-tab",
          "aria-controls": `${this.id}-${name}`,
          "data-tab": name,
          onclick: () => this.select(name),
        },
        TITLES[name],
      ),
    );
    this.bar = h("div", { class: "kk-tabs", role: "tablist", "aria-label": "Parts of the panel" }, ...tabs);
    roving(this.bar, ".kk-tab", (tab) => this.select(tab.dataset.tab));
    this.pages = TABS.map((name) =>
      h("div", { role: "tabpanel", id: `${this.id}-${name}`, class: "kk-page", "aria-labelledby": `${this.id}-tab-${name}` }, this[name].el),
    );
    this.living = h("div", { class: "kk-living" }, this.engines.el, this.bar, ...this.pages);
    // The static form beside it is for pages without a kernel.
    this.hiding = h("style", {}, `.kernelk-static-${model.get("panel_id")} { display: none }`);
    this.el = h("div", { class: "kernelk-panel", role: "region", "aria-label": "kernelk panel" }, this.hiding, this.gone, this.living);
    this.select("tensors");
  }

  select(name) {
    this.selected = name;
    for (const tab of this.bar.children) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.setAttribute("tabindex", chosen ? "0" : "-1");
    }
    for (const page of this.pages) page.hidden = page.id !== `${this.id}-${name}`;
    if (name === "tensors") this.tensors.draw();
    else if (name === "training") this.training.draw();
    else if (name === "graph" || name === "native") this[name].offer([...this.tensors.rows.values()]);
  }

  showRow(key) {
    this.select("tensors");
    this.tensors.find(key);
  }

  showGraphOf(key) {
    this.select("graph");
    this.graph.choose(key);
  }

  showNativeOf(key) {
    this.select("native");
    this.native.choose(key);
  }

  // --- messages ---

  // `words`, if given, say what waits where the kernel doesn't answer at once: it does so between cells.
  ask(message, words) {
    if (!this.gone.hidden) return;
    const id = `${this.id}-${++this.count}`;
    const timer = setTimeout(() => this.waits(id), PATIENCE);
    this.unheard.set(id, { timer, words });
    this.model.send({ ...message, request: id, view: this.id });
  }

  waits(id) {
    const entry = this.unheard.get(id);
    if (!entry) return;
    entry.queued = true;
    const words = [...this.unheard.values()].filter((one) => one.queued && one.words).map((one) => one.words);
    this.engines.showQueued(words.length ? `${[...new Set(words)].join(", ")}: queued until the running cell ends` : this.heard ? "" : "The panel opens when the running cell ends");
  }

  answered(id) {
    const entry = this.unheard.get(id);
    if (!entry) return;
    clearTimeout(entry.timer);
    this.unheard.delete(id);
    this.heard = true;
    if (![...this.unheard.values()].some((one) => one.queued && one.words)) this.engines.showQueued("");
  }

  receive(message) {
    const { kind } = message ?? {};
    if (kind === "ack") this.answered(message.request);
    else if (kind === "queued") this.waits(message.request);
    else if (kind === "engines") this.engines.show(message);
    else if (kind === "job") this.engines.showJob(message.job);
    else if (kind === "notice") this.engines.showNotice(message);
    else if (kind === "rows") this.tensors.showAll(message.rows);
    else if (kind === "changes") this.tensors.showChanges(message.changed, message.gone);
    else if (kind === "summaries") this.tensors.showSummaries(message.found, message.later);
    else if (kind === "losses") this.training.show(message);
    else if (kind === "timings") this.timings.show(message);
    else if (kind === "graph") this.graph.show(message);
    else if (kind === "native") this.native.show(message);
    else if (kind === "closed") this.end("kernelk was unloaded, and the panel closed with it.", "%load_ext kernelk and %kpanel open it again.");
  }

  // The kernel's half is gone: everything stays readable, nothing can be asked.
  end(what, next) {
    for (const entry of this.unheard.values()) clearTimeout(entry.timer);
    this.unheard.clear();
    this.engines.showQueued("");
    this.engines.showJob(null);
    this.gone.replaceChildren(h("span", {}, `${what} ${next}`));
    this.gone.hidden = false;
    this.living.classList.add("kk-dead");
    for (const control of this.engines.el.querySelectorAll("button, select")) control.disabled = true;
    // Without anything to show, what the notebook has saved is better.
    if (!this.engines.facts) this.hiding.remove();
  }

  ended() {
    this.end("The kernel was restarted, or has ended; this is the panel's last state.", "%load_ext kernelk and %kpanel open it again.");
  }

  async look() {
    // Whether the kernel's half lives is known to the page's own model alone; not every front end tells.
    const whole = await this.model.widget_manager?.get_model?.(this.model.get("panel_id")).catch(() => null);
    if (whole?.comm_live === false) return this.ended();
    if (!this.gone.hidden) {
      this.gone.hidden = true;
      this.living.classList.remove("kk-dead");
    }
    this.ask({ do: "hello" });
  }
}

export default {
  render({ model, el }) {
    const panel = new Panel(model);
    el.append(panel.el);
    const receive = (message) => panel.receive(message);
    const look = () => panel.look().catch((error) => console.warn("kernelk:", error));
    // JupyterLab's command mode would take arrows and letters for the notebook's; it hears them right after the window.
    const own = (event) => {
      if (!panel.el.contains(event.target)) return;
      event.target.toggleAttribute("data-lm-suppress-shortcuts", !event.ctrlKey && !event.metaKey && !event.altKey);
    };
    window.addEventListener("keydown", own, true);
    model.on("msg:custom", receive);
    model.on("comm_live_update", look);
    // One that dies by itself leaves its comms as if they lived.
    const kernel = model.widget_manager?.kernel?.statusChanged;
    const status = (_, now) => ["autorestarting", "restarting", "dead", "terminating"].includes(now) && panel.ended();
    kernel?.connect?.(status);
    const saved = keepSaved(model);
    look();
    return () => {
      if (panel.gone.hidden) panel.model.send({ do: "bye", request: "", view: panel.id });
      window.removeEventListener("keydown", own, true);
      model.off("msg:custom", receive);
      model.off("comm_live_update", look);
      kernel?.disconnect?.(status);
      saved();
      panel.engines.stop();
      panel.tensors.stop();
    };
  },
};
