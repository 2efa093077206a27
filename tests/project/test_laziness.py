"""Nothing is imported or started before it is needed."""

from __future__ import annotations

import pytest
from helpers.processes import run_script

import kernelk

HEAVY = [
    "tensorflow",
    "theano",
    "cntk",
    "keras",
    "jax",
    "torch",
    "IPython",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "igraph",
    "anywidget",
    "ipyparallel",
    "ipywidgets",
]
_LOADED = f"""
import sys
def loaded():
    heavy = [name for name in {HEAVY} if name in sys.modules]
    heavy += [name for name in sys.modules if name.startswith("kernelk.backends.") and name.endswith(".backend")]
    return sorted(heavy)
"""


def children() -> str:
    """Code that tells how many child processes there are."""
    return "open(f'/proc/self/task/{__import__(\"threading\").get_native_id()}/children').read().split()"


def test_importing_kernelk_imports_next_to_nothing() -> None:
    code = _LOADED + "import kernelk\nresult = [loaded(), 'numpy' in sys.modules, kernelk.__version__ != '']"
    assert run_script(code) == [[], False, True]


def test_asking_for_the_session_imports_neither_numpy_nor_an_engine() -> None:
    code = (
        _LOADED
        + "from kernelk.session import current, entered, existing\nimport kernelk.graph.state\n"
        + "result = [existing(), loaded(), 'numpy' in sys.modules]"
    )
    assert run_script(code) == [None, [], False]


def test_importing_k_and_writing_a_graph_imports_no_engine() -> None:
    code = (
        _LOADED
        + "from kernelk import backend as K\n"
        + "x = K.placeholder((None, 3)); w = K.variable([[1.0]] * 3)\n"
        + "loss = K.mean(K.softmax(K.dot(x, w))); g = K.gradients(loss, [w])\n"
        + "call = K.function([x], [loss], [K.update_sub(w, g[0])])\n"
        + "import kernelk; kernelk.list_backends()\n"
        + f"result = [loaded(), {children()}, K.get_value(w).tolist()]"
    )
    assert run_script(code) == [[], [], [[1.0], [1.0], [1.0]]]


@pytest.mark.parametrize("chosen", ["tensorflow", "theano", "cntk", "numpy"])
def test_load_ext_imports_and_starts_no_engine(chosen: str) -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "import sys; before = set(sys.modules)\n"
        + _LOADED
        + "shell.run_line_magic('load_ext', 'kernelk')\n"
        + f"result = [[n for n in loaded() if n not in before], {children()}]"
    )
    assert run_script(code, KERNELK_BACKEND=chosen) == [[], []]


def test_listing_engines_imports_none() -> None:
    code = (
        _LOADED
        + "from kernelk.engines import registry\n"
        + "result = [[registry.engine(n).name for n in registry.names()], loaded()]"
    )
    names, heavy = run_script(code)
    assert {"numpy", "tensorflow", "theano", "cntk"} <= set(names)
    assert heavy == []


def test_only_the_numpy_backend_is_loaded_for_numpy() -> None:
    code = (
        _LOADED
        + "import kernelk\nkernelk.set_backend('numpy')\n"
        + "from kernelk import backend as K\nK.eval(K.constant(1.0) + 1.0)\n"
        + f"result = [loaded(), {children()}]"
    )
    assert run_script(code) == [["kernelk.backends.numpy.backend"], []]


def test_the_kernel_never_imports_an_engine_that_runs_in_a_worker(worker: str) -> None:
    code = (
        _LOADED
        + f"import kernelk\nkernelk.set_backend({worker!r})\nfrom kernelk import backend as K\n"
        + f"value = float(K.eval(K.constant(1.0) + 1.0))\nresult = [loaded(), len({children()}), value]"
    )
    assert run_script(code) == [[], 1, 2.0]


def test_the_programs_list_imports_nothing_that_computes_or_installs() -> None:
    code = (
        "import contextlib, io, sys\nfrom kernelk.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown:\n    status = main(['list'])\n"
        "heavy = [name for name in ('numpy', 'filelock', 'IPython') if name in sys.modules]\n"
        "result = [status, 'numpy: installed' in shown.getvalue(), heavy]"
    )
    assert run_script(code) == [0, True, []]


def test_the_names_that_are_loaded_late_are_listed() -> None:
    assert {"set_backend", "save", "compare", "__version__"} <= set(dir(kernelk))
