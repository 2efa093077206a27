// The engine bar: every engine with its state; one click or key swaps, and what goes on or was refused stands below.

import { button, focusedIn, h, refill, roving, select } from "./dom.js";

const STATES = {
  active: ["●", "active"],
  warm: ["◐", "warm"],
  installed: ["○", "installed"],
  "not started": ["○", "not started"],
  "not installed": ["–", "not installed"],
  broken: ["✕", "broken"],
};

export class Engines {
  constructor(panel) {
    this.panel = panel;
    this.facts = null;
    this.job = null;
    this.since = 0;
    this.bar = h("div", { class: "kk-engines", role: "toolbar", "aria-label": "Engines" });
    this.settings = h("div", { class: "kk-settings" });
    this.progress = h("div", { class: "kk-progress", hidden: true });
    this.seconds = h("span", { class: "kk-seconds", "aria-hidden": "true" });
    this.notice = h("div", { class: "kk-notice" });
    this.live = h("div", { class: "kk-hidden", role: "status", "aria-live": "polite" });
    this.alert = h("div", { class: "kk-hidden", role: "alert" });
    this.el = h("div", {}, this.bar, this.settings, this.progress, this.notice, this.live, this.alert);
    roving(this.bar, ".kk-pick");
  }

  show(facts) {
    this.facts = facts;
    const focused = focusedIn(this.bar)?.dataset.focus;
    refill(this.bar, facts.engines.map((engine) => this.tile(engine)));
    const inTabOrder = focused?.startsWith("pick-") ? focused : `pick-${facts.active}`;
    for (const pick of this.bar.querySelectorAll(".kk-pick")) {
      pick.setAttribute("tabindex", pick.dataset.focus === inTabOrder ? "0" : "-1");
    }
    if (focused && !focusedIn(this.bar)) {
      this.bar.querySelector('.kk-pick[tabindex="0"]')?.focus({ preventScroll: true });
    }
    this.showSettings();
  }

  tile(engine) {
    const [sign, word] = STATES[engine.state] ?? ["○", engine.state];
    const starting = this.job?.engine === engine.name;
    const swap = () => {
      if (!engine.active || !engine.running) this.panel.ask({ do: "swap", engine: engine.name }, `Swap to ${engine.title}`);
    };
    const pick = h(
      "button",
      {
        type: "button",
        class: "kk-pick",
        "aria-pressed": String(engine.active),
        "data-focus": `pick-${engine.name}`,
        "data-engine": engine.name,
        title: engine.active ? `${engine.title} is the active engine` : `Swap to ${engine.title}`,
        onclick: swap,
      },
      h("span", { class: "kk-engine-title" }, engine.title),
      h(
        "span",
        { class: `kk-state kk-state-${engine.state.replace(" ", "-")}` },
        h("span", { class: "kk-sign", "aria-hidden": "true" }, starting ? "◌" : sign),
        starting ? "busy" : engine.active && word !== "active" ? `active, ${word}` : word,
      ),
      h("span", { class: "kk-fact" }, [engine.version, engine.interpreter.replace("Python ", "· py")].join(" ").trim() || " "),
      h("span", { class: "kk-fact" }, [engine.process, engine.memory].filter(Boolean).join(" · ")),
    );
    const foot = h("div", { class: "kk-foot" });
    if (engine.running && engine.process !== "this kernel") {
      const stop = () => this.panel.ask({ do: "stop", engine: engine.name }, `Stop ${engine.title}`);
      const title = `Stop ${engine.title} and free its memory`;
      foot.append(button("Stop", { onclick: stop, "aria-label": `Stop ${engine.title}`, title, "data-focus": `stop-${engine.name}` }));
    } else if (engine.install === "button") {
      const install = () => this.panel.ask({ do: "install", engine: engine.name }, `Install ${engine.title}`);
      foot.append(button("Install", { onclick: install, "aria-label": `Install ${engine.title}`, "data-focus": `install-${engine.name}` }));
    }
    const note = engine.note && ["broken", "not installed"].includes(engine.state) ? h("p", { class: "kk-why" }, engine.note) : null;
    const kind = engine.active ? "kk-engine kk-active" : "kk-engine";
    return h("div", { class: kind }, pick, note, foot.childNodes.length ? foot : null);
  }

  showSettings() {
    const { facts } = this;
    const engine = facts.engines.find((one) => one.active);
    if (!engine) return this.settings.replaceChildren();
    const set = (what) => (value) => this.panel.ask({ do: "swap", engine: engine.name, [what]: value }, `${what} ${value}`);
    const parts = [h("strong", {}, engine.title)];
    if (engine.running) {
      const devices = engine.devices.length ? engine.devices : [engine.device].filter(Boolean);
      if (devices.length) {
        const options = [["default", `default (${engine.device})`], ...devices.map((name) => [name, name])];
        parts.push(select("Device", options, engine.requested.device ?? "default", set("device")));
      }
      const shown = engine.threads ? ` (${engine.threads})` : "";
      const counts = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64].filter((n) => n <= facts.most_threads);
      if (engine.requested.threads && !counts.includes(engine.requested.threads)) counts.push(engine.requested.threads);
      const threads = [["default", `default${shown}`], ...counts.map((n) => [String(n), String(n)])];
      parts.push(select("Threads", threads, String(engine.requested.threads ?? "default"), set("threads")));
      if (engine.precisions.length > 1) {
        const precisions = engine.precisions.map((name) => [name, name]);
        parts.push(select("Precision", precisions, engine.precision, set("precision")));
      }
    }
    parts.push(h("span", { class: "kk-note" }, `chosen by ${facts.chosen_by}`));
    parts.forEach((part, i) => part.querySelector?.("select")?.setAttribute("data-focus", `setting-${i}`));
    refill(this.settings, parts);
  }

  showJob(job) {
    this.job = job;
    clearInterval(this.ticking);
    this.progress.hidden = !job;
    if (!job) {
      this.progress.replaceChildren();
      if (this.facts) this.show(this.facts);
      return;
    }
    this.since = performance.now() - 1000 * job.seconds;
    const tick = () => {
      this.seconds.textContent = `${Math.round((performance.now() - this.since) / 1000)} s`;
    };
    tick();
    // The page's own clock: nothing is asked of the kernel.
    this.ticking = setInterval(tick, 1000);
    const cancel = job.cancel
      ? button("Cancel", { onclick: () => this.panel.ask({ do: "cancel" }, "Cancel"), "data-focus": "cancel" })
      : null;
    refill(
      this.progress,
      h("span", { class: "kk-moving", "aria-hidden": "true" }, h("span", {})),
      h("span", { class: "kk-progress-text" }, job.text),
      this.seconds,
      cancel,
    );
    if (this.live.textContent !== job.text) this.live.textContent = job.text;
    if (this.facts) this.show(this.facts);
  }

  // A line that waits for the kernel: "" takes it away.
  showQueued(text) {
    this.queued?.remove();
    this.queued = null;
    if (!text) return;
    this.queued = h("p", { class: "kk-queued" }, h("span", { "aria-hidden": "true" }, "⏸ "), text);
    this.el.insertBefore(this.queued, this.notice);
    this.live.textContent = text;
  }

  showNotice(message) {
    const bad = message.level === "error";
    const sign = { error: "✕ ", done: "✓ ", info: "ⓘ " }[message.level] ?? "";
    const close = button("✕", { class: "kk-plain", "aria-label": "Dismiss", onclick: () => refill(this.notice), "data-focus": "dismiss" });
    const list = message.reasons?.length ? h("ul", {}, ...message.reasons.map((reason) => h("li", {}, reason))) : null;
    const words = h("div", {}, h("span", { "aria-hidden": "true" }, sign), h("span", { class: "kk-words" }, message.text), list);
    refill(this.notice, h("div", { class: `kk-box kk-${message.level}` }, words, close));
    const spoken = [message.text, ...(message.reasons ?? [])].join(". ");
    (bad ? this.alert : this.live).textContent = spoken;
  }

  stop() {
    clearInterval(this.ticking);
  }
}
