"""Makes `import keras` give Keras 2.3.1 with kernelk as its backend, as its users have it, for Keras's own tests."""

from __future__ import annotations

import ast
import collections
import collections.abc
import functools
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SUITE = Path(__file__).resolve().parent
PROJECT = SUITE.parent.parent
BUILD = PROJECT / "build" / "keras-suite"
PACKAGES = BUILD / "packages"
KERAS = BUILD / "Keras-2.3.1"
ENGINE_PACKAGES = ("tensorflow", "theano", "cntk")


class Counts:
    """How often Keras and its tests called kernelk: K functions, and programs run by each engine."""

    def __init__(self) -> None:
        self.calls = 0
        self.runs: collections.Counter[str] = collections.Counter()


def load(engine: str) -> tuple[types.ModuleType, Counts, list[str]]:
    """`kernelk.backend` with Keras 2.3.1 imported on it, the counts of its calls, and the names that it lacks.

    To be called before anything imports kernelk or keras. A name that Keras imports and kernelk lacks gets a stand-in
    that raises AttributeError, so that all the rest can be tested.
    """
    os.environ["KERAS_HOME"] = str(BUILD / "home")
    os.environ["KERNELK_BACKEND"] = engine
    os.environ["KERNELK_QUIET"] = "1"
    sys.path.insert(0, str(PROJECT))
    _mend_python()

    import kernelk
    from kernelk import backend
    from kernelk.session.calls import Calls

    counts = Counts()
    missing = [name for name in _imported_names() if not hasattr(backend, name)]
    for name in missing:
        setattr(backend, name, _stand_in(name))
    for name, value in list(vars(backend).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("_"):
            setattr(backend, name, _counted(value, counts))
    execute = Calls.execute

    @functools.wraps(execute)
    def counted_execute(self: Any, host: Any, *args: Any, **kwargs: Any) -> Any:
        values = execute(self, host, *args, **kwargs)
        counts.runs[host.engine.name] += 1
        return values

    Calls.execute = counted_execute  # type: ignore[method-assign]

    kernelk.enable_keras2()
    import keras
    from keras.backend import numpy_backend

    numpy_backend.np = _OldNumpy()
    assert keras.__version__ == "2.3.1"
    assert keras.backend.backend() == engine
    # Where an engine is named, Keras's tests expect its own objects.
    tests = str(KERAS / "tests")
    keras.backend.backend = lambda: (
        "kernelk.backend" if sys._getframe(1).f_code.co_filename.startswith(tests) else "tensorflow"
    )
    assert keras.backend.dot is backend.dot
    return backend, counts, missing


def _mend_python() -> None:
    """Names that Python, numpy and this environment had in 2019 and Keras's tests use."""
    for name in collections.abc.__all__:
        setattr(collections, name, getattr(collections.abc, name))
    for name, value in {"Inf": np.inf, "alltrue": np.all, "int": int}.items():
        if not hasattr(np, name):
            setattr(np, name, value)


class _OldNumpy:
    """numpy for Keras's reference: it takes equals in their order, as argsort of few elements gave them in 2019."""

    argsort = staticmethod(functools.partial(np.argsort, kind="stable"))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _imported_names() -> list[str]:
    """What `keras.backend` imports of whichever backend it is given."""
    tree = ast.parse((KERAS / "keras" / "backend" / "__init__.py").read_text())
    # Those that are asked of one engine alone stand in an `if`, not in the body itself.
    imports = [statement for statement in tree.body if isinstance(statement, ast.ImportFrom)]
    return [alias.name for statement in imports for alias in statement.names]


def _stand_in(name: str) -> Callable[..., Any]:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError(f"kernelk.backend has no '{name}'")

    missing.__name__ = name
    return missing


def _counted(function: Any, counts: Counts) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        counts.calls += 1
        return function(*args, **kwargs)

    return call
