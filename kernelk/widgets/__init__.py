"""The panel that `%kpanel` opens under a cell; it and anywidget are imported only when it is opened.

`model` is the widget in the kernel, `hub` hears what happens in the session and tells every open panel, `facts` makes
the plain data that the front end shows, `static` the table that stands in a saved notebook. `front/` is the front end:
one small ES module for each part of the page, and one style sheet, as they are: there is no build step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..display.commands import in_shell_and_notebook
from ..errors import ArgumentError, one_line

if TYPE_CHECKING:
    from .model import Panel


def panel(namespace: Mapping[str, Any] | None = None) -> Panel:
    """Opens a panel under the cell: engines, tensors, timings, graphs. The Python twin of `%kpanel`.

    `namespace`: where tensors get their names, the notebook's or the calling module's unless given. Any number may be
    open; they show the same.
    Raises ArgumentError where anywidget isn't installed.
    """
    try:
        import anywidget  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "anywidget":
            raise _unable(error) from None
        command = 'pip install "kernelk[panel]"'
        raise ArgumentError(
            f"the panel needs anywidget, which isn't installed in this notebook's environment ({sys.prefix})",
            next_step=f"{in_shell_and_notebook(command)}, and reload the page",
        ) from None
    except ImportError as error:
        raise _unable(error) from None
    from .hub import hub

    return hub().open(namespace)


def _unable(error: ImportError) -> ArgumentError:
    return ArgumentError(
        f"this notebook's kernel can't show widgets, as the panel is one ({one_line(error)})",
        next_step="kernelk.list_backends() and kernelk.tensors(), which show the same as tables",
    )


def close_panels() -> None:
    """Closes every panel and removes all callbacks. Imports nothing."""
    loaded = sys.modules.get(f"{__name__}.hub")
    if loaded is not None:
        loaded.close()
