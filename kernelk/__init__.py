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


def __getattr__(name: str) -> Any:
    # Only when first asked for: `import kernelk` has to stay light.
    if name in ("set_backend", "list_backends", "diff"):
        if name == "set_backend":
            from .swap import set_backend

            return set_backend
        if name == "diff":
            # Its module has another name: imported, it would come in the function's place.
            from .divergence import diff

            return diff
        # Not "backends": that is the name of the package of engines, which would come in its place once imported.
        from .status import list_backends

        return list_backends
    raise AttributeError(f"module 'kernelk' has no attribute '{name}'")
