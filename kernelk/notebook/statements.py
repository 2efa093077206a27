"""Shows a magic's result where IPython itself doesn't: in a loop, in a `with`, in a function, before a cell's end."""

from __future__ import annotations

import ast
from collections.abc import Collection

from IPython.core.interactiveshell import InteractiveShell


class ShowStatements(ast.NodeTransformer):
    """Of a magic of these names that is a statement by itself, the result is displayed, as `%timeit` prints its own.

    The cell's last statement is left to IPython, which shows its value; a result that is assigned isn't shown.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def visit_Module(self, node: ast.Module) -> ast.Module:
        """A cell."""
        last = node.body[-1] if node.body else None
        node.body = [part if part is last and isinstance(part, ast.Expr) else self.visit(part) for part in node.body]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        """A statement that is an expression."""
        if self._is_magic(node.value):
            # Not a name of the notebook's, where `display` may be the user's own.
            show = ast.parse("__import__('IPython').display.display", mode="eval").body
            call = ast.Call(show, [node.value], [])
            for part in (*ast.walk(show), call):
                ast.copy_location(part, node)
            node.value = call
        return node

    def _is_magic(self, value: ast.expr) -> bool:
        """Whether this is what IPython makes of `%name ...`: get_ipython().run_line_magic("name", "...")."""
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.args):
            return False
        receiver, name = value.func.value, value.args[0]
        return (
            value.func.attr in ("run_line_magic", "run_cell_magic")
            and isinstance(receiver, ast.Call)
            and isinstance(receiver.func, ast.Name)
            and receiver.func.id == "get_ipython"
            and isinstance(name, ast.Constant)
            and name.value in self._names
        )


def load(shell: InteractiveShell, names: Collection[str]) -> None:
    """Shows the results of these magics from the next cell on."""
    shell.ast_transformers.append(ShowStatements(names))


def unload(shell: InteractiveShell) -> None:
    """Undoes `load`."""
    shell.ast_transformers[:] = [one for one in shell.ast_transformers if not isinstance(one, ShowStatements)]
