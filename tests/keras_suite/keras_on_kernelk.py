"""Makes `import keras` give Keras 2.3.1 with kernelk as its backend, as its users have it, for Keras's own tests."""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import functools
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SUITE = Path(__file__).resolve().parent
PROJECT = SUITE.parent.parent
BUILD = PROJECT / "build" / "keras-suite"
PACKAGES = BUILD / "packages"
KERAS = BUILD / "Keras-2.3.1"
TESTS = KERAS / "tests"
# What the tests need beside Keras; the product's own environment doesn't get it.
SITE = BUILD / "site-packages"
ENGINE_PACKAGES = ("tensorflow", "theano", "cntk")
BACKEND_TEST = "keras/backend/backend_test.py"
# Ours, run as if it were one of Keras's.
MODELS = "keras_models.py"


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
    from keras.utils import vis_utils

    from kernelk.keras2.old_modules import StandIn

    # It takes equals in their order, as argsort of few elements gave them in 2019.
    numpy_backend.np = StandIn("numpy", numpy_backend.np, argsort=functools.partial(np.argsort, kind="stable"))
    # It draws an empty graph first, to see whether Graphviz is there: not as PostScript, which the suite's lacks.
    vis_utils.pydot.Dot.create.__defaults__ = (None, "png", None)
    assert keras.__version__ == "2.3.1"
    assert keras.backend.backend() == engine
    # Where an engine is named, the backend's tests expect its own objects.
    own = str(TESTS / BACKEND_TEST)
    keras.backend.backend = lambda: "kernelk.backend" if sys._getframe(1).f_code.co_filename == own else "tensorflow"
    assert keras.backend.dot is backend.dot
    _mend_imports()
    return backend, counts, missing


def _mend_imports() -> None:
    """Keras's tests, which are as old as it is, import what its own modules do."""
    from kernelk import backend
    from kernelk.keras2 import old_modules

    plain = builtins.__import__
    numpy = old_modules.stand_in("numpy")
    changed = {
        "numpy": old_modules.StandIn("numpy", numpy, argmax=_argmax, max=_of_lists(np.max), min=_of_lists(np.min)),
        "pytest": old_modules.StandIn("pytest", pytest, raises=_raises, warns=_warns),
        "numpy.testing": old_modules.StandIn("numpy.testing", np.testing, assert_allclose=_assert_allclose),
    }

    def imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if str((globals or {}).get("__file__", "")).startswith(str(TESTS)):
            if name in changed:
                return changed[name]
            if name.partition(".")[0] in old_modules.STAND_INS:
                return old_modules.stand_in(name, fromlist or ())
        return plain(name, globals, locals, fromlist, level)

    builtins.__import__ = imported
    # Some tests make a variable by TensorFlow's name for it.
    tensorflow = old_modules.stand_in("tensorflow")
    tensorflow.Variable, tensorflow.float32 = backend.variable, "float32"


def _argmax(a: Any, axis: Any = None, out: Any = None) -> Any:
    """numpy's, as the function of Python that it was."""
    return np.argmax(a, axis, out)


def _of_lists(reduce: Any) -> Any:
    """numpy's `max` or `min`, which took lists of different lengths, too."""
    from kernelk.keras2 import old_modules

    return lambda a, *args, **options: reduce(old_modules.stand_in("numpy").asarray(a), *args, **options)


def _warns(expected: Any, *args: Any, **options: Any) -> Any:
    """pytest's `warns`, which took None for any number of warnings, none included."""
    if expected is None:
        return warnings.catch_warnings(record=True)
    return pytest.warns(expected, *args, **options)


def _raises(expected: Any, *args: Any, **options: Any) -> Any:
    """pytest's `raises`, whose errors have the `message` of Python 2."""
    return pytest.raises(expected, *args, **options) if args else _raising(expected, **options)


@contextlib.contextmanager
def _raising(expected: Any, **options: Any) -> Any:
    with pytest.raises(expected, **options) as caught:
        yield caught
    caught.value.message = str(caught.value)


# Four times the distance of 1.0 to the next float32: both sides are rounded, more than once.
_FLOAT32 = 4 * float(np.finfo("float32").eps)


def _assert_allclose(actual: Any, desired: Any, rtol: float = _FLOAT32, **options: Any) -> None:
    """numpy's, whose own tolerance, where a test names none, is 1e-7: less than float32 can tell."""
    np.testing.assert_allclose(actual, desired, rtol=rtol, **options)


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
