"""kernelk: the Keras backend API, K, on an engine that can be changed at any moment. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = "0.1.0"


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
    "set_backend": "swap",
    "stop_backend": "swap",
    "using": "swap",
    "list_backends": "status",
    "tensors": "listing",
    "panel": "widgets",
    "diff": "divergence",
    "time": "timing",
    "compare": "comparison",
    "profile": "profiling",
    "draw": "drawing",
    "show": "showing",
    "install": "environments",
    "uninstall": "environments",
    "doctor": "health",
    "save": "saving",
    "load": "saving",
    "log": "logs",
}


def __getattr__(name: str) -> Any:
    # Only when first asked for: `import kernelk` has to stay light.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'kernelk' has no attribute '{name}'")
