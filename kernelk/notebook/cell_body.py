"""Turns the text of a magic, a cell or an expression, into a function that runs where the magic was called."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ..errors import ArgumentError
from ..source import CELL


def body(
    shell: InteractiveShell, text: str, magic: str, example: str, local: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """A function that runs the text in the shell's namespace, with keyword arguments as names while it runs.

    `local`: the names where the magic was called; those of a function come before the notebook's. Errors show its
    lines as those of a cell. Raises ArgumentError for text that is empty or no Python.
    """
    if not text.strip():
        raise ArgumentError(f"{magic} was given nothing to run", next_step=example)
    source: str = shell.transform_cell(text)  # type: ignore[no-untyped-call]
    name = shell.compile.cache(source, CELL.number)
    try:
        tree = ast.parse(source, name)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ArgumentError(
            f"{magic}: the code has a syntax error in line {error.lineno} ({line}): {error.msg}", next_step=example
        ) from None
    if local is not None and local is not shell.user_ns:
        return closure(tree.body, name, shell.user_ns, local)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    statements = compile(tree, name, "exec")
    expression = compile(ast.Expression(last.value), name, "eval") if isinstance(last, ast.Expr) else None

    def run(**names: Any) -> Any:
        __tracebackhide__ = True
        namespace = shell.user_ns
        before = {name: namespace[name] for name in names if name in namespace}
        namespace.update(names)
        try:
            exec(statements, namespace)
            return eval(expression, namespace) if expression is not None else None
        finally:
            # These names may be the user's own: restore them.
            for name in names:
                if name not in before:
                    namespace.pop(name, None)
            namespace.update(before)

    run.__name__ = "cell"
    return run


def closure(body: list[ast.stmt], file: str, namespace: dict[str, Any], local: Mapping[str, Any]) -> Callable[[], Any]:
    """A function of this body that sees a function's local names before the namespace's; it returns its last value.

    Assignments are its own. Raises SyntaxError.
    """
    nodes = [node for statement in body for node in ast.walk(statement)]
    declared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    # Parameters, so that functions and comprehensions in the body see them as well.
    seen = {node.id for node in nodes if isinstance(node, ast.Name)}.intersection(local) - declared
    head: Any = ast.parse(f"def cell({', '.join(sorted(seen))}):\n    pass", file)
    if body:
        *before, last = body
        head.body[0].body = [
            *before,
            ast.copy_location(ast.Return(last.value), last) if isinstance(last, ast.Expr) else last,
        ]
    made: dict[str, Any] = {}
    exec(compile(head, file, "exec"), namespace, made)
    run = made["cell"]
    values = {name: local[name] for name in seen}

    def cell() -> Any:
        __tracebackhide__ = True
        return run(**values)

    return cell
