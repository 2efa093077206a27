// JupyterLab and Notebook 7 show a reopened notebook's widgets by the state in its metadata. Without any they write "model
// not found", and by default they save none. So at each save the panel leaves there an empty box under its own number: it
// stands in the panel's place when its kernel is gone, above the table of its last state, which is an output of its own.

const STATE = "application/vnd.jupyter.widget-state+json";
const VIEW = "application/vnd.jupyter.widget-view+json";
const MARK = "kernelk-panel-gone";

// The numbers of all widgets that the notebook's outputs name.
function named(notebook) {
  const found = new Set();
  for (let i = 0; i < notebook.cells.length; i++) {
    const outputs = notebook.cells.get(i).outputs;
    for (let j = 0; j < (outputs?.length ?? 0); j++) {
      const view = outputs.get(j).data?.[VIEW];
      if (view?.model_id) found.add(view.model_id);
    }
  }
  return found;
}

function leave(notebook, model) {
  const id = model.get("panel_id");
  const before = notebook.getMetadata("widgets")?.[STATE] ?? {};
  const shown = named(notebook);
  const state = {};
  for (const [key, entry] of Object.entries(before.state ?? {})) {
    const ours = entry?.state?._dom_classes?.includes?.(MARK);
    if (!ours || shown.has(key)) state[key] = entry;
  }
  if (shown.has(id)) {
    const name = { model_name: "BoxModel", model_module: "@jupyter-widgets/controls", model_module_version: "2.0.0" };
    state[id] = { ...name, state: { _dom_classes: [MARK] } };
  }
  const all = { ...(notebook.getMetadata("widgets") ?? {}), [STATE]: { version_major: 2, version_minor: 0, state } };
  notebook.setMetadata("widgets", all);
}

// Keeps the last state in what is saved; returns what ends that. Other front ends have nothing of the kind.
export function keepSaved(model) {
  const context = model.widget_manager?.context;
  if (!context?.saveState?.connect || !context.model?.getMetadata || !context.model.cells) return () => {};
  const save = (_, state) => {
    if (state !== "started") return;
    try {
      leave(context.model, model);
    } catch (error) {
      console.warn("kernelk: the panel's last state can't be kept in the notebook", error);
    }
  };
  context.saveState.connect(save);
  return () => context.saveState.disconnect(save);
}
