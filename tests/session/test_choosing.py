"""Choosing an engine: devices, threads, placement, stop, save, `using`, completion; nothing is lost on real engines."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.engines import activate
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, alive, environment, wait_until

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import worker_host
from kernelk.engines.options import most_threads
from kernelk.errors import ArgumentError, KernelKError, UnknownBackendError
from kernelk.session.current import current


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """Every engine has its options from before again."""
    session = current()
    before = {name: dict(options) for name, options in session.engine_options.items()}
    yield
    for name in list(session.engine_options):
        if session.engine_options[name] != before.get(name, {}):
            session.engine_options[name] = before.get(name, {})
            host = session.hosts.pop(name, None)
            if host is not None:
                host.stop()


class Work:
    """Variables of several kinds, and a function that changes one."""

    def __init__(self) -> None:
        self.values = [np.array([1.5, -0.0, np.nan], "float32"), np.arange(6.0).reshape(2, 3), np.array([True, False])]
        self.variables = [K.variable(value, dtype=value.dtype.name) for value in self.values]
        self.count = K.variable(0.0)
        self.step = K.function([], [self.count * 2.0], [K.update_add(self.count, 1.0)])
        self.steps = 0

    def goes_on(self) -> None:
        """Every bit is there, and the function works."""
        assert float(self.step([])[0]) == 2.0 * self.steps
        self.steps += 1
        assert float(K.get_value(self.count)) == self.steps
        for variable, value in zip(self.variables, self.values):
            assert same_bits(K.get_value(variable), value)
            assert same_bits(K.eval(K.identity(variable)), value)


# --- devices and threads --------------------------------------------------------------------------------------


def test_other_threads_at_any_time(worker: str) -> None:
    work = Work()
    work.goes_on()
    before = current().host().pid
    assert before is not None
    threads = 2 if current().host().facts["threads"] == 1 else 1
    report = kernelk.set_backend(worker, threads=threads)
    assert (report.restarted, report.facts["threads"]) == (True, threads)
    assert f"{worker} restarted" in repr(report)
    pid = current().host().pid
    assert pid != before
    assert wait_until(lambda: not alive(before))
    work.goes_on()
    (row,) = [row for row in kernelk.list_backends().engines if row.name == worker]
    assert (row.threads, row.options["threads"], row.pid) == (threads, threads, pid)
    assert row.memory is not None
    assert row.memory > 10e6
    assert row.device in row.devices
    for device in (None, "cpu", "cpu:0"):
        again = kernelk.set_backend(worker, threads=threads, device=device)
        assert (again.restarted, again.started, current().host().pid) == (False, False, pid)
        assert repr(again).splitlines()[0] == f"{worker} is already active"
    # Through swaps, a death and a stop.
    kernelk.set_backend("numpy")
    work.goes_on()
    assert kernelk.set_backend(worker).facts["threads"] == threads
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    work.goes_on()
    assert (current().host().facts["threads"], current().host().pid == pid) == (threads, False)


def test_a_device_is_one_that_the_engine_lists(worker: str) -> None:
    work = Work()
    host = current().host()
    pid, listed = host.pid, host.facts["devices"]
    for wrong in ("tpu:9", "cpu:7", "cuda:99"):
        with pytest.raises(ArgumentError) as caught:
            kernelk.set_backend(worker, device=wrong)
        assert f"has no device '{wrong}' here: allowed are {', '.join(listed)}; next: " in str(caught.value)
        assert f"next: kernelk.set_backend('{worker}', device='" in str(caught.value)
        assert (current().active, current().host().pid) == (worker, pid)
    work.goes_on()


def test_default_leaves_it_to_the_engine_again_and_a_new_worker_refuses_too() -> None:
    activate("torch")
    own = kernelk.set_backend("torch", threads="default").facts["threads"]
    kernelk.set_backend("torch", threads=3 - min(own, 2))
    work = Work()
    work.goes_on()
    report = kernelk.set_backend("torch", threads="default")
    assert (report.restarted, report.facts["threads"], report.options) == (True, own, {})
    work.goes_on()
    kernelk.set_backend("numpy")
    kernelk.stop_backend("torch")
    with pytest.raises(ArgumentError, match="PyTorch has no device 'tpu:9' here: allowed are cpu:0"):
        kernelk.set_backend("torch", device="tpu:9")
    assert (current().active, current().engine_options["torch"]) == ("numpy", {})
    work.goes_on()


@pytest.mark.parametrize("threads", [0, -1, 2.5, True, "x", "", most_threads() + 1, 10**9])
def test_threads_that_cannot_be(threads: Any) -> None:
    with pytest.raises(
        ArgumentError,
        match=rf"allowed are 1 to {most_threads()}.*next: kernelk.set_backend\('torch', threads='default'\)",
    ):
        kernelk.set_backend("torch", threads=threads)
    assert current().active == "numpy"
    assert "threads" not in current().engine_options.get("torch", {})


def test_what_numpy_says_of_its_threads_and_refuses() -> None:
    kernelk.set_backend("numpy", device="cpu", in_kernel=True)
    assert kernelk.set_backend("numpy", device="cpu:0").options == {"device": "cpu:0"}
    for wrong in ({"threads": 1}, {"device": "cuda:0"}):
        with pytest.raises(ArgumentError, match=r"next: kernelk.set_backend\('numpy', "):
            kernelk.set_backend("numpy", **wrong)  # type: ignore[arg-type]
    work = Work()
    work.goes_on()


@pytest.mark.compiled_theano
def test_theano_with_and_without_its_compiler_at_any_time() -> None:
    activate("theano")
    kernelk.set_backend("theano", compiler=True)
    work = Work()
    work.goes_on()
    assert current().host().facts["mode"].startswith("C, ")
    before = current().host().pid
    report = kernelk.set_backend("theano", compiler=False)
    assert (report.restarted, report.facts["mode"], report.options) == (True, "no compiler", {"compiler": ""})
    assert "no compiler" in repr(report)
    pid = current().host().pid
    assert before is not None
    assert (pid == before, alive(before)) == (False, False)
    work.goes_on()
    (row,) = [row for row in kernelk.list_backends().engines if row.name == "theano"]
    assert (row.note, row.options) == ("no compiler", {"compiler": ""})
    # It stays with the engine: other options, swaps, a stop.
    assert repr(kernelk.set_backend("theano", compiler=False)) == "theano is already active\nno compiler"
    assert current().host().pid == pid
    kernelk.set_backend("numpy")
    kernelk.stop_backend("theano")
    assert kernelk.set_backend("theano", threads=1).facts["mode"] == "no compiler"
    work.goes_on()
    with kernelk.using("theano", compiler=True) as report:
        assert report.facts["mode"].startswith("C, ")
        work.goes_on()
    assert current().host().facts["mode"] == "no compiler"
    assert current().engine_options["theano"] == {"compiler": "", "threads": 1}
    work.goes_on()
    kernelk.set_backend("theano", compiler=True)
    assert current().engine_options["theano"] == {"threads": 1}
    work.goes_on()


def test_other_engines_have_no_compiler_to_do_without(backend: str) -> None:
    if backend == "theano":
        pytest.skip("it has one")
    host = current().host()
    for compiler in (True, False):
        with pytest.raises(ArgumentError) as caught:
            kernelk.set_backend(backend, compiler=compiler)
        assert str(caught.value) == (
            f"{host.engine.title} compiles no C code: only theano takes this option; next: "
            f"kernelk.set_backend('{backend}')"
        )
        assert current().host() is host
    with pytest.raises(ArgumentError, match="allowed are True, False and None"):
        kernelk.set_backend("theano", compiler="g++")  # type: ignore[arg-type]


def _second_worker(do: Callable[[int], object]) -> threading.Thread:
    """Does something with the process id of the next worker to be started, as soon as there is one."""
    known = {host.pid for host in worker_host.running}

    def run() -> None:
        new: list[int] = []

        def there() -> bool:
            new[:] = [host.pid for host in list(worker_host.running) if host.pid not in {*known, None}]
            return bool(new)

        if wait_until(there):
            do(new[0])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("end", ["Ctrl-C", "killed"])
def test_a_restart_that_fails_leaves_the_old_worker(end: str) -> None:
    activate("torch")
    kernelk.set_backend("torch", threads=2)
    work = Work()
    work.goes_on()
    host = current().host()
    pid, new = host.pid, []

    def do(other: int) -> None:
        new.append(other)
        os.kill(*((os.getpid(), signal.SIGINT) if end == "Ctrl-C" else (other, signal.SIGKILL)))

    thread = _second_worker(do)
    with pytest.raises(KeyboardInterrupt if end == "Ctrl-C" else KernelKError):
        kernelk.set_backend("torch", threads=1)
    thread.join()
    assert current().host() is host
    assert (current().active, host.pid, host.facts["threads"]) == ("torch", pid, 2)
    assert current().engine_options["torch"] == {"threads": 2}
    assert wait_until(lambda: not alive(new[0]))
    work.goes_on()
    assert host.pid == pid


# --- using ----------------------------------------------------------------------------------------------------


def test_using_restores_on_every_exit() -> None:
    activate("torch")
    kernelk.set_backend("torch", threads=2)
    kernelk.set_backend("numpy")
    current().chosen_by = "somebody"
    work = Work()

    def as_before() -> None:
        assert (current().active, current().chosen_by) == ("numpy", "somebody")
        assert current().engine_options["torch"] == {"threads": 2}
        work.goes_on()

    with kernelk.using("torch") as report:
        assert (report.target, K.backend(), current().host().facts["threads"]) == ("torch", "torch", 2)
        work.goes_on()
    as_before()
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), kernelk.using("torch"):
            raise error
        as_before()
    with kernelk.using("torch", threads=1):
        assert current().host().facts["threads"] == 1
        with kernelk.using("numpy"):
            assert K.backend() == "numpy"
            work.goes_on()
        assert (K.backend(), current().host().facts["threads"]) == ("torch", 1)
        # The body has its own way.
        kernelk.set_backend("numpy")
    as_before()
    assert kernelk.set_backend("torch").facts["threads"] == 2
    with kernelk.using("torch", threads=1):
        work.goes_on()
    assert (current().active, current().host().facts["threads"]) == ("torch", 2)
    work.goes_on()
    with pytest.raises(UnknownBackendError), kernelk.using("teano"):
        raise AssertionError("the body ran")
    assert current().active == "torch"


def test_using_starts_no_engine_to_leave_it_alone_again() -> None:
    """An engine that was chosen but never used, and isn't even there, is active again afterwards."""
    current().active, current().chosen_by = "cntk", "keras.json"
    host = current().hosts.pop("cntk", None)
    try:
        with kernelk.using("numpy"):
            assert K.eval(K.ones((2,))).tolist() == [1.0, 1.0]
        assert (current().active, current().chosen_by) == ("cntk", "keras.json")
        assert not current().host().started
    finally:
        current().active = "numpy"
        if host is not None:
            current().hosts["cntk"] = host


# --- stop -----------------------------------------------------------------------------------------------------


def test_stop_gives_the_worker_back(worker: str) -> None:
    work = Work()
    work.goes_on()
    pid = current().host().pid
    assert pid is not None
    report = kernelk.stop_backend(worker)
    assert wait_until(lambda: not alive(pid))
    assert report.pid == pid
    assert report.bytes is not None
    assert f"process {pid} ended, " in repr(report)
    assert "it is still the active engine" in repr(report)
    assert repr(kernelk.stop_backend(worker)) == f"{worker} isn't running"
    states = {row.name: row.state for row in kernelk.list_backends().engines}
    assert states[worker] == "active, not started"
    work.goes_on()
    assert current().host().pid != pid
    with pytest.raises(UnknownBackendError):
        kernelk.stop_backend("teano")


def test_several_engines_are_stopped_at_once() -> None:
    lines = ["theano cntk theano", "theano torhc", "theano torch"]
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import kernelk\nfrom kernelk import backend as K\nv = K.variable([1.0])",
            "kernelk.set_backend('theano', compiler=False)\nkernelk.set_backend('torch')\nK.eval(K.update_add(v, 1.0))",
            *(f"%kbackend --stop {line}" for line in lines),
            "print(K.eval(v + 1.0))",
            "kernelk.stop_backend(['torch', 'numpy'])",
            "kernelk.stop_backend([])",
            "kernelk.stop_backend(3)",
        ],
        KERNELK_BACKEND="numpy",
    )
    values = [cell["value"].splitlines() for cell in cells]
    assert [line.partition(":")[0] for line in values[3]] == ["theano stopped", "cntk isn't running"]
    # None is stopped where one is unknown.
    assert cells[4]["error"] == "UnknownBackendError"
    assert values[5][0] == "theano isn't running"
    assert values[5][1].startswith("torch stopped: process ")
    assert values[5][1].endswith("it is still the active engine: the next call starts it again, with all variables")
    assert cells[6]["out"].endswith("[3.]\n")
    assert [line.partition(" ")[0] for line in values[7]] == ["torch", "numpy"]
    for cell in cells[8:]:
        assert "names no engine; it takes a name, or a list of names; next: kernelk.stop_backend([" in cell["out"]
        assert len(cell["out"].splitlines()) == 1


# --- keras.json -----------------------------------------------------------------------------------------------


@pytest.fixture
def keras_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keras.json with a field that kernelk doesn't know."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    file = tmp_path / "keras.json"
    file.write_text('{"floatx": "float64", "mine": [1, 2], "backend": "jax"}')
    file.chmod(0o640)
    config.reload()
    return file


def test_save_writes_the_name_and_leaves_the_rest(keras_json: Path) -> None:
    activate("torch")
    report = kernelk.set_backend("torch", save=True)
    assert json.loads(keras_json.read_text()) == {"floatx": "float64", "mine": [1, 2], "backend": "torch"}
    assert keras_json.stat().st_mode & 0o777 == 0o640
    assert os.listdir(keras_json.parent) == ["keras.json"]
    assert report.saved == f'saved: {keras_json} has "backend": "torch"'
    assert report.saved in repr(report)
    assert config.chosen_backend() == ("torch", f"keras.json ({keras_json})")
    kernelk.set_backend("numpy")
    keras_json.unlink()
    kernelk.set_backend("numpy", save=True)
    assert json.loads(keras_json.read_text()) == {**config.DEFAULTS, "backend": "numpy"}


def test_save_says_where_keras_3_would_stop(keras_json: Path) -> None:
    activate("theano")
    saved = kernelk.set_backend("theano", save=True).saved
    assert "doesn't know 'theano' and fails at `import keras`" in saved
    assert "undo it with kernelk.set_backend('tensorflow', save=True)" in saved
    assert "\n" not in saved


@pytest.mark.parametrize("trouble", ["not JSON", "no folder"])
def test_where_nothing_can_be_saved_the_swap_stands(
    keras_json: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "not JSON":
        keras_json.write_text("{")
    else:
        # As in a read-only home, also for root, who may write anywhere.
        monkeypatch.setenv("KERAS_HOME", str(keras_json / "below"))
    content = keras_json.read_text()
    report = kernelk.set_backend("numpy", save=True)
    assert report.saved.startswith("not saved: ")
    assert "next: " in report.saved
    assert "\n" not in report.saved
    assert current().active == "numpy"
    assert keras_json.read_text() == content


# --- in a shell -----------------------------------------------------------------------------------------------


def test_the_magic_in_a_shell(tmp_path: Path) -> None:
    activate("torch")
    cells = [
        "%load_ext kernelk",
        "from kernelk import backend as K\nv = K.variable([1.0])\nf = K.function([], [v], [K.update_add(v, 1.0)])",
        "%kbackend torch --threads 1 --save",
        "%kbackend --threads 2",
        "%kbackend torch --threads 2 --device cpu:0",
        "print(f([])[0].tolist(), K.backend())",
        "%kbackend",
        "%kbackend --stop torch",
        "%kbackend --stop torch",
        "print(f([])[0].tolist(), K.backend())",
        "%kbackend torch --in-kernel",
        "%kbackend --list",
        "print(type(K.native(v)).__name__, f([])[0].tolist())",
        "%kbackend --stop torch",
        "%kbackend torch --worker",
        "print(f([])[0].tolist())",
        "%kbackend --install numpy",
        "%kbackend theano --no-compiler",
        "%kbackend",
        "%kbackend theano --compiler",
        "print(f([])[0].tolist())",
        "print(get_ipython().object_inspect_text('kbackend'))",
    ]
    found = run_cells(cells, KERNELK_BACKEND="numpy", KERAS_HOME=str(tmp_path))
    assert [cell["error"] for cell in found] == [None] * len(cells), found
    values = [cell["value"] for cell in found]
    assert "numpy -> torch" in values[2]
    assert 'has "backend": "torch"; KERNELK_BACKEND=numpy takes precedence' in values[2]
    assert "torch restarted" in values[3]
    assert "threads    2" in values[3]
    assert values[4] == "torch is already active"
    assert found[5]["out"] == "[1.0] torch\n"
    (row,) = [line for line in values[6].splitlines() if line.startswith("*")]
    for words in ("torch", "active", "worker ", " MB", "cpu:0", " 2 ", "1 ("):
        assert words in row
    assert max(len(line) for line in values[6].partition("active: ")[0].splitlines()) <= 110
    assert values[7].startswith("torch stopped: process ")
    assert values[8] == "torch isn't running"
    assert found[9]["out"] == "[2.0] torch\n"
    assert "this kernel" in next(line for line in values[11].splitlines() if line.startswith("*"))
    assert found[12]["out"] == "Tensor [3.0]\n"
    assert "PyTorch itself stays imported in the notebook's process" in values[13]
    assert found[15]["out"] == "[4.0]\n"
    assert "already installed" in found[16]["out"]
    assert "no compiler" in values[17]
    assert "theano: no compiler" in values[18]
    assert "theano restarted" in values[19]
    assert found[20]["out"] == "[5.0]\n"
    for words in ("%kbackend torch --threads 2", "--in-kernel", "--no-compiler", "kernelk.stop_backend"):
        assert words in found[21]["out"]


REFUSED = [
    ("numpy theano", "takes one engine's name, not 'numpy theano'; next: %kbackend numpy"),
    ("torch --thread 2", "has no option --thread: did you mean --threads? allowed are --device, --threads"),
    ("torch --threads=0", "--threads 0 isn't allowed: allowed are 1 to "),
    ("torch --threads", "--threads: expected one argument"),
    ("torch --threads -3", "--threads -3 isn't allowed"),
    ("torch --in-kernel --worker", "--in-kernel and --worker exclude each other"),
    ("theano --in-kernel", "next: %kbackend theano, which runs it in a worker"),
    ("cntk --in-kernel", "next: %kbackend cntk, which runs it in a worker"),
    ("numpy --threads 2", "set OPENBLAS_NUM_THREADS"),
    (
        "theano --compiler --no-compiler",
        "--compiler and --no-compiler exclude each other; next: %kbackend theano --no-",
    ),
    ("cntk --no-compiler", "only theano takes this option; next: %kbackend cntk"),
    ("--compiler", "numpy compiles no C code: only theano"),
    ("--device gpu:0", "numpy has no device 'gpu:0' here: allowed are cpu:0"),
    (
        "torch --stop numpy",
        "combined with other options or names, as in 'torch --stop numpy'; next: %kbackend --stop numpy",
    ),
    ("--stop nump", "did you mean 'numpy'?"),
    ("--list --save", "combined with other options or names, as in '--list --save'; next: %kbackend --list"),
    ("--install teano", "did you mean 'theano'?"),
    ("--doctor teano", "did you mean 'theano'?"),
    ("--help", "has no option --help"),
]


def test_what_the_magic_refuses_is_one_line_and_changes_nothing() -> None:
    cells = ["%load_ext kernelk", "from kernelk import backend as K\nv = K.variable([1.0])"]
    for line, _ in REFUSED:
        cells += [f"%kbackend {line}", "print(K.backend(), K.eval(v + 1.0).tolist())"]
    found = run_cells(cells, KERNELK_BACKEND="numpy")[2:]
    for (line, words), refused, after in zip(REFUSED, found[::2], found[1::2]):
        assert refused["error"] in ("ArgumentError", "UnknownBackendError"), (line, refused)
        assert len(refused["out"].strip().splitlines()) == 1, (line, refused)
        assert words in refused["out"], (line, refused)
        assert after["out"] == "numpy [2.0]\n"


# --- completion -----------------------------------------------------------------------------------------------

OFFERED = [
    ("%kbackend th", ["theano"]),
    ("kbackend th", ["theano"]),
    ("report = %kbackend nu", ["numpy"]),
    ("%kbackend torch --dev", ["--device"]),
    ("%kbackend torch --device ", ["cpu:0", "default"]),
    ("%kbackend torch --device cpu:", ["cpu:0"]),
    ("%kbackend torch --device=c", ["cpu:0"]),
    ("%kbackend torch --threads d", ["default"]),
    ("%kbackend --stop t", ["tensorflow", "theano", "torch"]),
    ("%kbackend --install theano c", ["cntk"]),
    ("%kbackend torch --precision ", ["bfloat16", "float32", "tf32"]),
    ("%kbackend numpy --precision ", ["float32"]),
    ("%kbackend numpy --p", []),
    (
        "%kbackend torch ",
        ["--device", "--drop-calls", "--in-kernel", "--keras2", "--on", "--precision", "--save", "--threads"]
        + ["--worker"],
    ),
    ("%kbackend torch@box --th", ["--threads"]),
    (
        "%kbackend theano --",
        ["--compiler", "--device", "--drop-calls", "--in-kernel", "--keras2", "--no-compiler", "--on", "--save"]
        + ["--threads", "--worker"],
    ),
    ("%kbackend theano --no-compiler --s", ["--save"]),
    ("%kbackend --l", ["--list", "--log"]),
    ("%kbackend --no", []),
    ("%kbackend --threads 2 --s", ["--save"]),
    ("%kbackend --stop torch c", ["cntk"]),
    ("%kbackend --stop torch to", []),
    ("%kbackend --stop torch --", ["--on"]),
    ("%kbackend --doctor theano --", ["--on"]),
    ("%kbackend --list ", []),
    ("%kbackend --keras2 the", ["theano"]),
    ("%kbackend --keras3-back ", []),
    ("%kbackend nothing-like", []),
    ("%kdiff y ten", ["tensorflow"]),
    ("%kdiff y tensorflow t", ["theano", "torch"]),
    ("%kdiff y tensorflow theano --t", ["--tolerance"]),
    ("%kgraph loss --de", ["--depth"]),
    ("%kshow y tensorflow t", ["theano", "torch"]),
    ("%kprofile --en", ["--engine"]),
    ("%%ktime --bu", ["--budget"]),
    ("%%kcompare tensorflow t", ["theano", "torch"]),
    ("%%kcompare torch --th", ["--threads"]),
    ("%%kcompare torch --device c", ["cpu:0"]),
    ("%%kcompare torch --precision t", ["tf32"]),
]


def test_completion_in_a_shell() -> None:
    tab = (
        "import json, sys\nfrom IPython.core.completer import provisionalcompleter\n"
        "completer = get_ipython().Completer\nbefore = list(completer.custom_matchers)\n"
        "def tab(line, jedi):\n"
        "    completer.use_jedi = jedi\n"
        "    with provisionalcompleter():\n"
        "        return sorted(line[: c.start] + c.text for c in completer.completions(line, len(line))\n"
        "                      if line[: c.start] + c.text != line)\n"
    )
    cells = [tab, "%load_ext kernelk"]
    cells += [
        f"print(json.dumps([tab(line, {jedi}) for line in {[line for line, _ in OFFERED]}]))" for jedi in (True, False)
    ]
    cells += [
        "print([name for name in sys.modules if name in ('torch', 'tensorflow', 'jax', 'kernelk.session.session')])",
        "%unload_ext kernelk",
        "print(completer.custom_matchers == before)",
    ]
    found = run_cells(cells)
    assert [cell["error"] for cell in found] == [None] * len(cells), found
    for cell in found[2:4]:
        for (line, offered), got in zip(OFFERED, json.loads(cell["out"])):
            head = line[: max(line.rfind(" "), line.rfind("=")) + 1]
            assert got == [head + text for text in offered], line
    # Nothing was started or imported for it.
    assert found[4]["out"] == "[]\n"
    assert found[6]["out"] == "True\n"


def test_completion_in_a_notebook() -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(env=environment(KERNELK_BACKEND="numpy", JUPYTER_PREFER_ENV_PATH="1"))
    try:
        client.execute_interactive("%load_ext kernelk", timeout=PATIENCE)
        for line, offered in OFFERED:
            code = "x = 1\n" + line
            content = client.complete(code, reply=True, timeout=PATIENCE)["content"]
            assert content["status"] == "ok"
            # Where there is nothing, the word itself.
            matches = [match for match in content["matches"] if code[: content["cursor_start"]] + match != code]
            assert sorted(matches) == offered, line
            if offered:
                head = max(code.rfind(" "), code.rfind("=")) + 1
                assert (content["cursor_start"], content["cursor_end"]) == (head, len(code))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_numpy_in_a_worker_and_back() -> None:
    v = K.variable([1.0, 2.0])
    step = K.function([], [v * 2.0], [K.update_add(v, 1.0)])
    step([])
    try:
        report = kernelk.set_backend("numpy", in_kernel=False)
        host = current().host()
        assert (report.restarted, host.placement, K.backend()) == (True, "worker", "numpy")
        assert host.pid != os.getpid()
        assert step([])[0].tolist() == [4.0, 6.0]
        row = next(row for row in kernelk.list_backends().engines if row.name == "numpy")
        assert (row.placement, row.pid) == ("worker", host.pid)
        with pytest.raises(ArgumentError, match=r"next: kernelk.set_backend\('numpy', in_kernel=True\)"):
            K.native(v)
        assert not kernelk.set_backend("numpy").restarted
        kernelk.stop_backend("numpy")
        assert step([])[0].tolist() == [6.0, 8.0]
        assert current().host().placement == "worker"
    finally:
        report = kernelk.set_backend("numpy", in_kernel=True)
        # In the kernel it has none.
        current().logs.pop("numpy", None)
    assert (report.restarted, current().host().placement) == (True, "kernel")
    assert step([])[0].tolist() == [8.0, 10.0]
    assert current().engine_options["numpy"] == {}
