"""The panel's half in the kernel: a widget that hands messages on, and the last state where there is no kernel."""

from __future__ import annotations

import re
import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

if TYPE_CHECKING:
    from .hub import Hub

_FRONT = Path(__file__).parent / "front"

# In the order in which each may use the ones before it.
MODULES = ("dom", "bars", "engines", "values", "tensors", "timings", "graph", "native", "saved", "panel")

_VIEW = "application/vnd.jupyter.widget-view+json"


@cache
def joined() -> str:
    """The front end as the one module that anywidget loads.

    The page gets it as text, with no address from which a module could import its neighbours, so they are set one
    after the other, without what names them to each other: no name is used by two.
    """
    parts = []
    for name in MODULES:
        text = (_FRONT / f"{name}.js").read_text(encoding="utf-8")
        text = re.sub(r'^import \{[^}]*\} from "\./\w+\.js";\n', "", text, flags=re.MULTILINE)
        if name != MODULES[-1]:
            text = re.sub(r"^export (?=function|const|class|async)", "", text, flags=re.MULTILINE)
        parts.append(text)
    return "\n".join(parts)


@cache
def style() -> str:
    """The style sheet."""
    return (_FRONT / "panel.css").read_text(encoding="utf-8")


class Panel(anywidget.AnyWidget):
    """One panel. All that it shows comes as messages of the hub's; `last` is its static form, for a saved notebook."""

    _esm = joined()
    _css = style()

    panel_id = traitlets.Unicode().tag(sync=True)
    last = traitlets.Unicode().tag(sync=True)

    def __init__(self, hub: Hub, namespace: dict[str, Any]) -> None:
        self.hub = hub
        self.namespace = namespace
        self.views: set[str] = set()
        self.away = False  # whether its last view was closed, as by clearing the cell's output
        self.text = ""
        self._static: Any = None
        number = uuid.uuid4().hex
        super().__init__(model_id=number, panel_id=number)
        self.on_msg(self._received)

    @property
    def mark(self) -> str:
        """The class of the static form's element."""
        return f"kernelk-static-{self.panel_id}"

    def _received(self, _: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict):
            self.hub.receive(self, content)

    def remember(self, html: str, text: str) -> None:
        """Keeps the static form in step, in the notebook's own output too: it is what is saved."""
        if html == self.last:
            return
        self.last, self.text = html, text
        if self._static is not None:
            self._static.update({"text/html": html, "text/plain": text}, raw=True)

    def _ipython_display_(self) -> None:
        """The live view; and beside it, hidden by that, the static form, which pages without a kernel show."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        line = {"text/plain": "kernelk panel"}
        shell = get_ipython()
        if not hasattr(shell, "kernel"):
            print(self.text)
            return
        if self.comm is None:
            display({"text/html": self.last, "text/plain": self.text}, raw=True)  # type: ignore[no-untyped-call]
            return
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display({_VIEW: view, **line}, raw=True)  # type: ignore[no-untyped-call]
        static = {"text/html": self.last, "text/plain": self.text}
        self._static = display(static, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return self.text or "kernelk panel"

    def close(self) -> None:
        """Takes the view away, and lets the static form stand."""
        self.hub.forget(self)
        layout = self.layout
        super().close()
        # A widget of its own, which nobody else has.
        layout.close()
