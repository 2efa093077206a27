// The graph of one tensor or function, as the kernel has laid it out: boxes to open, to hover over and to follow.

import { button, focusedIn, h, refill, s } from "./dom.js";

export class Graph {
  constructor(panel) {
    this.panel = panel;
    this.key = null;
    this.opened = new Set();
    this.scale = 1;
    this.chooser = h("select", { class: "kk-select", onchange: () => this.choose(Number(this.chooser.value)) });
    this.around = h("div", { class: "kk-canvas", tabindex: "0", role: "region", "aria-label": "Graph" });
    this.line = h("p", { class: "kk-hover", "aria-live": "polite" });
    this.title = h("p", { class: "kk-note" });
    const zoom = (by) => () => this.zoom(by);
    const tools = h(
      "div",
      { class: "kk-tools" },
      h("label", { class: "kk-field" }, h("span", {}, "Graph of"), this.chooser),
      h(
        "div",
        { class: "kk-group", role: "group", "aria-label": "Zoom" },
        button("−", { "aria-label": "Smaller", onclick: zoom(1 / 1.25) }),
        button("+", { "aria-label": "Larger", onclick: zoom(1.25) }),
        button("Fit", { onclick: () => this.fit() }),
      ),
      button("Times", { title: "Time each op, and show the times in the boxes", onclick: () => this.ask({ times: true }) }),
      (this.closing = button("Close groups", { onclick: () => this.ask({ opened: [] }), hidden: true })),
    );
    this.el = h("div", { class: "kk-graph" }, tools, this.title, this.around, this.line);
  }

  offer(rows) {
    const kinds = { function: 0, tensor: 1, variable: 2, placeholder: 3 };
    const fitting = rows.filter((row) => row.kind === "function" || row.kind === "tensor" || row.key === this.key);
    fitting.sort((a, b) => kinds[a.kind] - kinds[b.kind]);
    // A menu of ten thousand lines is none: the row's own button leads here as well.
    const shown = fitting.slice(0, 300);
    const options = shown.map((row) => {
      const text = `${row.names[0] ?? row.name} (${row.kind === "function" ? "function" : row.op})`;
      return h("option", { value: row.key, selected: row.key === this.key }, text);
    });
    const none = h("option", { value: "", selected: this.key === null }, options.length ? "choose …" : "no tensor yet");
    this.chooser.replaceChildren(none, ...options);
    if (this.key === null && !this.around.childElementCount) {
      refill(this.around, h("p", { class: "kk-empty" }, "Choose a tensor or a function."));
    }
  }

  choose(key) {
    if (!key) return;
    this.key = key;
    this.opened = new Set();
    if (![...this.chooser.options].some((option) => Number(option.value) === key)) {
      const row = this.panel.tensors.rows.get(key);
      this.chooser.append(h("option", { value: key }, row?.names[0] ?? row?.name ?? String(key)));
    }
    this.chooser.value = String(key);
    this.scale = null;
    this.ask({});
  }

  ask(more) {
    if (this.key === null) return;
    if (more.opened) this.opened = new Set(more.opened);
    this.around.setAttribute("aria-busy", "true");
    const words = more.times ? "Measuring each op" : undefined;
    this.panel.ask({ do: "graph", key: this.key, opened: [...this.opened], times: Boolean(more.times) }, words);
  }

  show(message) {
    this.around.removeAttribute("aria-busy");
    if (message.for !== this.key) return;
    if (!message.graph) {
      this.title.textContent = "";
      refill(this.around, h("p", { class: "kk-box kk-error" }, h("span", {}, message.error)));
      return;
    }
    const { graph } = message;
    this.graph = graph;
    this.title.textContent = [graph.title, graph.note].filter(Boolean).join(" · ");
    this.closing.hidden = !this.opened.size;
    const held = focusedIn(this.around)?.getAttribute("data-box");
    const drawing = s("svg", { role: "group", "aria-label": graph.title, class: "kk-drawing" });
    drawing.append(
      s("defs", {}, s("marker", { id: `${this.panel.id}-arrow`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" }, s("path", { d: "M0,0.5L8,4L0,7.5z", class: "kk-arrow" }))),
    );
    for (const edge of graph.edges) drawing.append(this.edge(edge));
    this.boxes = new Map();
    for (const node of graph.nodes) {
      const box = this.box(node);
      this.boxes.set(node.key, box);
      drawing.append(box);
    }
    this.drawing = drawing;
    refill(this.around, drawing);
    this.setScale(this.scale ?? this.fitting());
    if (held) this.boxes.get(held)?.focus();
  }

  edge(edge) {
    let path = "";
    edge.points.forEach(([x, y], i) => {
      if (!i) path = `M${x},${y}`;
      else {
        const [fromX, fromY] = edge.points[i - 1];
        const middle = (fromY + y) / 2;
        // Straight where it goes beside boxes or upwards.
        path += x === fromX || y <= fromY ? `L${x},${y}` : `C${fromX},${middle} ${x},${middle} ${x},${y}`;
      }
    });
    return s("path", { d: path, class: "kk-edge", "marker-end": `url(#${this.panel.id}-arrow)`, "data-from": edge.from, "data-to": edge.to }, edge.label ? s("title", {}, edge.label) : null);
  }

  box(node) {
    const group = node.kind === "group";
    const row = /^\d+$/.test(node.key) ? this.panel.tensors.rows.get(Number(node.key)) : null;
    const act = () => {
      if (group) this.ask({ opened: [...this.opened, node.key] });
      else if (row) this.panel.showRow(row.key);
    };
    const words = [node.label, node.op, node.shape ? `(${node.shape.map((n) => n ?? "None").join(", ")})` : "", node.dtype, node.time?.text].filter(Boolean).join(", ");
    const hint = group ? "; Enter opens it" : row ? "; Enter shows its row" : "";
    const shade = node.time ? Math.min(1, 0.12 + 0.88 * node.time.share) : 0;
    const lines = node.lines.map((line, i) =>
      s("text", { x: node.x + node.width / 2, y: node.y + 22 + 18 * i, class: line.startsWith("\t") ? "kk-code" : i ? "kk-line" : "kk-name" }, line.trim()),
    );
    const corner = group || node.kind === "loop" ? 2 : node.kind === "op" ? 6 : node.height / 3;
    const place = { x: node.x, y: node.y, width: node.width, height: node.height, rx: corner };
    return s(
      "g",
      {
        class: `kk-node kk-node-${node.kind} kk-part-of-${node.part}`,
        tabindex: "0",
        role: group || row ? "button" : "img",
        "aria-label": words + hint,
        "data-box": node.key,
        onclick: act,
        onkeydown: (event) => {
          if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            event.stopPropagation();
            act();
          }
        },
        onmouseenter: () => this.light(node, row),
        onmouseleave: () => this.light(null, null),
        onfocus: () => this.light(node, row),
        onblur: () => this.light(null, null),
      },
      s("title", {}, node.tooltip),
      s("rect", { ...place, class: "kk-box-back" }),
      node.time ? s("rect", { ...place, class: "kk-box-time", style: { fillOpacity: String(shade) } }) : null,
      ...lines,
    );
  }

  // The box's source and row, and the arrows that lead to it and from it.
  light(node, row) {
    for (const path of this.drawing.querySelectorAll(".kk-edge")) {
      path.classList.toggle("kk-lit", node !== null && (path.dataset.from === node.key || path.dataset.to === node.key));
    }
    this.panel.tensors.light(row?.key ?? null);
    if (!node) return;
    const source = node.source ? `${node.source.cell ? `cell ${node.source.cell}` : node.source.file}, line ${node.source.line}: ${node.source.text}` : "";
    const parts = [h("strong", {}, node.label), ` ${[node.op, node.detail, node.time?.text].filter(Boolean).join(" · ")} `];
    refill(this.line, ...parts.map((part) => (typeof part === "string" ? h("span", {}, part) : part)), source ? h("code", {}, source) : null);
  }

  fitting() {
    return Math.min(1.2, Math.max(0.25, (this.around.clientWidth - 18) / this.graph.width));
  }

  setScale(scale) {
    this.scale = scale;
    const { width, height } = this.graph;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawing.setAttribute("width", String(width * scale));
    this.drawing.setAttribute("height", String(height * scale));
  }

  zoom(by) {
    if (this.graph) this.setScale(Math.min(4, Math.max(0.1, this.scale * by)));
  }

  fit() {
    if (this.graph) this.setScale(this.fitting());
  }
}
