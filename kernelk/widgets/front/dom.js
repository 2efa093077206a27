// Elements and words: whatever a name or a message holds is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// An HTML element; children are nodes or text.
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

// The same in a drawing.
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return unit === "B" ? `${bytes} B` : `${bytes.toFixed(1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} GB`;
}

// Numbers that JSON can't hold come as strings.
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return { Infinity: "∞", "-Infinity": "−∞" }[value] ?? value;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value).replace("-", "−");
  return Number(value.toPrecision(digits)).toString().replace("-", "−");
}

export function shape(value) {
  if (!value) return "";
  const inner = value.map((length) => length ?? "None").join(", ");
  return value.length === 1 ? `(${inner},)` : `(${inner})`;
}

export function button(text, properties = {}) {
  return h("button", { type: "button", ...properties, class: `kk-button ${properties.class ?? ""}` }, text);
}

export function select(label, options, chosen, onchange) {
  const items = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  const box = h("select", { class: "kk-select", onchange: () => onchange(box.value) }, ...items);
  return h("label", { class: "kk-field" }, h("span", {}, label), box);
}

// The element within `place` that has the focus; marimo draws widgets in a shadow root, which has its own.
export function focusedIn(place) {
  const focused = place.getRootNode().activeElement;
  return focused && place.contains(focused) ? focused : null;
}

// Puts new content in the place of the old one; what had the focus keeps it, known by its data-focus.
export function refill(place, ...children) {
  const held = focusedIn(place)?.getAttribute("data-focus");
  place.replaceChildren(...children.flat().filter(Boolean));
  if (held) place.querySelector(`[data-focus="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
}

// Arrow keys, Home and End move between the items of a bar, of which one alone takes the Tab key.
export function roving(bar, selector, onmove) {
  bar.addEventListener("keydown", (event) => {
    const items = [...bar.querySelectorAll(selector)];
    const place = items.indexOf(event.target.closest(selector));
    if (place < 0) return;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let next;
    if (event.key in steps) next = (place + steps[event.key] + items.length) % items.length;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = items.length - 1;
    else return;
    event.preventDefault();
    event.stopPropagation();
    items.forEach((item, i) => item.setAttribute("tabindex", i === next ? "0" : "-1"));
    items[next].focus();
    onmove?.(items[next]);
  });
}
