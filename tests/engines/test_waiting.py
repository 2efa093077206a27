"""What takes seconds: a line that counts them, and goes away, in a real shell and a real notebook, on real engines."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pexpect
import pytest
from helpers.engines import activate
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, alive, children, environment, run_script, wait_until
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from kernelk import backend as K
from kernelk.display import progress
from kernelk.session.current import current

# As a user has it: the tests' own environment is quiet.
SPOKEN = {"KERNELK_BACKEND": "numpy", "KERNELK_QUIET": None}

# An engine that takes its time: to start, and over the first program.
SLOW = """
import kernelk
from kernelk import backend as K
from kernelk.display import progress
from kernelk.engines import worker_host
progress.DELAY = 0.5
last = 'importlib.import_module("kernelk.backends.serving.worker").main('
slow = '''
import time
time.sleep({seconds})
kind = importlib.import_module("kernelk.backends.serving.executor").Executor
compile = kind.do_compile
def do_compile(self, request):
    if not self.compiled:
        time.sleep({seconds})
    return compile(self, request)
kind.do_compile = do_compile
'''
worker_host._BOOT = worker_host._BOOT.replace(last, slow + last)
v = K.variable([1.0, 2.0])
"""


def slow(seconds: float) -> str:
    return SLOW.replace("{seconds}", str(seconds))


class Watched(NotebookClient):  # type: ignore[misc]
    """Notes what comes for each cell, as a notebook's front end gets it."""

    def __init__(self, notebook: Any, **settings: Any) -> None:
        super().__init__(notebook, **settings)
        self.came: dict[int, list[Any]] = {}

    def process_message(self, message: Any, cell: Any, index: int) -> Any:
        self.came.setdefault(index, []).append(message)
        return super().process_message(message, cell, index)

    def moved(self, index: int) -> list[str]:
        """The texts that a cell's outputs had one after the other, streams left out."""
        kinds = ("display_data", "update_display_data")
        return [m["content"]["data"]["text/plain"] for m in self.came[index] if m["msg_type"] in kinds]


def run_notebook(cells: list[str]) -> tuple[Any, Watched]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = Watched(notebook, kernel_name="python3", timeout=PATIENCE)
    client.execute(env=environment(JUPYTER_PREFER_ENV_PATH="1", **SPOKEN))
    nbformat.validate(notebook)
    return notebook, client


def counted(texts: list[str], words: str) -> list[int]:
    """The seconds of lines that are all of this form."""
    found = [re.fullmatch(rf"{re.escape(words)}: (\d+) s \(Ctrl-C cancels\)", text) for text in texts]
    assert all(found), texts
    return [int(match[1]) for match in found if match]


def test_a_notebook_counts_the_seconds_in_its_cell_and_keeps_nothing() -> None:
    activate("torch")
    notebook, client = run_notebook(
        [
            "%load_ext kernelk" + slow(3.2),
            "%kbackend torch",
            "print('epoch 0: ', end='')\nprint(K.eval(v * 2.0).tolist())",
            "print(K.eval(v * 3.0 + 1.0).tolist())",
        ]
    )
    for index, words in ((1, "PyTorch is starting"), (2, "PyTorch is compiling")):
        *texts, last = client.moved(index)
        seconds = counted(texts, words)
        assert len(seconds) >= 2
        assert sorted(set(seconds)) == seconds
        assert last == ""
    assert client.moved(3) == []
    # What is saved: an output of no content, and the user's own line whole.
    assert "Ctrl-C" not in nbformat.writes(notebook)
    (gone, using, report) = notebook.cells[1].outputs
    assert using.text.startswith("Using PyTorch")
    assert gone.data == {"text/html": "", "text/plain": ""}
    assert "numpy -> torch" in report.data["text/plain"]
    streams = [output.text for output in notebook.cells[2].outputs if output.output_type == "stream"]
    assert streams == ["epoch 0: ", "[2.0, 4.0]\n"]


@pytest.fixture
def terminal() -> Any:
    """IPython in a terminal; `run(code)` gives all that the terminal was sent until the next prompt."""
    shells: list[Any] = []

    def open_shell(**settings: str) -> Any:
        shell = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", "--no-confirm-exit"],
            env=environment(**{**SPOKEN, "TERM": "dumb", **settings}),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(24, 80),
        )
        shells.append(shell)
        shell.expect(r"In \[\d+\]: ")

        def run(code: str) -> str:
            shell.sendline(f"exec({code!r})" if "\n" in code else code)
            shell.expect(r"In \[\d+\]: ")
            return str(shell.before).partition("\n")[2]

        shell.run = run
        return shell

    yield open_shell
    for shell in shells:
        shell.close(force=True)


def test_a_terminal_counts_on_one_line_that_goes_away(terminal: Any) -> None:
    activate("torch")
    shell = terminal()
    assert shell.run("%load_ext kernelk").strip() == ""
    shell.run(slow(3.2))
    shown = shell.run("%kbackend torch")
    lines = re.findall(r"PyTorch is starting: \d+ s \(Ctrl-C cancels\)", shown)
    assert len(lines) >= 2
    # Each is overwritten by blanks, the last one too, before anything else is said.
    head = shown.rpartition(lines[-1])[2]
    assert head.startswith("\r" + " " * len(lines[-1]) + "\r")
    assert shown.count("\r" + " " * len(lines[-1]) + "\r") == len(lines)
    shown = shell.run("print(K.eval(v * 2.0).tolist())")
    assert len(re.findall(r"PyTorch is compiling: \d+ s \(Ctrl-C cancels\)", shown)) >= 2
    assert shown.rstrip().endswith("\r[2.0, 4.0]")
    assert "is compiling" not in shell.run("print(K.eval(v * 3.0 + 1.0).tolist())")


def test_nothing_is_said_where_it_is_to_be_quiet(terminal: Any) -> None:
    activate("torch")
    shell = terminal(KERNELK_QUIET="1")
    shell.run("%load_ext kernelk")
    shell.run(slow(2.2))
    assert shell.run("%kbackend torch").startswith("Out[3]: \r\nnumpy -> torch")
    assert shell.run("print(K.eval(v * 2.0).tolist())").strip() == "[2.0, 4.0]"


def test_where_no_line_can_be_overwritten_it_is_one_from_time_to_time() -> None:
    activate("torch")
    script = slow(0) + "from kernelk.display import progress\nprogress.EVERY = 1.0\nprogress.DELAY = 0.1\n"
    cells = run_cells(
        [
            script.replace("time.sleep(0)", "time.sleep(4.2)"),
            "kernelk.set_backend('torch').target",
            "K.eval(v * 2.0).tolist()",
        ],
        **SPOKEN,
    )
    for cell, words in zip(cells[1:], ("PyTorch is starting", "PyTorch is compiling")):
        said = [line for line in cell["err"].splitlines() if " is " in line]
        assert len(counted(said, words)) >= 2
        assert "\r" not in cell["err"]


def test_what_is_quick_says_nothing_and_a_run_starts_no_thread(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1])
    before = threading.active_count()
    x = K.placeholder((None, 2))
    call = K.function([x], [x * 2.0 + 1.0])
    call([np.ones((3, 2))])
    assert started == ["kernelk-waiting"]
    for _ in range(3):
        call([np.ones((3, 2))])
    assert started == ["kernelk-waiting"]
    assert threading.active_count() == before
    assert " is compiling" not in capsys.readouterr().err
    assert current().active == backend


def test_another_thread_is_not_told_of_a_key_that_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    seen: list[str] = []

    def work() -> None:
        with progress.waiting("something"):
            seen.extend(thread.name for thread in threading.enumerate())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "kernelk-waiting" not in seen
    with progress.waiting("something"):
        assert "kernelk-waiting" in [thread.name for thread in threading.enumerate()]
    assert "kernelk-waiting" not in [thread.name for thread in threading.enumerate()]


def test_hints_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, wanted in ((80, "doing: 3 s (one; two)"), (20, "doing: 3 s (one)"), (12, "doing: 3 s")):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert progress._hinted("doing: 3 s", ["one", "two"]) == wanted


def test_the_line_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.01)
    moved: list[str] = []
    line: Any = SimpleNamespace(moving=moved.append, clear=lambda: None)
    over = threading.Event()

    def doing() -> str:
        if moved:
            over.set()
        return f"{len(moved)} done"

    progress._count(over, doing, ["Ctrl-C cancels"], line)
    assert moved == ["0 done: 0 s (Ctrl-C cancels)", "1 done: 1 s (Ctrl-C cancels)"]


def test_a_console_on_a_kernel_has_no_line_left() -> None:
    """As `jupyter console` and Spyder ask: they show no update of an output, but carriage returns as terminals do."""
    activate("theano")
    manager, client = start_new_kernel(env=environment(JUPYTER_PREFER_ENV_PATH="1", **SPOKEN))
    try:
        came: list[dict[str, Any]] = []

        def run(code: str) -> None:
            came.clear()
            reply = client.execute_interactive(code, timeout=PATIENCE, output_hook=came.append)
            assert reply["content"]["status"] == "ok"

        run("%load_ext kernelk" + slow(2.2))
        run("r = kernelk.set_backend('theano')")
        assert {message["msg_type"] for message in came} == {"status", "execute_input", "stream"}
        text = "".join(message["content"].get("text", "") for message in came)
        assert "Theano is starting: 2 s (Ctrl-C cancels)\r" in text
        # What is left of each line once the next has been written over it.
        left = [line.rpartition("\r")[2] for line in text.split("\n")]
        assert [line for line in left if line] == [next(line for line in left if line.startswith("Using Theano"))]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(("module", "lines"), [("ipykernel.ipkernel", 1), ("ipyparallel.engine.kernel", 0)])
def test_no_seconds_are_counted_where_the_line_would_stay(
    monkeypatch: pytest.MonkeyPatch, module: str, lines: int
) -> None:
    kernel = type("Kernel", (), {"__module__": module, "get_parent": lambda self: {}})()
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.delenv("KERNELK_QUIET", raising=False)
    with progress.waiting("Theano is starting"):
        assert len(progress._COUNTING) == lines


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


def test_a_notebook_stops_the_start_of_an_engine() -> None:
    """The stop button: the old engine goes on, and the same cell works at the next try."""
    activate("theano")
    manager, client = start_new_kernel(env=environment(JUPYTER_PREFER_ENV_PATH="1", **SPOKEN))
    client.allow_stdin = False  # otherwise it is a console, which shows no output's update
    try:
        moved: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("display_data", "update_display_data"):
                moved.append(message["content"]["data"]["text/plain"])
                if len(moved) == 2:
                    manager.interrupt_kernel()

        def run(code: str) -> tuple[dict[str, Any], str]:
            said: list[str] = []

            def both(message: dict[str, Any]) -> None:
                said.append(message["content"].get("text", ""))
                hear(message)

            reply = client.execute_interactive(code, timeout=PATIENCE, output_hook=both)["content"]
            return reply, "".join(said)

        assert run("%load_ext kernelk" + slow(600))[0]["status"] == "ok"
        run("f = K.function([], [v], [K.update_add(v, 1.0)]); kernelk.set_backend('numpy'); f([])")
        reply, _ = run("%kbackend theano")
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        *texts, last = moved
        assert len(counted(texts, "Theano is starting")) >= 2
        assert last == ""
        assert run("print(K.backend(), f([])[0].tolist())")[1] == "numpy [2.0, 3.0]\n"
        assert run("from kernelk.session import current\nprint(current().host('theano').started)")[1] == "False\n"
        run("worker_host._BOOT = worker_host._BOOT.replace('time.sleep(600)', 'pass')")
        assert run("%kbackend theano")[0]["status"] == "ok"
        # Of its own threads, nothing is left in the kernel.
        threads = "[thread.name for thread in threading.enumerate() if 'wait' in thread.name]"
        assert run(f"import threading\nprint(K.backend(), {threads})")[1] == "theano []\n"
        assert run("print(f([])[0].tolist())")[1].endswith("[3.0, 4.0]\n")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


RECURRENT = """
import numpy as np
x, w, u = K.placeholder((2, 5, 3)), K.variable(np.eye(3)), K.variable(np.ones((3, 3)) / 3)
def step(inputs, states):
    gate = K.sigmoid(K.dot(inputs, w) + K.dot(states[0], u))
    cell = gate * states[1] + (1.0 - gate) * K.tanh(K.dot(inputs, u))
    return gate * K.tanh(cell), [gate * K.tanh(cell), cell]
last, _, _ = K.rnn(step, x, [K.zeros((2, 3)), K.zeros((2, 3))])
loss = K.mean(K.square(last))
f = K.function([x], [loss], [K.update_sub(p, 0.1 * g) for p, g in zip([w, u], K.gradients(loss, [w, u]))])
data = np.arange(30.0).reshape(2, 5, 3) / 30
"""


@pytest.mark.slow
@pytest.mark.compiled_theano
def test_ctrl_c_in_theanos_first_compilation(terminal: Any, tmp_path: Path) -> None:
    """With a cold cache: the C compiler is ended too, the variables are as before, and the same call works at once."""
    activate("theano")
    shell = terminal(XDG_CACHE_HOME=str(tmp_path), COLUMNS="200")
    shell.run("%load_ext kernelk")
    shell.run("%config KernelK.build_beside = False")
    shell.run("from kernelk import backend as K\n" + RECURRENT)
    assert "chosen by %kbackend" in shell.run("%kbackend theano")
    shell.run("from kernelk.session import current")
    pid = int(shell.run("print(current().host().pid)"))
    shell.sendline("f([data])")
    hints = "Ctrl-C cancels; kept for next time; %kbackend theano --no-compiler: no wait, but slower"
    shell.expect(rf"Theano is compiling: \d+ s \({hints}\)")
    # In the middle of it: the compiler runs, and holds the cache's lock.
    lock = "kernelk/theano/*/*/lock_dir/lock"
    assert wait_until(lambda: bool(list(tmp_path.glob(lock))) and bool(children(pid)))
    compilers = children(pid)
    shell.sendintr()
    shell.expect("KeyboardInterrupt")
    shell.expect(r"In \[\d+\]: ")
    assert wait_until(lambda: not any(alive(process) for process in [pid, *compilers]))
    assert shell.run("print(K.backend(), np.array_equal(K.get_value(w), np.eye(3)))").strip() == "theano True"
    told = shell.run("f([data])")
    assert "Theano's worker was ended by Ctrl-C; it was restarted with all variables, nothing is lost" in told
    assert "array(" in told
    wanted = float(shell.run("print(repr(float(K.eval(K.sum(w)))))").split()[-1])
    shell.run("K.set_value(w, np.eye(3)); K.set_value(u, np.ones((3, 3)) / 3)")
    assert "no compiler" in shell.run("%kbackend theano --no-compiler")
    shell.run("f([data])")
    np.testing.assert_allclose(float(shell.run("print(float(K.eval(K.sum(w))))").split()[-1]), wanted, rtol=1e-5)


HOURS = """
from kernelk.engines import worker_host
last = 'importlib.import_module("kernelk.backends.serving.worker").main('
patient = '''
kind = importlib.import_module("kernelk.backends.theano.backend").TheanoBackend
flags = kind._flags
kind._flags = lambda self, compiler: dict(flags(self, compiler), **{"compile.timeout": "100000"})
'''
assert last in worker_host._BOOT
worker_host._BOOT = worker_host._BOOT.replace(last, patient + last)
"""


@pytest.mark.compiled_theano
@pytest.mark.parametrize("owner", ["nobody", "another process"])
def test_a_lock_that_a_dead_worker_left_holds_nobody_up(tmp_path: Path, owner: str) -> None:
    """One that was hardly begun, and one whose process number has been given to another process."""
    activate("theano")
    code = (
        "import kernelk\nfrom kernelk import backend as K, config\nconfig.LIMITS.build_beside = False\n"
        "kernelk.set_backend('theano')\n"
        "result = K.eval(K.exp(K.variable([0.0])) + 1.0).tolist()"
    )
    settings = {"XDG_CACHE_HOME": str(tmp_path), "KERNELK_BACKEND": "numpy"}
    assert run_script(code, **settings) == [2.0]
    (folder,) = tmp_path.glob("kernelk/theano/*/compiledir*")
    (folder / "lock_dir").mkdir()
    if owner != "nobody":
        (folder / "lock_dir" / "lock").write_text(f"{os.getpid()}_1234567890_{socket.gethostname()}\n")
    # Another op, for which there is something to compile; a Theano that minded the lock would wait for hours.
    assert run_script(HOURS + code.replace("K.exp", "K.tanh"), **settings) == [1.0]
