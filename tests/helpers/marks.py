"""Marks tests by cost, derived from their fixtures and the code that they call, so that no list has to be kept."""

from __future__ import annotations

import inspect
import re
from types import CodeType, FunctionType
from typing import Any

import pytest

from helpers.engines import WORKERS

# By the names of fixtures, and of functions that a test calls, by itself or through others of its file.
BROWSER = {"browsing", "need_browser"}
KERNEL = {
    "run_cells", "run_script", "start_new_kernel", "NotebookClient", "pexpect", "subprocess", "execute", "tiny",
    "local_cluster", "far_cluster",
}  # fmt: skip
WORKER = {"activate", "every_engine", "require_python", "worker"}


def mark(item: pytest.Function) -> None:
    """Adds `worker`, `kernel` and `browser` as they apply, and `soak` where the parity suite has the same values."""
    called = _called(item.function, set())
    for name in item.fixturenames:
        called.add(name)
        for fixture in item._fixtureinfo.name2fixturedefs.get(name, ()):
            # The suite's own fixtures are named above; a file's are looked into.
            if fixture.func.__module__ == item.module.__name__:
                called |= _called(fixture.func, set())
    engines = set(re.findall(r"\w+", item.callspec.id)) & set(WORKERS) if hasattr(item, "callspec") else set()
    if engines and item.get_closest_marker("values"):
        item.add_marker("soak")
    if called & BROWSER:
        item.add_marker("browser")
    if called & KERNEL:
        item.add_marker("kernel")
    if called & WORKER or engines:
        item.add_marker("worker")


def _called(function: Any, seen: set[Any]) -> set[str]:
    """The names in a function's code, and in that of the functions of its own file that it names."""
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, FunctionType) or function in seen:
        return set()
    seen.add(function)
    found = _names(function.__code__)
    for name in list(found):
        other = function.__globals__.get(name)
        if getattr(other, "__module__", None) == function.__module__:
            found |= _called(other, seen)
    return found


def _names(code: CodeType) -> set[str]:
    found = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
