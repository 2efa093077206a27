"""What several test files share: fake engines, scripts in processes of their own, notebook cells, comparisons."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np

import kernelk
from kernelk.engines import registry
from kernelk.engines.descriptors import Engine
from kernelk.graph.nodes import Tensor

PROJECT = Path(kernelk.__file__).parent.parent
TESTS = Path(__file__).parent
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
RTOL = {"float16": 8e-3, "float32": 3e-5, "float64": 1e-9}
ATOL = {"float16": 4e-3, "float32": 2e-6, "float64": 1e-11}


class _Known(EntryPoint):
    """An entry point whose object is here already."""

    def load(self) -> Any:
        return _descriptors[self.name]


_descriptors: dict[str, Engine] = {}


def register(monkeypatch: Any, engine: Engine) -> None:
    """Makes an engine known to the registry for one test."""
    _descriptors[engine.name] = engine
    registry._descriptor.cache_clear()
    entry = _Known(engine.name, "tests:engine", "kernelk.backends")
    monkeypatch.setitem(registry._entries(), engine.name, entry)


def environment(**settings: str | None) -> dict[str, str]:
    """The environment of a process that tests this kernelk; None takes a variable away."""
    chosen: dict[str, str | None] = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(TESTS)])}
    chosen.update(settings)
    return {name: value for name, value in chosen.items() if value is not None}


def run_script(code: str, **settings: str | None) -> Any:
    """Runs code in a new interpreter; what it leaves in `result` comes back by way of JSON."""
    script = f"{code}\nimport json as _json, sys as _sys\n_sys.stdout.flush()\nprint('\\n' + _json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(**settings), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_CELLS = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance(colors="nocolor")
shell.ast_node_interactivity = "last_expr"
result = []
for cell in json.loads(sys.stdin.read()):
    with capture_output() as captured:
        done = shell.run_cell(cell, store_history=True)
    error = done.error_before_exec or done.error_in_exec
    result.append({
        "out": captured.stdout,
        "err": captured.stderr,
        "shown": [o.data.get("text/plain", "") for o in captured.outputs],
        "html": [o.data.get("text/html", "") for o in captured.outputs],
        "error": type(error).__name__ if error else None,
        "value": repr(done.result),
    })
sys.stdout.flush()
print("\\n" + json.dumps(result))
"""


def run_cells(cells: Sequence[str], **settings: str | None) -> list[dict[str, Any]]:
    """Runs notebook cells in a real IPython shell in a new process; what each printed, showed and raised."""
    done = subprocess.run(
        [sys.executable, "-c", _CELLS],
        input=json.dumps(list(cells)),
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def wait_until(predicate: Callable[[], bool], seconds: float = 60) -> bool:
    """Waits for something that other processes do; False if it hasn't happened after a generous time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if predicate():
            return True
        time.sleep(0.02)
    return predicate()


def alive(pid: int) -> bool:
    """Whether any thread of the process still runs: a process is dying while its first thread is a zombie already."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    for task in tasks:
        try:
            stat = Path(f"/proc/{pid}/task/{task}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            return True
    return False


def same_bits(a: Any, b: Any) -> bool:
    """Same dtype, shape and bytes: NaN payloads and signs of zero count."""
    return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fits(tensor: Tensor, value: Any) -> bool:
    """Whether a value has the dtype and, as far as it was known, the shape that the graph promised."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.name == tensor.dtype
        and value.ndim == len(tensor.shape)
        and all(n in (None, m) for n, m in zip(tensor.shape, value.shape))
    )


def assert_close(got: Any, wanted: Any, dtype: str | None = None, label: object = "", scale: float = 1.0) -> None:
    """Equal shapes and nearly equal values, at the precision of `dtype` (the wanted one's); exact for integers."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"{label}: shape {got.shape}, not {wanted.shape}"
    dtype = dtype or wanted.dtype.name
    if dtype in RTOL:
        np.testing.assert_allclose(
            got.astype(np.float64),
            wanted.astype(np.float64),
            rtol=RTOL[dtype] * scale,
            atol=ATOL[dtype] * scale,
            err_msg=str(label),
        )
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=str(label))


def lacking_engine(
    monkeypatch: Any,
    name: str,
    ops: set[str] | frozenset[str] = frozenset(),
    dtypes: set[str] | frozenset[str] = frozenset(),
) -> Any:
    """Registers a third party's engine in the kernel: numpy without some ops and dtypes. Returns its module."""
    import types

    from kernelk.backends.lowering import lower
    from kernelk.backends.numpy import backend

    class Lacking(backend.NumpyBackend):
        """What a new engine's author has after the first day."""

        def facts(self) -> dict[str, Any]:
            return {**super().facts(), "version": "0.1"}

        def compile(self, program: Any, constants: Any) -> Any:
            def run(feeds: Any, state: Any, draws: Any) -> Any:
                with np.errstate(all="ignore"):
                    values = lower(program, [*feeds, *state, *draws, *constants], self.ops)
                return [values[i] for i in program.outputs], [values[i] for _, i in program.updates]

            return run

    Lacking.name = name
    Lacking.ops = {op: function for op, function in backend.OPS.items() if op not in ops}
    Lacking.dtypes = tuple(dtype for dtype in DTYPES if dtype not in dtypes)
    module: Any = types.ModuleType(f"kernelk.backends.{name}_backend")
    module.Lacking = Lacking
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register(monkeypatch, Engine(name, name.capitalize(), module.__name__, "Lacking", in_kernel=True))
    from kernelk.session.current import current

    # The next test's engine of this name is another one.
    monkeypatch.setitem(current().hosts, name, None)
    del current().hosts[name]
    return module


def slow_engine(monkeypatch: Any, seconds: dict[str, float]) -> None:
    """An engine "slow" in the kernel: numpy, whose ops named here take at least so long."""
    ops = lacking_engine(monkeypatch, "slow").Lacking.ops

    def slowed(function: Any, pause: float) -> Any:
        def call(*arguments: Any, **attrs: Any) -> Any:
            time.sleep(pause)
            return function(*arguments, **attrs)

        return call

    for op, pause in seconds.items():
        ops[op] = slowed(ops[op], pause)


def program(path: Path, script: str) -> Path:
    """A shell script as a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def this_python(path: Path) -> Path:
    """A program that is the Python of the tests."""
    return program(path, f'exec {shlex.quote(sys.executable)} "$@"')


def fake_python(path: Path, version: str) -> Path:
    """A program that answers kernelk's question for the version, and does nothing else."""
    answer = {"version": version, "executable": str(path), "fit": True, "shared": True, "base": "/", "prefix": "/"}
    return program(path, f"echo {shlex.quote(json.dumps(answer))}")


def one_line(error: BaseException) -> str:
    """The message of an error, which has to be one line with a next command."""
    assert "\n" not in str(error)
    return str(error)
