"""What an engine's process says: in the cell that caused it and in order, the rest in a log that a flood can't fill."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.engines import WORKERS, activate
from helpers.messages import one_line
from helpers.notebooks import run_cells
from helpers.processes import alive, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import worker_host as workers
from kernelk.engines.worker_log import WorkerLog
from kernelk.errors import ArgumentError, EngineError, UnknownBackendError, WorkerDiedError
from kernelk.session.current import current

Talk = Callable[[str], None]


@pytest.fixture
def talk(spare: str, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Has the engine "spare" run this code each time that it computes an `exp`; the user isn't in quiet mode."""
    monkeypatch.delenv("KERNELK_QUIET")

    def set_up(code: str, before: str = "") -> None:
        lines = "".join(f"    {line}\n" for line in code.splitlines())
        patch = (
            "import ctypes, time, warnings\nimport numpy as np\n"
            "said = importlib.import_module('kernelk.backends.numpy.backend')\n"
            f"{before}\ncompute = said.OPS['exp']\n"
            f"def exp(instruction, x):\n{lines}    return compute(instruction, x)\n"
            "said.OPS['exp'] = exp\n"
        )
        last = 'importlib.import_module("kernelk.backends.serving.worker").main('
        monkeypatch.setattr(workers, "_BOOT", workers._BOOT.replace(last, patch + last))
        kernelk.set_backend("spare")

    return set_up


def test_a_call_prints_what_its_engine_said_in_order(talk: Talk, capsys: Any) -> None:
    talk(
        "print('from Python')\nos.write(2, b'from fd 2\\n')\nsys.stderr.write('warned\\n')\n"
        "ctypes.CDLL(None).puts(b'from C')\nos.write(1, b'no end')",
        before="print('at import')",
    )
    y = K.print_tensor(K.exp(K.variable([0.0])), "value")
    capsys.readouterr()
    print("before")
    K.eval(y)
    print("after")
    out, err = capsys.readouterr()
    # Not in a notebook: kernelk's words go to standard error there.
    assert out == "before\nvalue [1.]\nafter\n"
    assert err == "from Python\nfrom fd 2\nwarned\nfrom C\nno end\n"
    text = kernelk.log("spare").text
    assert text.splitlines()[0].startswith("--- Spare, pid ")
    assert text.splitlines()[1:] == ["at import", "from Python", "from fd 2", "warned", "from C", "no end"]


def test_what_is_said_between_calls_is_in_the_log_alone(talk: Talk, capsys: Any) -> None:
    talk("pass", before="import threading\nthreading.Timer(0.8, lambda: print('in between')).start()")
    y = K.exp(K.variable([0.0]))
    K.eval(y)
    assert wait_until(lambda: "in between" in kernelk.log().text)
    capsys.readouterr()
    K.eval(y)
    assert capsys.readouterr() == ("", "")


def test_warnings_come_at_the_users_line_and_under_the_users_filters(talk: Talk, capsys: Any) -> None:
    talk(
        "class Special(RuntimeWarning): pass\nfor _ in range(2):\n    warnings.warn('lossy step', Special)\n"
        "warnings.warn('rank', np.exceptions.ComplexWarning)\nwarnings.warn('old', DeprecationWarning, stacklevel=2)"
    )
    y = K.exp(K.variable([0.0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno + 1
        K.eval(y)
    assert [(w.category, w.filename, w.lineno) for w in caught] == [
        (RuntimeWarning, __file__, line),
        (np.exceptions.ComplexWarning, __file__, line),
    ]
    assert str(caught[0].message).startswith("lossy step (Spare, <string>, line ")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", RuntimeWarning)
        K.eval(y)
    assert not [w for w in caught if w.category is RuntimeWarning]
    v = K.variable([1.0])
    step = K.function([], [K.exp(v)], [K.update_add(v, 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The call itself has happened by then, as with any warning.
        with pytest.raises(RuntimeWarning, match="lossy"):
            step([])
    assert K.get_value(v).tolist() == [2.0]
    assert "Special: lossy step" in kernelk.log().text
    assert "lossy" not in capsys.readouterr().err


def test_in_a_notebooks_cell_a_warning_comes_again_in_the_next_cell() -> None:
    talking = (
        "from kernelk.engines import registry, worker_host as w\nfrom kernelk.engines import Engine\n"
        "from importlib.metadata import EntryPoint\n"
        "class Known(EntryPoint):\n    def load(self): return Engine('spare', 'Spare', 'numpy', 'NumpyBackend',"
        " imports='numpy')\n"
        "registry._entries()['spare'] = Known('spare', 'a:b', 'kernelk.backends')\n"
        "last = 'importlib.import_module(\"kernelk.backends.serving.worker\").main('\n"
        "w._BOOT = w._BOOT.replace(last, '''\nimport warnings\n"
        "s = importlib.import_module('kernelk.backends.numpy.backend')\n"
        "def exp(i, x, old=s.OPS['exp']):\n    warnings.warn('lossy', RuntimeWarning)\n    return old(i, x)\n"
        "s.OPS['exp'] = exp\n''' + last)"
    )
    cells = run_cells(
        [
            "%load_ext kernelk",
            talking,
            "%kbackend spare",
            "from kernelk import backend as K\ny = K.exp(K.variable([0.0]))",
            "v = y.eval()",
            "v = y.eval()",
            "import warnings; warnings.filterwarnings('ignore', 'lossy')\nv = y.eval()",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert [cell["error"] for cell in cells] == [None] * 7, cells
    assert cells[4]["err"].count("RuntimeWarning: lossy (Spare") == 1
    assert "v = y.eval()" in cells[4]["err"]
    assert "RuntimeWarning: lossy" in cells[5]["err"]
    assert cells[6]["err"] == ""


def test_a_dying_engines_last_line_is_in_the_error_and_in_the_log(talk: Talk) -> None:
    talk("print('out of luck')\nos.kill(os.getpid(), 9)")
    with pytest.raises(WorkerDiedError) as caught:
        K.eval(K.exp(K.variable([0.0])))
    assert "was killed by SIGKILL in the middle of a call (out of luck): that call did not happen" in one_line(
        caught.value
    )
    assert K.eval(K.variable([1.0]) + 1.0).tolist() == [2.0]
    lines = kernelk.log("spare").text.splitlines()
    assert [line[:9] for line in lines] == ["--- Spare", "out of lu", "--- Spare"]


def test_a_crash_says_where_it_was(talk: Talk) -> None:
    talk("ctypes.string_at(0)")
    with pytest.raises(WorkerDiedError, match=r"SIGSEGV .*\(Fatal Python error: Segmentation fault\)") as caught:
        K.eval(K.exp(K.variable([0.0])))
    one_line(caught.value)
    assert ", line " in kernelk.log("spare").text


def test_what_an_old_call_said_isnt_the_reason_of_a_new_end(talk: Talk) -> None:
    talk("print('all is well')")
    K.eval(K.exp(K.variable([0.0])))
    pid = current().host().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    K.eval(K.exp(K.variable([0.0])))
    assert "all is well" in kernelk.log().text


def test_an_end_at_the_start_says_why_and_keeps_the_log(talk: Talk) -> None:
    with pytest.raises(EngineError, match=r"ended while starting \(no such device\)"):
        talk("pass", before="print('no such device', flush=True)\nos._exit(3)")
    assert kernelk.log("spare").text.splitlines()[-1] == "no such device"


def test_a_flood_neither_blocks_nor_fills(talk: Talk, capsys: Any) -> None:
    talk("line = b'x' * 999 + b'\\n'\nfor _ in range(100):\n    os.write(1, line * 1000)\nos.write(1, b'the end\\n')")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    K.eval(K.exp(K.variable([0.0])))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 30e6
    report = kernelk.log()
    assert config.LIMITS.log_bytes <= len(report.text) < config.LIMITS.log_bytes + (1 << 16)
    assert report.dropped + len(report.text) == pytest.approx(100e6, rel=1e-3)
    assert len(repr(report)) < 300_000
    shown = capsys.readouterr().err
    assert "... 100.0 MB of spare's earlier output not shown; next: kernelk.log('spare')" in shown
    assert shown.endswith("the end\n")
    assert len(shown) < 11_000


def test_a_second_worker_of_the_engine_leaves_the_first_ones_voice(talk: Talk, capsys: Any) -> None:
    """As `kernelk doctor` starts one for its self-test."""
    talk("print('spoken')")
    other = current().make_host("spare", {})
    other.start()
    other.stop()
    for _ in range(20):
        capsys.readouterr()
        K.eval(K.exp(K.variable([0.0])))
        assert capsys.readouterr().err == "spoken\n"


def test_quiet_keeps_it_in_the_log(talk: Talk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    talk("print('chatter')")
    capsys.readouterr()
    monkeypatch.setenv("KERNELK_QUIET", "1")
    K.eval(K.exp(K.variable([0.0])))
    assert capsys.readouterr() == ("", "")
    assert kernelk.log().text.count("chatter") == 1


def test_the_log_of_each_engine(capsys: Any) -> None:
    with pytest.raises(UnknownBackendError, match="did you mean 'theano'"):
        kernelk.log("teano")
    kernelk.set_backend("numpy", in_kernel=True)
    current().logs.pop("numpy", None)  # of earlier workers
    with pytest.raises(ArgumentError, match="numpy runs in the notebook's own process and has no log"):
        kernelk.log()
    log = WorkerLog()
    assert log.since(0) == ("", 0)
    log.add("one")
    mark = log.total
    log.add("two")
    assert (log.since(mark), log.since(0)) == (("two\n", 0), ("one\ntwo\n", 0))


@pytest.mark.parametrize("engine", WORKERS)
def test_an_engines_ordinary_work_says_nothing_in_the_cells(engine: str) -> None:
    """Noise at import is for the log; what remains is the line that says which engine is in use."""
    activate(engine)
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nimport kernelk\nfrom kernelk import backend as K\n"
            "from kernelk.session import current\ncurrent().engine_options['theano'] = {'compiler': ''}",
            f"r = %kbackend {engine}",
            "x = K.placeholder((None, 4))\nw = K.variable(np.ones((4, 3)))\ny = K.softmax(K.dot(x, w))\n"
            "loss = K.mean(K.log(y - 2))\n"
            "f = K.function([x], [loss], [K.update_sub(w, K.gradients(loss, [w])[0])])\n"
            "f([np.ones((2, 4))])\nf([np.ones((3, 4))])\nn = K.eval(K.random_normal((3,)))\n"
            "for dtype in ('bool', 'int8', 'int64', 'float16'):\n    v = K.variable(np.ones((2, 3)), dtype=dtype)\n"
            "    n = K.eval(K.permute_dimensions(v, (1, 0)))",
            f"kernelk.log({engine!r})",
        ],
        KERNELK_BACKEND="numpy",
        KERNELK_QUIET=None,
    )
    assert [cell["error"] for cell in cells] == [None] * 5, cells
    assert [cell["out"] + cell["err"] for cell in cells[3:4]] == [""]
    assert len(cells[2]["err"].splitlines()) == 1
    assert "--- " in cells[4]["value"]


def test_scripts_and_threads_that_read_end_with_the_worker() -> None:
    code = (
        "import threading, kernelk, os\nfrom kernelk import backend as K\nfrom kernelk.session import current\n"
        "files = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(3):\n    kernelk.set_backend('jax')\n    current().host().stop()\n"
        "import time\nfor _ in range(15_000):\n"
        "    left = [t.name for t in threading.enumerate() if t.name.startswith('kernelk')]\n"
        "    if not left: break\n    time.sleep(0.02)\n"
        "result = [left, len(os.listdir('/proc/self/fd')) - files]"
    )
    activate("jax")
    left, files = run_script(code, KERNELK_BACKEND="numpy")
    assert left == []
    assert files <= 1  # the memory of the variables
