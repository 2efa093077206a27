"""Workers that are killed while they start, and environments that change under workers: said as what it is, mended."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.light import LAST

import kernelk
from kernelk import backend as K
from kernelk.engines import start_failures, worker_host
from kernelk.engines.worker_environment import WorkerEnvironment
from kernelk.environments import places
from kernelk.errors import BackendNotInstalledError, EngineError
from kernelk.session.current import current


def at_start(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(LAST, f"import signal\n{code}\n{LAST}"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            r": it was killed by SIGKILL, as the system does where memory runs out: \S+ \S?B are free now; next: run",
        ),
        ("os.kill(os.getpid(), signal.SIGTERM)", r": it was killed by SIGTERM; next: run it again"),
        ("os.kill(os.getpid(), 40)", r": it was killed by signal 40; next: run it again"),
        (
            "print('no such instruction', flush=True); os.kill(os.getpid(), signal.SIGILL)",
            r": it was killed by SIGILL \(no such instruction\); next: `pip install --force-reinstall numpy`, or run",
        ),
        ("os._exit(3)", r"; next: `pip install --force-reinstall numpy`"),
    ],
    ids=["SIGKILL", "SIGTERM", "nameless", "SIGILL", "exit"],
)
def test_what_ended_a_worker_that_was_starting(
    spare: str, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    v = K.variable([1.0])
    with monkeypatch.context() as patch:
        at_start(patch, code)
        with pytest.raises(EngineError, match="Spare's worker ended while starting" + words) as caught:
            kernelk.set_backend(spare)
        assert "\n" not in str(caught.value)
    assert kernelk.set_backend(spare).target == spare
    assert K.eval(v + 1.0).tolist() == [2.0]


def test_the_memory_that_is_free() -> None:
    free = start_failures.free_memory()
    assert free is not None
    assert 0 < free < 1 << 50


# --- environments that change under a worker ------------------------------------------------------------------


def test_a_rebuilt_environment_is_mended_by_a_restart(
    spare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the old worker can't do any more, a new one does, in the same call; nothing is lost."""
    monkeypatch.delenv("KERNELK_QUIET")
    marker, first = tmp_path / places.MARKER, tmp_path / "first"
    marker.write_text("{}")
    code = (
        "def exp(instruction, x):\n"
        f"    if open({str(first)!r}).read() == str(os.getpid()):\n"
        "        raise FileNotFoundError('dimshuffle.c')\n"
        "    return x + 1\n"
        'importlib.import_module("kernelk.backends.numpy.backend").OPS["exp"] = exp\n'
    )
    at_start(monkeypatch, code)
    look = WorkerEnvironment.__init__

    def beside(self: Any, engine: Any, interpreter: Path) -> None:
        look(self, engine, interpreter)
        self.folder, self._marker = tmp_path, marker
        self._before = self._identity()

    monkeypatch.setattr(WorkerEnvironment, "__init__", beside)
    kernelk.set_backend(spare)
    pid = current().host().pid
    first.write_text(str(pid))
    v = K.variable([1.0])
    call = K.function([], [K.exp(v)], [K.update_add(v, 1.0)])
    with pytest.raises(EngineError, match=r"FileNotFoundError: dimshuffle\.c; next: .*\(op exp\)"):
        call([])
    marker.unlink()
    words = rf"FileNotFoundError: dimshuffle\.c; next: .*\(its environment, {re.escape(str(tmp_path))}, was removed"
    with pytest.raises(EngineError, match=words) as caught:
        call([])
    assert "\n" not in str(caught.value)
    assert current().host().pid == pid
    assert K.eval(v * 2.0).tolist() == [2.0]
    marker.write_text("{}")
    capfd.readouterr()
    assert call([])[0].tolist() == [2.0]
    assert current().host().pid != pid
    (line,) = capfd.readouterr().err.splitlines()
    assert f"ended, since its environment, {tmp_path}, was rebuilt while it ran; it was restarted with all" in line
    assert K.get_value(v).tolist() == [2.0]


def test_theano_whose_environment_is_removed_and_built_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate("theano")
    marker = places.marker("theano")
    assert marker is not None
    real = Path(str(marker["folder"]))
    own, other = tmp_path / "envs" / real.name, tmp_path / "none" / "kernelk" / "envs" / real.name

    def build(place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-al", str(real), str(place)], check=True)
        # As a build does, which replaces it.
        text = (place / places.MARKER).read_text()
        (place / places.MARKER).unlink()
        (place / places.MARKER).write_text(text)

    current().host("theano").stop()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("KERNELK_ENVS", str(tmp_path / "envs"))
            patch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
            build(own)
            v = K.variable([[1.0, 2.0]])
            step = K.function([], [v * 2.0], [K.update_add(v, 1.0)])
            assert step([])[0].tolist() == [[2.0, 4.0]]
            assert own in Path(str(current().host("theano").interpreter)).parents  # type: ignore[attr-defined]
            shutil.rmtree(own)
            words = rf"FileNotFoundError.*kernelk install theano.*its environment, {own}, was removed while it ran"
            with pytest.raises(EngineError, match=words):
                K.eval(K.softmax(K.reshape(v, (2, 1))) + K.dot(K.transpose(v), v))
            # What it has compiled goes on.
            assert step([])[0].tolist() == [[4.0, 6.0]]
            # One that was built elsewhere meanwhile takes over in the very call that needs it.
            build(other)
            np.testing.assert_allclose(K.eval(K.softmax(K.reshape(v, (2, 1)))).sum(), 2.0, rtol=1e-5)
            assert other in Path(str(current().host("theano").interpreter)).parents  # type: ignore[attr-defined]
            assert step([])[0].tolist() == [[6.0, 8.0]]
            current().host("theano").stop()
            shutil.rmtree(other)
            with pytest.raises(BackendNotInstalledError, match="kernelk install theano"):
                step([])
            assert K.get_value(v).tolist() == [[4.0, 5.0]]
    finally:
        current().host("theano").stop()
