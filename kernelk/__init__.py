"""kernelk: the Keras backend API, K, with an engine that you can swap at any time. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """`%load_ext kernelk`: the magics, and cell numbers in errors."""
    from . import magics

    magics.load(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """`%unload_ext kernelk`: takes them back and stops the workers."""
    from . import magics

    magics.unload(ipython)


# What `kernelk.NAME` is, and the module that has it. No module may have such a name itself: imported, it would come in
# the function's place (and so would the package of engines in that of "backends").
_LAZY = {
    "set_backend": "session.swap",
    "stop_backend": "session.swap",
    "using": "session.swap",
    "list_backends": "manage.status",
    "tensors": "inspection.tensor_list",
    "panel": "widgets",
    "diff": "measure.divergence",
    "time": "measure.timing",
    "compare": "measure.comparison",
    "profile": "measure.profiling",
    "draw": "drawing.drawing",
    "show": "drawing.engine_graphs",
    "enable_keras2": "keras2",
    "disable_keras2": "keras2",
    "install": "manage.install",
    "uninstall": "manage.install",
    "doctor": "manage.doctor_report",
    "save": "session.saving",
    "load": "session.saving",
    "log": "manage.logs",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    # Only when first asked for: `import kernelk` has to stay light.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'kernelk' has no attribute '{name}'")
