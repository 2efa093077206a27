// What each engine made of one graph, side by side.

import { button, h, refill } from "./dom.js";

export class Native {
  constructor(panel) {
    this.panel = panel;
    this.key = null;
    this.chooser = h("select", { class: "kk-select", onchange: () => this.choose(Number(this.chooser.value)) });
    this.place = h("div", { class: "kk-natives" });
    this.note = h("p", { class: "kk-note" });
    const again = button("Again", { onclick: () => this.choose(this.key), title: "Ask the running engines again" });
    const tools = h("div", { class: "kk-tools" }, h("label", { class: "kk-field" }, h("span", {}, "What engines make of"), this.chooser), again);
    this.el = h("div", { class: "kk-native" }, tools, this.note, this.place);
    refill(this.place, h("p", { class: "kk-empty" }, "Choose a tensor or a function to see what each running engine made of it."));
  }

  offer(rows) {
    const fitting = rows.filter((row) => row.kind === "tensor" || row.kind === "function" || row.key === this.key).slice(0, 300);
    const options = fitting.map((row) => h("option", { value: row.key, selected: row.key === this.key }, `${row.names[0] ?? row.name} (${row.op})`));
    this.chooser.replaceChildren(h("option", { value: "", selected: this.key === null }, options.length ? "choose …" : "no tensor yet"), ...options);
  }

  choose(key) {
    if (!key) return;
    this.key = key;
    if (![...this.chooser.options].some((option) => Number(option.value) === key)) {
      const row = this.panel.tensors.rows.get(key);
      this.chooser.append(h("option", { value: key }, row?.names[0] ?? row?.name ?? String(key)));
    }
    this.chooser.value = String(key);
    this.place.setAttribute("aria-busy", "true");
    this.panel.ask({ do: "native", key }, "The engines are compiling it");
  }

  show(message) {
    this.place.removeAttribute("aria-busy");
    if (message.for !== this.key) return;
    this.note.textContent = message.note ?? "";
    if (message.error) {
      refill(this.place, h("p", { class: "kk-box kk-error" }, h("span", {}, message.error)));
      return;
    }
    refill(
      this.place,
      message.columns.map((column) => {
        const text = h("pre", { tabindex: "0", role: "region", "aria-label": `${column.title}'s form` }, column.text);
        const body = column.error ? h("p", { class: "kk-box kk-error" }, h("span", {}, column.error)) : text;
        return h("section", { class: "kk-column" }, h("h3", {}, column.title, " ", h("span", { class: "kk-note" }, column.what)), body);
      }),
    );
  }
}
