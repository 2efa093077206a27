// All of the front end that is saved with a notebook: it asks the kernel for the rest. Without one it draws nothing, so that
// the table below the panel stands alone, or, in a host that shows none below, the table as text.

const PATIENCE = 300;

export default {
  render({ model, el }) {
    let leave = null;
    let over = false;
    const saved = model.get("saved");
    if (saved) el.append(Object.assign(document.createElement("pre"), { textContent: saved }));
    const wait = setTimeout(async () => {
      // Not every front end tells whether a kernel is there.
      const whole = await model.widget_manager?.get_model?.(model.get("panel_id")).catch(() => null);
      if (!leave && !over && whole?.comm_live) el.textContent = "The panel opens when the running cell ends";
    }, PATIENCE);
    const receive = async (message) => {
      if (message?.kind !== "front" || leave || over) return;
      leave = () => {};
      clearTimeout(wait);
      const url = URL.createObjectURL(new Blob([message.code], { type: "text/javascript" }));
      const front = await import(/* webpackIgnore: true */ url);
      URL.revokeObjectURL(url);
      if (over) return;
      const style = document.createElement("style");
      style.textContent = message.style;
      el.replaceChildren(style);
      leave = front.default.render({ model, el });
    };
    model.on("msg:custom", receive);
    model.send({ do: "front" });
    return () => {
      over = true;
      clearTimeout(wait);
      model.off("msg:custom", receive);
      leave?.();
    };
  },
};
