"""The panel's half in the kernel: a widget that hands messages on, and the last state where there is no kernel."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..display.messages import in_notebook
from .static import BELOW

_FRONT = Path(__file__).parent / "front"

# In the order in which each may use the ones before it; the last is what anywidget calls.
MODULES = ("dom", "bars", "engines", "values", "tensors", "training", "timings", "graph", "native", "saved", "panel")

_IMPORT = re.compile(r"""^import\s*\{([^}]*)\}\s*from\s*["']\./(\w+)\.js["'];?[ \t]*$""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class)\b)", re.MULTILINE)
_DECLARED = re.compile(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", re.MULTILINE)

_VIEW = "application/vnd.jupyter.widget-view+json"


@cache
def joined() -> str:
    """The front end as one module.

    The page gets it as text, with no address from which a module could import its neighbours, so they are set one
    after the other, without what names them to each other.
    """
    return join_modules({name: (_FRONT / f"{name}.js").read_text(encoding="utf-8") for name in MODULES})


def join_modules(texts: dict[str, str]) -> str:
    """ES modules as one: each may import names from those before it, and no two may declare the same name.

    Raises ValueError for anything else that would break in the page only.
    """
    parts: list[str] = []
    owners: dict[str, str] = {}
    last = list(texts)[-1]
    for name, text in texts.items():
        for names, module in _IMPORT.findall(text):
            for imported in filter(None, (word.strip() for word in names.split(","))):
                if owners.get(imported) != module:
                    raise ValueError(f"{name}.js imports '{imported}', which no {module}.js before it declares")
        text = _IMPORT.sub("", text)
        if name != last:
            text = _EXPORT.sub("", text)
        left = re.search(rf"^\s*(import{'' if name == last else '|export'})\b.*", text, re.MULTILINE)
        if left:
            raise ValueError(f"{name}.js has `{left[0].strip()}`, which can't be joined; write `import {{ a }} from`")
        for declared in _DECLARED.findall(text):
            if declared in owners:
                raise ValueError(f"{name}.js and {owners[declared]}.js both declare '{declared}'")
            owners[declared] = name
        parts.append(text)
    return "\n".join(parts)


@cache
def style() -> str:
    """The style sheet."""
    return (_FRONT / "panel.css").read_text(encoding="utf-8")


@cache
def boot() -> str:
    """The module that anywidget loads, and that a saved notebook holds: it asks for `joined` and `style`."""
    text = (_FRONT / "boot.js").read_text(encoding="utf-8")
    return re.sub(r"^\s*(//.*\n)?", "", text, flags=re.MULTILINE)


class Panel(anywidget.AnyWidget):
    """One panel. Everything it shows comes in messages from the hub; `last` is its static form, for a saved notebook.

    `receive` is given what its front end sends, `closed` the panel itself when it is taken away.
    """

    _esm = boot()
    # All that a widget's state holds is saved with the notebook, and a layout of forty empty settings with it.
    layout = None

    panel_id = traitlets.Unicode().tag(sync=True)
    # The static form as text, where no output beside the panel shows it: elsewhere than in a Jupyter kernel.
    saved = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        namespace: Mapping[str, Any],
        receive: Callable[[Panel, dict[str, Any]], None],
        closed: Callable[[Panel], None],
    ) -> None:
        self._receive = receive
        self._closed = closed
        self.namespace = namespace
        self.views: set[str] = set()
        self.away = False  # whether its last view was closed, as by clearing the cell's output
        self.last = self.text = ""
        self._static: Any = None
        self._in_jupyter = in_notebook()
        number = uuid.uuid4().hex
        super().__init__(model_id=number, panel_id=number)
        self.on_msg(self._received)

    @property
    def mark(self) -> str:
        """The class of the static form's element."""
        return f"kernelk-static-{self.panel_id}"

    def _received(self, _: Any, content: Any, buffers: Any) -> None:
        if not isinstance(content, dict):
            return
        if content.get("do") == "front":
            self.send({"kind": "front", "code": joined(), "style": style()})
        else:
            self._receive(self, content)

    def remember(self, html: str, text: str) -> None:
        """Keeps the static form in step, in the notebook's own output too: it is what is saved."""
        if html == self.last:
            return
        self.last, self.text = html, text
        if not self._in_jupyter:
            self.saved = f"{text}\n\n{BELOW}"
        elif self._static is not None:
            self._static.update({"text/html": html, "text/plain": text}, raw=True)

    def _ipython_display_(self) -> None:
        """The live view, and the static form that it hides, which pages without a kernel show."""
        from IPython.display import display

        if not self._in_jupyter:
            print(self.text)
            return
        if self.comm is None:
            display({"text/html": self.last, "text/plain": self.text}, raw=True)  # type: ignore[no-untyped-call]
            return
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        # Front ends without widgets, and nbconvert, show nothing here but the static form below.
        display({_VIEW: view, "text/html": ""}, raw=True)  # type: ignore[no-untyped-call]
        static = {"text/html": self.last, "text/plain": self.text}
        self._static = display(static, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return self.text or "kernelk panel"

    def close(self) -> None:
        """Takes the view away, and lets the static form stand."""
        self._closed(self)
        super().close()
