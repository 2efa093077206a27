"""`kernelk doctor` and `kernelk.doctor()`: on this machine with its engines, and on machines that lack something."""

from __future__ import annotations

import html
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.engines import ENGINES, WORKERS, absent
from helpers.fake_engines import register
from helpers.fake_programs import fake_python, program
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, PROJECT, TESTS, alive, environment, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk.engines import registry
from kernelk.engines.descriptors import Engine
from kernelk.environments import places
from kernelk.environments.recipes import RECIPES
from kernelk.errors import ArgumentError, InstallError, UnknownBackendError
from kernelk.manage import doctor_report
from kernelk.session.current import current


def need(*names: str) -> None:
    """Ends the test where one of the engines is missing."""
    for name in names:
        if not registry.installed(name):
            absent(name, "it isn't installed")


def one(name: str) -> doctor_report.EngineHealth:
    """The examination of one engine."""
    (found,) = kernelk.doctor(name).engines
    return found


# ---------------------------------------------------------------------------- engines that work


def test_every_engine_is_tried_and_the_session_stays_as_it_was() -> None:
    need(*WORKERS)
    v = K.variable(np.arange(6.0).reshape(2, 3))
    K.eval(v * 2.0)
    session = current()
    before = (session.active, dict(session.hosts), session.storage.bytes, len(session.functions), session.chosen_by)
    counter, descriptors = K.get_value(v).tobytes(), len(os.listdir("/proc/self/fd"))
    report = kernelk.doctor()
    assert [engine.name for engine in report.engines] == registry.names()
    assert report.passed, repr(report)
    after = (session.active, dict(session.hosts), session.storage.bytes, len(session.functions), session.chosen_by)
    assert after == before
    assert K.get_value(v).tobytes() == counter
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    for engine in report.engines:
        assert engine.version
        assert engine.device.startswith("cpu")
        assert 0 < engine.test_seconds < report.seconds
    found = {engine.name: engine for engine in report.engines}
    assert found["theano"].interpreter.startswith("Python 3.")
    assert found["theano"].mode.startswith("no compiler")  # the tests' own setting, which the user's trial has too


def test_the_program_examines_four_engines(tmp_path: Path) -> None:
    need("tensorflow", "theano", "cntk")
    command = [sys.executable, "-m", "kernelk", "doctor", "numpy", "tensorflow", "theano", "cntk"]
    # No compiled program of an earlier run helps Theano.
    settings = environment(XDG_CACHE_HOME=str(tmp_path))
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "4 of 4 engines passed" in done.stdout
    assert len(re.findall(r"\bpassed \(start ", done.stdout)) == 4


def test_a_notebook_shows_it(tmp_path: Path) -> None:
    cells = ["import kernelk\nreport = kernelk.doctor(['numpy'])", "report", "report._repr_html_()"]
    _, shown, page = run_cells(cells, KERAS_HOME=str(tmp_path))
    assert "1 of 1 engines passed" in shown["value"]
    assert "<td" in page["value"]
    assert "engines passed" in html.unescape(page["value"])
    assert shown["error"] is page["error"] is None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownBackendError, match="did you mean 'theano'"):
        kernelk.doctor(["teano"])
    with pytest.raises(ArgumentError, match="engines are given by name, not int"):
        kernelk.doctor(3)


# ---------------------------------------------------------------------------- ill


def broken(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """An engine "ill": numpy in a worker of its own, after this code."""
    from kernelk.engines import worker_host

    last = 'importlib.import_module("kernelk.backends.serving.worker").main('
    assert last in worker_host._BOOT
    held = 'backend_ = importlib.import_module("kernelk.backends.numpy.backend")\n'
    monkeypatch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(last, held + code + "\n" + last))
    ill = Engine("ill", "Ill", "numpy", "NumpyBackend", imports="numpy", install="pip install ill")
    register(monkeypatch, ill)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("real = backend_.OPS['matmul']; backend_.OPS['matmul'] = lambda i, *x, **a: real(i, *x, **a) + 1", "wrong"),
        ("os.kill(os.getpid(), 9)", "Ill's worker ended while starting: it was killed by SIGKILL"),
        ("backend_.OPS['matmul'] = lambda i, *x, **a: os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("backend_.OPS['matmul'] = lambda i, *x, **a: 1 / 0", "ZeroDivisionError"),
    ],
)
def test_an_engine_that_fails_is_told_with_the_next_command(
    monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    broken(monkeypatch, code)
    report = kernelk.doctor(["numpy", "ill"])
    working, found = report.engines
    assert (working.state, found.state, report.passed) == ("works", "failed", False)
    assert said in found.problem
    assert found.next == ("run it again" if "SIGKILL" in said else "`pip install --force-reinstall ill`")
    assert f"ill: {found.problem}; next: {found.next}" in repr(report)
    assert "1 of 2 engines passed" in repr(report)


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("libstdc++.so.6", "`apt install libstdc++6`, or your system's package with libstdc++.so.6"),
        ("libill.so.1", "install your system's package with libill.so.1"),
    ],
)
def test_a_library_that_the_system_lacks_is_named(monkeypatch: pytest.MonkeyPatch, library: str, advice: str) -> None:
    broken(monkeypatch, f"raise ImportError('{library}: cannot open shared object file: No such file or directory')")
    found = one("ill")
    assert (found.state, found.next) == ("failed", advice)
    assert f"{library}: cannot open shared object file" in found.problem


def test_a_machine_that_an_engine_does_not_run_on(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    found = one("cntk")
    assert found.state == "not installed"
    assert found.problem.startswith("CNTK 2.7 can't be installed here: it runs on linux and x86_64 only, and this is ")
    assert found.next == "`kernelk install theano`"
    with pytest.raises(InstallError, match="can't be installed here"):
        kernelk.install("cntk")


def test_an_engine_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(doctor_report, "TRIAL_SECONDS", 1.0)
    found = one("ill")
    assert (found.state, found.problem) == ("failed", "Ill didn't answer within 1 s")


def test_ctrl_c_ends_all_trials(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
from kernelk.engines import worker_host, registry
import kernelk
from importlib.metadata import EntryPoint
slow = "open({str(note)!r}, 'w').write(str(os.getpid())); import time; time.sleep(600)\\n"
last = 'importlib.import_module("kernelk.backends.serving.worker").main('
worker_host._BOOT = worker_host._BOOT.replace(last, slow + last)
import kernelk.engines as engines
engines.SLOW = engines.Engine("slow", "Slow", "numpy", "NumpyBackend", imports="numpy")
registry._entries()["slow"] = EntryPoint("slow", "kernelk.engines:SLOW", "kernelk.backends")
try:
    kernelk.doctor(["slow"])
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: note.exists() and note.read_text() != "")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output == "interrupted\n"
    assert wait_until(lambda: not alive(int(note.read_text())))


# ---------------------------------------------------------------------------- machines that lack something


def doctor(home: Path, *names: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs the program on a machine with no other Python, no compiler, no environment and an empty home."""
    bare = {"PYTHONPATH": str(PROJECT), "HOME": str(home), "PATH": ""}
    command = [sys.executable, "-m", "kernelk", "doctor", *names]
    done = subprocess.run(command, env=bare | settings, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr + done.stdout, done
    return done


def line(done: subprocess.CompletedProcess[str], begin: str) -> str:
    """The one line of the report that begins so."""
    (found,) = [text for text in done.stdout.splitlines() if text.startswith(begin)]
    return found


def test_a_machine_without_an_old_python(tmp_path: Path) -> None:
    done = doctor(tmp_path, "numpy", "cntk", "theano")
    assert done.returncode == 1
    assert "1 of 3 engines passed" in done.stdout
    cntk = line(done, "cntk: ")
    assert "CNTK 2.7 needs Python 3.6, and none was found" in cntk
    get = "`pyenv install 3.6.15` or `conda create -n py36 -c conda-forge python=3.6`"
    assert cntk.endswith(f"next: {get}, then `kernelk install cntk`")
    assert "Theano 1.0.5 needs Python 3.6 or 3.8" in line(done, "theano: ")
    assert line(done, "C++ compiler: ").startswith("C++ compiler: g++ isn't on the PATH; only Theano uses it")
    assert not (tmp_path / ".local").exists()


def test_a_machine_with_an_old_python_and_no_environment(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "bin" / "python3.6", "3.6.15")
    done = doctor(tmp_path, "cntk", PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    said = (
        f"CNTK 2.7 is not installed; a suitable Python 3.6.15 was found (PATH: {python}); next: `kernelk install cntk`"
    )
    assert line(done, "cntk: ") == f"cntk: {said} (in a notebook: `%kbackend --install cntk`)"


def test_a_machine_with_conda_only(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "mamba", "exit 1")
    done = doctor(tmp_path, "cntk", PATH=str(tmp_path / "bin"))
    said = "is not installed; mamba can create the Python 3.6 that it needs; next: `kernelk install cntk`"
    assert line(done, "cntk: ").endswith(f"{said} (in a notebook: `%kbackend --install cntk`)")


def test_a_setting_that_names_a_wrong_python(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "conda", "exit 1")
    wrong = {"KERNELK_PYTHON_CNTK": sys.executable, "PATH": str(tmp_path / "bin")}
    assert "KERNELK_PYTHON_CNTK names " in line(doctor(tmp_path, "cntk", **wrong), "cntk: ")


def test_an_environment_whose_python_is_gone(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin" / "python3.6", "3.6.15")
    place = tmp_path / ".local/share/kernelk/envs" / places.folder("cntk").name
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").symlink_to("/gone/python3.6")
    (place / "kernelk.json").write_text(f'{{"recipe": "{RECIPES["cntk"].hash("3.6")}"}}')
    done = doctor(tmp_path, "cntk", PATH=str(tmp_path / "bin"))
    assert f"is installed in {place}, but its Python (/gone/python3.6) is gone" in line(done, "cntk: ")


def test_a_damaged_environment_fails_its_trial(tmp_path: Path) -> None:
    need("theano")
    real = places.require_python("theano")
    place = tmp_path / "envs" / real.parents[1].name
    # The Python is there and runs, and what is to be imported isn't.
    program(place / "bin" / "python", f'exec "{os.path.realpath(real)}" "$@"')
    (place / "kernelk.json").write_text((real.parents[1] / "kernelk.json").read_text())
    done = doctor(tmp_path, "theano", KERNELK_ENVS=str(tmp_path / "envs"))
    assert done.returncode == 1
    told = line(done, "theano: ")
    assert "No module named" in told
    assert told.endswith("next: `kernelk install theano --rebuild`")


def test_theano_without_a_compiler_is_well_with_a_hint(tmp_path: Path) -> None:
    need("theano")
    envs = str(places.require_python("theano").parents[2])
    done = doctor(tmp_path, "theano", KERNELK_ENVS=envs)
    assert done.returncode == 0, done.stdout
    assert "no compiler: g++ isn't found" in done.stdout
    told = line(done, "theano: ")
    assert "without a C++ compiler it works, but about 2 to 3 times slower" in told
    assert "; next: install g++ with your system's package manager" in told


def test_a_machine_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "home")
    done = doctor(Path(nowhere), "numpy", KERNELK_ENVS=str(tmp_path / "file" / "envs"))
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("envs", "home/.local/share/kernelk/envs", "home/.cache/kernelk"):
        assert f"{tmp_path / 'file' / name}, not writable (Not a directory)" in done.stdout
    assert "next: set KERNELK_ENVS to a writable folder" in done.stdout
    assert "next: set XDG_CACHE_HOME to a writable folder" in done.stdout


def test_theano_compiles_where_its_cache_cannot_be_written(tmp_path: Path) -> None:
    need("theano")
    (tmp_path / "file").write_text("")
    envs = str(places.require_python("theano").parents[2])
    done = doctor(tmp_path / "file" / "home", "theano", KERNELK_ENVS=envs, PATH=os.environ["PATH"])
    assert "1 of 1 engines passed" in done.stdout


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"floatx": "float8", "backend": "mxnet"}')
    done = doctor(tmp_path, "numpy")
    assert done.returncode == 0
    assert '"floatx" is "float8", allowed are float16, float32, float64' in done.stdout
    assert "'mxnet', chosen by keras.json" in done.stdout
    assert "is not a known engine; next: choose one of tensorflow, theano" in done.stdout
    (tmp_path / ".keras" / "keras.json").write_text("{")
    assert "keras.json isn't valid JSON" in doctor(tmp_path, "numpy").stdout


def test_doctor_is_a_function_whatever_was_imported_before() -> None:
    code = (
        "import kernelk, kernelk.manage.doctor_report, kernelk.manage.install, kernelk.environments.bundles\n"
        "result = [callable(kernelk.doctor), callable(kernelk.install), callable(kernelk.uninstall)]"
    )
    assert run_script(code) == [True, True, True]


def test_the_engines_of_the_box_are_all_asked() -> None:
    assert set(ENGINES) <= set(registry.names())
