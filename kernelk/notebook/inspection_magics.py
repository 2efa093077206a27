"""The magics that show what is in the session: `%ktensors`, `%kpanel`; each has a Python twin that does the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class, needs_local_scope, no_var_expand

from ..inspection.columns import COLUMNS, KINDS
from .arguments import argument, magic_arguments, parse
from .expressions import names_in


@magics_class
class InspectionMagics(Magics):
    """Inspecting has no side effects, and starts no engine."""

    @no_var_expand
    @magic_arguments("one filter", "%ktensors --values w*")
    @argument("filter", nargs="?", default="", metavar="FILTER", help="a name, a part of one or of an op, or w*")
    @argument("--values", action="store_true", help="with min, max, mean, std, NaN, infinity and a histogram")
    @argument("--kind", metavar="K", help="only this kind: " + ", ".join(KINDS))
    @argument("--sort", metavar="COLUMN", help="by " + ", ".join(COLUMNS))
    @needs_local_scope
    @line_magic
    def ktensors(self, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        """Lists the session's variables, placeholders, tensors and functions, by your names for them.

        Examples::

          %ktensors                        all of them, in the order in which they were made
          %ktensors --values               with statistics of their values
          %ktensors --values loss          with statistics of one tensor
          %ktensors layers*                tensors whose name, or op, matches
          %ktensors --kind variable --sort bytes
          %ktensors --sort nan             tensors with the most NaNs first

        Values are the variables' own, the placeholders' last feeds, or computed from these on the active engine, if it
        is running; missing values are explained. The result has .rows, .summaries, .to_frame() and .to_json().
        Python twin: kernelk.tensors("loss", values=True, kind="tensor", sort="bytes").
        """
        from ..inspection.tensor_list import tensors

        given = parse(self.ktensors, line)
        namespace = names_in(self.shell, local_ns)  # type: ignore[arg-type]
        return tensors(given.filter, values=given.values, kind=given.kind, sort=given.sort, namespace=namespace)

    @magic_arguments("no arguments", "%kpanel")
    @line_magic
    def kpanel(self, line: str) -> Any:
        """Opens a panel under the cell: every engine, tensors with their values, timings, graphs, native forms.

        Examples::

          %kpanel             one click or key swaps the engine; changes are shown at once

        Any number of panels can be open, also in other views of the notebook. Needs kernelk[panel]. Python twin:
        kernelk.panel().
        """
        from ..widgets import panel

        parse(self.kpanel, line)
        return panel(self.shell.user_ns)  # type: ignore[union-attr]
