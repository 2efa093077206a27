"""The scripts of `benchmarks/`, imported for one test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from helpers.processes import PROJECT

BENCHMARKS = PROJECT / "benchmarks"


@contextmanager
def benchmark(name: str) -> Iterator[Any]:
    """The module `benchmarks/NAME.py`; it and what it has imported from there are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module(name)
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "") or "").startswith(str(BENCHMARKS)):
            del sys.modules[module]
