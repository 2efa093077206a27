"""A light worker for scripts of their own: numpy behind the wire, as the engine "spare", with an `exp` as one needs it.

Needs no pytest: it is imported by kernels that a test starts, and ends.
"""

from __future__ import annotations

import types

from helpers import own_settings  # noqa: F401
from helpers.fake_engines import register
from kernelk.engines import worker_host
from kernelk.engines.descriptors import Engine

LAST = 'importlib.import_module("kernelk.backends.serving.worker").main('

# An `exp` in C code that keeps Python's lock for ever, beside a process that the worker has started, as a compiler is.
SPIN = """
import itertools, subprocess, tempfile
def spin(instruction, x):
    helper = subprocess.Popen(["sleep", "100000"])
    open(os.path.join(tempfile.gettempdir(), "left"), "w").close()
    os.write(1, ("%d in C\\n" % helper.pid).encode())
    sum(itertools.repeat(0))
"""


def light(exp: str = "", before: str = "") -> str:
    """Makes the engine known and returns its name; `exp` is code that defines its `exp`, by that or another name.

    `before` is run in the worker before it serves.
    """
    put = types.SimpleNamespace(setitem=lambda table, key, value: table.__setitem__(key, value))
    register(put, Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy", install="pip install numpy"))
    code = before
    if exp:
        name = exp[exp.rindex("def ") + 4 :].partition("(")[0]
        code += f'\n{exp}\nimportlib.import_module("kernelk.backends.numpy.backend").OPS["exp"] = {name}\n'
    assert LAST in worker_host._BOOT
    worker_host._BOOT = worker_host._BOOT.replace(LAST, f"{code}\n{LAST}")
    return "spare"
