// The tensors: a grid that sorts and filters, draws the rows in view alone, and asks for values only of these.

import { button, h, number, refill, select, shape, size } from "./dom.js";
import { details, firstMode, notFinite, range, sparkline } from "./values.js";

const ROW = 28;
const SPARE = 6;

// [key, words, what it is sorted by, the least width of the panel at which it is shown]
const COLUMNS = [
  ["name", "Name", (row) => label(row).toLowerCase(), 0],
  ["kind", "Kind", (row) => row.kind, 560],
  ["op", "Op", (row) => row.op, 860],
  ["shape", "Shape", (row) => (row.shape ?? []).reduce((all, n) => all * (n ?? 1), 1), 0],
  ["dtype", "Type", (row) => row.dtype ?? "", 480],
  ["device", "Device", (row) => row.device, 980],
  ["bytes", "Size", (row) => row.bytes ?? -1, 700],
  ["fed", "Last fed", (row) => JSON.stringify(row.fed ?? ""), 1100],
  ["values", "Values", null, 400],
  ["after", "After swap", (row) => gap(row), 640],
];

const WIDTHS = {
  name: "minmax(80px, 1.6fr)",
  kind: "92px",
  op: "minmax(80px, 1fr)",
  shape: "minmax(84px, 1.2fr)",
  dtype: "68px",
  device: "68px",
  bytes: "76px",
  fed: "96px",
  values: "minmax(150px, 2.6fr)",
  after: "92px",
};

function label(row) {
  return row.names[0] ?? row.name;
}

function gap(row) {
  if (!row.reevaluated) return -1;
  return row.reevaluated.difference === "Infinity" ? Infinity : Number(row.reevaluated.difference);
}

// Whether its value can be had without computing what nobody has asked for.
function cheap(row) {
  return row.kind === "variable" || (row.kind === "placeholder" && row.fed !== null) || (row.kind === "tensor" && row.shown);
}

export class Tensors {
  constructor(panel) {
    this.panel = panel;
    this.rows = new Map();
    this.found = new Map(); // key -> {version, summary}
    this.asked = new Set();
    this.sorted = [];
    this.sort = { column: null, down: false };
    this.filter = "";
    this.kind = "";
    this.current = null; // the key of the row that the arrow keys are at
    this.opened = null;
    this.mode = null;
    this.input = h("input", {
      type: "search",
      class: "kk-input",
      placeholder: "Filter by name, op, shape …",
      "aria-label": "Filter tensors",
      oninput: () => {
        this.filter = this.input.value.toLowerCase();
        this.grid.scrollTop = 0;
        this.arrange();
      },
    });
    const kinds = [["", "all kinds"], ...["variable", "placeholder", "tensor", "function"].map((kind) => [kind, `${kind}s`])];
    const choose = (kind) => {
      this.kind = kind;
      this.arrange();
    };
    this.count = h("span", { class: "kk-note", role: "status" });
    const tools = h("div", { class: "kk-tools" }, this.input, select("Kind", kinds, "", choose), this.count);
    this.head = h("div", { class: "kk-row kk-head", role: "row", "aria-rowindex": "1" });
    this.space = h("div", { class: "kk-space", role: "rowgroup" });
    this.grid = h(
      "div",
      {
        class: "kk-grid",
        role: "grid",
        tabindex: "0",
        "aria-label": "Tensors, variables, placeholders and functions",
        onscroll: () => this.draw(),
        onkeydown: (event) => this.key(event),
      },
      h("div", { role: "rowgroup", class: "kk-heads" }, this.head),
      this.space,
    );
    this.empty = h("p", { class: "kk-empty", hidden: true });
    this.details = h("section", { class: "kk-details", hidden: true, "aria-label": "Details" });
    this.el = h("div", { class: "kk-tensors" }, tools, this.grid, this.empty, this.details);
    this.grid.addEventListener("focus", () => {
      if (this.current === null && this.sorted.length) this.moveTo(0);
    });
    this.watcher = new ResizeObserver(() => this.measure());
    this.watcher.observe(this.grid);
    this.columns = COLUMNS;
    this.drawn = new Map(); // key -> its element, and what that shows
  }

  stop() {
    this.watcher.disconnect();
    clearTimeout(this.timer);
  }

  // --- what the kernel tells ---

  showAll(rows) {
    this.rows = new Map(rows.map((row) => [row.key, row]));
    this.found.clear();
    this.asked.clear();
    this.arrange();
    this.showDetails();
  }

  showChanges(changed, gone) {
    for (const key of gone) this.rows.delete(key);
    for (const row of changed) this.rows.set(row.key, row);
    // A variable says by its version whether its value is another; of all others it may be.
    for (const [key, entry] of this.found) {
      const row = this.rows.get(key);
      if (!row || row.kind !== "variable" || row.version !== entry.version) entry.old = true;
    }
    this.asked.clear();
    if (changed.length || gone.length) this.arrange();
    else this.draw();
    if (this.opened !== null) {
      if (!this.rows.has(this.opened)) this.open(null);
      else if (this.found.get(this.opened)?.old) this.ask([this.opened]);
    }
  }

  showSummaries(found, later) {
    for (const summary of found) {
      this.asked.delete(summary.key);
      this.found.set(summary.key, { summary, version: this.rows.get(summary.key)?.version });
    }
    this.draw();
    if (found.some((summary) => summary.key === this.opened)) this.showDetails();
    if (later.length) {
      // What went out of view meanwhile isn't asked for again.
      const inView = later.filter((key) => key === this.opened || this.visible?.has(key));
      for (const key of later) this.asked.delete(key);
      this.ask(inView);
    }
  }

  // --- the grid ---

  measure() {
    const width = this.grid.clientWidth;
    const columns = COLUMNS.filter(([, , , least]) => width >= least);
    if (columns.length !== this.columns.length || !this.head.childElementCount) {
      this.columns = columns;
      this.drawHead();
    }
    this.draw();
  }

  drawHead() {
    this.el.style.setProperty("--kk-columns", this.columns.map(([name]) => WIDTHS[name]).join(" "));
    this.grid.setAttribute("aria-colcount", String(this.columns.length));
    refill(
      this.head,
      this.columns.map(([name, words, by], i) => {
        const chosen = this.sort.column === name;
        const sorting = !by ? null : chosen ? (this.sort.down ? "descending" : "ascending") : "none";
        const mark = chosen ? (this.sort.down ? " ▾" : " ▴") : "";
        const inside = by
          ? h("button", { type: "button", class: "kk-sort", onclick: () => this.sortBy(name), "data-focus": `sort-${name}` }, words, h("span", { "aria-hidden": "true" }, mark))
          : words;
        return h("div", { role: "columnheader", "aria-sort": sorting, "aria-colindex": i + 1, class: `kk-cell kk-col-${name}` }, inside);
      }),
    );
  }

  sortBy(name) {
    if (this.sort.column !== name) this.sort = { column: name, down: false };
    else if (!this.sort.down) this.sort.down = true;
    else this.sort = { column: null, down: false };
    this.arrange();
    this.drawHead();
  }

  arrange() {
    const words = this.filter.split(/\s+/).filter(Boolean);
    const fits = (row) => {
      if (this.kind && row.kind !== this.kind) return false;
      if (!words.length) return true;
      const text = [row.names.join(" "), row.name, row.op, row.kind, shape(row.shape), row.dtype ?? ""].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    };
    this.sorted = [...this.rows.values()].filter(fits);
    const column = COLUMNS.find(([name]) => name === this.sort.column);
    if (column) {
      const by = column[2];
      const keyed = this.sorted.map((row) => [by(row), row]);
      const sign = this.sort.down ? -1 : 1;
      keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
      this.sorted = keyed.map(([, row]) => row);
    }
    const all = this.rows.size;
    this.count.textContent = this.sorted.length === all ? `${all}` : `${this.sorted.length} of ${all}`;
    this.count.setAttribute("aria-label", `${this.count.textContent} shown`);
    this.empty.hidden = this.sorted.length > 0;
    this.empty.textContent = all ? "Nothing matches the filter." : "This session has no tensors yet; try x = K.placeholder((None, 3)), or w = K.variable(array).";
    this.grid.hidden = all === 0;
    this.grid.setAttribute("aria-rowcount", String(this.sorted.length + 1));
    this.space.style.height = `${this.sorted.length * ROW}px`;
    if (!this.head.childElementCount) this.drawHead();
    this.draw();
  }

  draw() {
    const tall = this.grid.clientHeight || 300;
    const first = Math.max(0, Math.floor(this.grid.scrollTop / ROW) - SPARE);
    const last = Math.min(this.sorted.length, Math.ceil((this.grid.scrollTop + tall) / ROW) + SPARE);
    const shown = this.sorted.slice(first, last);
    this.visible = new Set(shown.map((row) => row.key));
    this.put(shown, first);
    const current = this.current !== null && this.visible.has(this.current) ? `${this.panel.id}-row-${this.current}` : null;
    if (current) this.grid.setAttribute("aria-activedescendant", current);
    else this.grid.removeAttribute("aria-activedescendant");
    this.askSoon();
  }

  // A row that shows the same as before stays the same element: a click may have begun on it.
  put(shown, first) {
    const drawn = new Map();
    shown.forEach((row, i) => {
      const entry = this.found.get(row.key);
      const old = this.drawn.get(row.key);
      const same = old && old.row === row && old.entry === entry && old.columns === this.columns;
      const el = same ? old.el : this.row(row);
      drawn.set(row.key, same ? old : { el, row, entry, columns: this.columns });
      el.className = ["kk-row", row.key === this.current ? "kk-current" : "", row.key === this.opened ? "kk-open" : "", row.key === this.lit ? "kk-lit" : ""].join(" ");
      el.setAttribute("aria-rowindex", String(first + i + 2));
      el.setAttribute("aria-selected", String(row.key === this.opened));
      el.style.top = `${(first + i) * ROW}px`;
    });
    for (const [key, { el }] of this.drawn) if (drawn.get(key)?.el !== el) el.remove();
    this.drawn = drawn;
    let next = this.space.firstChild;
    for (const { el } of drawn.values()) {
      if (el === next) next = next.nextSibling;
      else this.space.insertBefore(el, next);
    }
  }

  row(row) {
    const cells = this.columns.map(([name], i) =>
      h("div", { role: "gridcell", "aria-colindex": i + 1, class: `kk-cell kk-col-${name}` }, this.cell(row, name)),
    );
    return h(
      "div",
      {
        role: "row",
        id: `${this.panel.id}-row-${row.key}`,
        onclick: () => {
          this.current = row.key;
          this.open(row.key === this.opened ? null : row.key);
        },
      },
      ...cells,
    );
  }

  cell(row, name) {
    if (name === "name") {
      const more = row.names.length > 1 ? ` (+${row.names.length - 1})` : "";
      return h("span", { class: row.names.length ? "kk-named" : "kk-unnamed", title: [...row.names, row.name].join(", ") }, label(row) + more);
    }
    if (name === "shape") return h("span", { title: row.signature ?? "" }, row.kind === "function" ? (row.signature ?? "") : shape(row.shape));
    if (name === "bytes") return size(row.bytes);
    if (name === "fed") return shape(row.fed);
    if (name === "values") return this.valueCell(row);
    if (name === "after") return this.afterCell(row);
    return row[name] ?? "";
  }

  valueCell(row) {
    const entry = this.found.get(row.key);
    if (!entry) return row.kind === "function" ? "" : h("span", { class: "kk-faint" }, cheap(row) ? "…" : row.kind === "placeholder" ? "not fed yet" : "open to evaluate");
    const { summary } = entry;
    if (summary.size === null) return h("span", { class: "kk-faint", title: summary.note }, summary.note);
    const bad = notFinite(summary);
    return h(
      "span",
      { class: "kk-value", title: `mean ${number(summary.mean)}, std ${number(summary.std)}` },
      sparkline(summary),
      bad ? h("span", { class: "kk-bad" }, `⚠ ${bad}`) : null,
      h("span", { class: "kk-range" }, range(summary)),
    );
  }

  afterCell(row) {
    if (!row.reevaluated) return "";
    const { from, to, difference } = row.reevaluated;
    const words = difference === 0 ? "= same" : `≠ ${number(difference, 2)}`;
    const title = `evaluated again after ${from} → ${to}; largest difference ${number(difference)}`;
    return h("span", { class: "kk-again", title }, words);
  }

  key(event) {
    if (event.target !== this.grid) return;
    const place = this.sorted.findIndex((row) => row.key === this.current);
    const page = Math.max(1, Math.floor(this.grid.clientHeight / ROW) - 2);
    const last = this.sorted.length - 1;
    const to = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: last }[event.key];
    if (to !== undefined) this.moveTo(Math.min(last, Math.max(0, to)));
    else if ((event.key === "Enter" || event.key === " ") && this.current !== null) this.open(this.current === this.opened ? null : this.current);
    else if (event.key === "Escape" && this.opened !== null) this.open(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  moveTo(place) {
    const row = this.sorted[place];
    if (!row) return;
    this.current = row.key;
    const head = this.head.offsetHeight;
    const top = place * ROW;
    if (top < this.grid.scrollTop) this.grid.scrollTop = top;
    else if (top + ROW + head > this.grid.scrollTop + this.grid.clientHeight) this.grid.scrollTop = top + ROW + head - this.grid.clientHeight;
    this.draw();
  }

  // Shows and marks a row that another tab speaks of.
  light(key) {
    this.lit = key;
    this.draw();
  }

  find(key) {
    if (!this.rows.has(key)) return;
    if (!this.sorted.some((row) => row.key === key)) {
      this.filter = this.input.value = this.kind = "";
      this.el.querySelector("select").value = "";
      this.arrange();
    }
    this.moveTo(this.sorted.findIndex((row) => row.key === key));
    this.open(key);
  }

  // --- values ---

  askSoon() {
    if (!this.columns.some(([name]) => name === "values")) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.el.isConnected || !this.grid.offsetParent) return;
      const wanted = [...this.visible].filter((key) => {
        const row = this.rows.get(key);
        const entry = this.found.get(key);
        return row && cheap(row) && (!entry || entry.old);
      });
      this.ask(wanted);
    }, 60);
  }

  ask(keys) {
    const wanted = keys.filter((key) => !this.asked.has(key));
    if (!wanted.length) return;
    for (const key of wanted) this.asked.add(key);
    this.panel.ask({ do: "summaries", keys: wanted });
  }

  open(key) {
    this.opened = key;
    this.mode = null;
    this.draw();
    this.showDetails();
    const row = this.rows.get(key);
    const entry = this.found.get(key);
    if (row && row.kind !== "function" && (!entry || entry.old || entry.summary.size === null)) this.ask([key]);
    if (key !== null) this.details.scrollIntoView({ block: "nearest" });
  }

  showDetails() {
    const row = this.rows.get(this.opened);
    this.details.hidden = !row;
    if (!row) return this.details.replaceChildren();
    const summary = this.found.get(row.key)?.summary;
    this.mode ??= summary ? firstMode(summary) : null;
    const choose = (mode) => {
      this.mode = mode;
      this.showDetails();
    };
    const close = () => {
      this.open(null);
      this.grid.focus({ preventScroll: true });
    };
    const own = row.names.length && row.name !== row.names[0] ? ` '${row.name}'` : "";
    const again = row.reevaluated;
    const differs = again && h("p", { class: "kk-note" }, `Evaluated again after ${again.from} → ${again.to}: largest difference ${number(again.difference)}.`);
    const head = h(
      "div",
      { class: "kk-details-head" },
      h("h3", {}, row.names.join(", ") || row.name),
      h("span", { class: "kk-note" }, `${row.kind}${own} · ${row.op} · ${row.device}`),
      h("span", { class: "kk-grow" }),
      button("Graph", { onclick: () => this.panel.showGraphOf(row.key), "data-focus": "to-graph" }),
      ["tensor", "function"].includes(row.kind) && button("Native", { onclick: () => this.panel.showNativeOf(row.key), "data-focus": "to-native" }),
      button("✕", { class: "kk-plain", "aria-label": "Close details", onclick: close, "data-focus": "close" }),
    );
    const source = h("p", { class: "kk-source" }, h("span", {}, `${row.source.place}, line ${row.source.line}`), row.source.text ? h("code", {}, row.source.text) : null);
    const signature = row.signature ? h("p", {}, h("code", {}, row.signature)) : null;
    const value = summary ? details(summary, this.mode, choose) : row.kind === "function" ? [] : [h("p", { class: "kk-note" }, "The value is being read …")];
    refill(this.details, head, source, signature, differs || null, h("div", { class: "kk-details-body" }, ...value.filter(Boolean)));
    this.details.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close();
    };
  }
}
