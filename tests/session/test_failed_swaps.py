"""Swaps that are refused, that fail and that Ctrl-C stops: what is said, and that the old engine is as it was."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.brake import Brake
from helpers.fake_engines import lacking_engine, register
from helpers.processes import alive, interrupt, wait_until

import kernelk
from kernelk import backend as K
from kernelk.engines import registry
from kernelk.engines.descriptors import Engine
from kernelk.errors import (
    BackendNotInstalledError,
    DTypeError,
    EngineError,
    KernelKError,
    SwapRefusedError,
    UnknownBackendError,
)
from kernelk.session.current import current


class Witness:
    """A running session on one engine; `intact` proves that a failed swap left it as it was."""

    def __init__(self, name: str = "numpy") -> None:
        kernelk.set_backend(name)
        self.name = name
        self.v = K.variable([1.0, 2.0], name="witness")
        self.call = K.function([], [K.sum(self.v)], [K.update_add(self.v, 1.0)])
        self.call([])
        self.chosen_by = current().chosen_by
        self.swaps = len(current().swaps)
        self.compiled = current().host(name).compile_count
        self.pid = current().host(name).pid

    def intact(self) -> None:
        session = current()
        assert K.backend() == session.active == self.name
        assert session.chosen_by == self.chosen_by
        assert len(session.swaps) == self.swaps
        before = K.get_value(self.v)
        assert self.call([])[0] == before.sum()
        assert K.get_value(self.v).tolist() == (before + 1).tolist()
        assert session.host(self.name).compile_count == self.compiled
        assert session.host(self.name).pid == self.pid


@pytest.mark.parametrize(
    ("name", "near"),
    [("teano", "theano"), ("Tensorflow", "tensorflow"), ("numpyy", "numpy"), ("CNTK", "cntk"), ("tf", "tensorflow")],
)
def test_an_unknown_engine(name: str, near: str) -> None:
    witness = Witness()
    with pytest.raises(UnknownBackendError, match=f"unknown backend '{name}': did you mean '{near}'"):
        kernelk.set_backend(name)
    witness.intact()


@pytest.mark.parametrize("name", ["", "x" * 500, "zzz", "numpy ", "../numpy", "num\npy"])
def test_a_name_like_no_other(name: str) -> None:
    witness = Witness()
    with pytest.raises(UnknownBackendError, match="available are tensorflow, theano, cntk") as caught:
        kernelk.set_backend(name)
    assert "\n" not in str(caught.value)
    witness.intact()


@pytest.mark.parametrize("name", [None, 3, ["numpy"]])
def test_what_is_no_name(name: object) -> None:
    witness = Witness()
    with pytest.raises(KernelKError):
        kernelk.set_backend(name)  # type: ignore[arg-type]
    witness.intact()


def test_all_obstacles_are_listed_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "poor", ops={"tanh", "concatenate"}, dtypes={"int64", "float16", "bool"})
    x = K.placeholder((None, 2), name="rows")
    half = K.variable([1.0], dtype="float16", name="half")
    calls = [
        K.function([x], [K.tanh(x)]),
        K.function([x], [K.concatenate([x, x])]),
        K.function([x], [K.argmax(x)]),
        K.function([x], [x * 2.0]),
    ]
    for call in calls:
        call([[[1.0, 2.0]]])
    witness = Witness()
    with pytest.raises(SwapRefusedError) as caught:
        kernelk.set_backend("poor")
    reasons = caught.value.reasons
    assert len(reasons) == len(set(reasons)) == 4
    for words in (
        r"variable 'half' .* is float16",
        r"no op 'tanh' .*test_failed_swaps\.py, line \d+",
        r"no op 'concatenate'",
        r"no dtype int64 \(op argmax",
    ):
        assert sum(bool(re.search(words, reason)) for reason in reasons) == 1, (words, reasons)
    text = str(caught.value)
    assert text.startswith("Poor cannot run this session, 'numpy' stays active: ")
    assert all(reason in text for reason in reasons)
    assert "\n" not in text
    witness.intact()
    for call in calls:
        call([[[1.0, 2.0]]])
    # Functions and variables that are gone are no obstacle.
    del half, calls, call
    assert kernelk.set_backend("poor").target == "poor"
    assert witness.call([])[0] == K.get_value(witness.v).sum() - 2


def test_both_phases_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "poor", ops={"tanh"})
    witness = Witness()
    x = K.placeholder((2,))
    call = K.function([x, K.learning_phase()], [K.in_train_phase(K.tanh(x), x)])
    with pytest.raises(SwapRefusedError, match="no op 'tanh'"):
        kernelk.set_backend("poor")
    witness.intact()
    assert call([[0.0, 1.0], 0])[0].tolist() == [0.0, 1.0]


def test_a_dtype_of_a_constant_or_feed_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "poor", dtypes={"int16", "uint64"})
    fed = K.placeholder((2,), dtype="int16", name="fed")
    call = K.function([fed], [K.cast(fed, "float32")])
    other = K.function([], [K.equal(K.constant([1, 2], dtype="uint64"), K.constant([1, 3], dtype="uint64"))])
    with pytest.raises(SwapRefusedError) as caught:
        kernelk.set_backend("poor")
    assert sorted("int16 (placeholder 'fed'" in reason for reason in caught.value.reasons) == [False, False, True]
    assert sum("uint64 (constant" in reason for reason in caught.value.reasons) == 2
    assert K.backend() == "numpy"
    assert (len(call([[1, 2]])), len(other([]))) == (1, 1)


def test_what_an_engine_lacks_is_one_clear_line_at_a_call_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after the swap: the same words, in the line that uses it."""
    lacking_engine(monkeypatch, "poor", ops={"tanh"}, dtypes={"int64"})
    kernelk.set_backend("poor")
    x = K.variable([1.0, 2.0])
    with pytest.raises(KernelKError, match="'tanh'"):
        K.eval(K.tanh(x))
    with pytest.raises((EngineError, DTypeError), match="int64"):
        K.eval(K.argmax(x))
    assert K.eval(x * 2.0).tolist() == [2.0, 4.0]


def test_an_engine_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lacking_engine(monkeypatch, "flush")

    def load(self: Any, array: np.ndarray) -> np.ndarray:
        return np.where(np.abs(array) < 1e-38, np.float32(0) * array, array) if array.dtype == "f4" else array

    module.Lacking.load = load
    witness = Witness()
    fine = K.variable([1e-30], name="fine")
    tiny = K.variable([1e-40, 1.0], name="tiny")
    with pytest.raises(SwapRefusedError, match=r"can't keep every value exact.*'tiny' \(float32") as caught:
        kernelk.set_backend("flush")
    assert len(caught.value.reasons) == 1
    witness.intact()
    K.set_value(tiny, [1e-10, 1.0])
    assert kernelk.set_backend("flush").variables == 3
    assert K.eval(fine * 1.0).tolist() == [np.float32(1e-30)]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("bad"), MemoryError(), OSError("disk")])
def test_an_engine_that_fails_to_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    module = lacking_engine(monkeypatch, "failing")

    def load(self: Any, array: np.ndarray) -> np.ndarray:
        raise error

    module.Lacking.load = load
    witness = Witness()
    with pytest.raises(EngineError, match=f"Failing failed: {type(error).__name__}"):
        kernelk.set_backend("failing")
    witness.intact()


@pytest.mark.parametrize("error", [RuntimeError("no device"), ImportError("libfoo.so.1"), OSError("gone")])
def test_an_engine_that_fails_to_start_in_the_kernel(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    module = lacking_engine(monkeypatch, "failing")

    def fail(self: Any, options: Any) -> None:
        raise error

    module.Lacking.__init__ = fail
    witness = Witness()
    with pytest.raises((EngineError, BackendNotInstalledError), match=str(error).replace(".", r"\.")):
        kernelk.set_backend("failing")
    witness.intact()


def test_a_backend_that_isnt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Engine("ghost", "Ghost", "ghost_backend", "GhostBackend", in_kernel=True))
    register(monkeypatch, Engine("shade", "Shade", "shade_backend", "ShadeBackend", imports="numpy"))
    register(monkeypatch, Engine("soul", "Soul", "numpy", "NoSuchClass", imports="numpy"))
    register(monkeypatch, Engine("body", "Body", "x", "X", imports="no_such_package", install="pip install body"))
    witness = Witness()
    for name in ("ghost", "shade", "soul", "body"):
        with pytest.raises((EngineError, BackendNotInstalledError)) as caught:
            kernelk.set_backend(name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value).lower()
        witness.intact()
        current().hosts.pop(name, None)
    with pytest.raises(BackendNotInstalledError, match="pip install body"):
        kernelk.set_backend("body")


@pytest.mark.parametrize("in_kernel", [False, True])
def test_an_engine_that_is_older_than_kernelk_needs(monkeypatch: pytest.MonkeyPatch, in_kernel: bool) -> None:
    old = Engine(
        "old",
        "Old",
        "numpy",
        "NumpyBackend",
        in_kernel_too=True,
        imports="numpy",
        lowest="99.1",
        install="pip install x",
    )
    register(monkeypatch, old)
    words = f"Old {np.__version__} is too old: 99.1 or newer is needed"
    witness = Witness()
    with pytest.raises(BackendNotInstalledError) as caught:
        kernelk.set_backend("old", in_kernel=in_kernel)
    assert str(caught.value) == f"{words}; next: `pip install x` (in a notebook: `%pip install x`)"
    witness.intact()
    assert f"old: {words}; next: `pip install x`" in str(kernelk.list_backends())
    assert words in str(kernelk.doctor("old"))
    newest = dataclasses.replace(old, lowest=".".join(np.__version__.split(".")[:2]))
    assert registry.outdated(newest) == ""


@pytest.mark.parametrize("boot", ["import os; os._exit(3)", "raise SystemExit('no display')", "import os; os.abort()"])
def test_a_worker_that_ends_while_it_starts(spare: str, monkeypatch: pytest.MonkeyPatch, boot: str) -> None:
    from kernelk.engines import worker_host as host

    witness = Witness()
    with monkeypatch.context() as patch:
        patch.setattr(host, "_BOOT", f"import sys\nprint('its last words', file=sys.stderr, flush=True)\n{boot}")
        with pytest.raises(EngineError, match="Spare's worker ended while starting") as caught:
            kernelk.set_backend(spare)
        assert "next: `pip install --force-reinstall numpy`" in str(caught.value)
        assert ("SIGABRT" in str(caught.value)) is ("abort" in boot)
        assert "\n" not in str(caught.value)
        witness.intact()
    assert kernelk.set_backend(spare).target == spare
    assert witness.call([])[0] == K.get_value(witness.v).sum() - 2


def test_an_interpreter_that_is_gone(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = Witness()
    with monkeypatch.context() as patch:
        patch.setattr(registry, "interpreter", lambda engine: Path("/nonexistent/bin/python3.6"))
        with pytest.raises((EngineError, BackendNotInstalledError), match=r"/nonexistent/bin/python3\.6"):
            kernelk.set_backend(spare)
    witness.intact()
    assert kernelk.set_backend(spare).target == spare


def test_an_engine_that_isnt_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERNELK_ENVS", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    witness = Witness()
    host = current().hosts.pop("theano", None)
    try:
        with pytest.raises(BackendNotInstalledError, match="kernelk install theano"):
            kernelk.set_backend("theano")
        witness.intact()
        table = {engine.name: engine for engine in kernelk.list_backends().engines}
        assert table["theano"].state == "not installed"
        assert table["theano"].note == "next: `kernelk install theano` (in a notebook: `%kbackend --install theano`)"
    finally:
        current().hosts.pop("theano", None)
        if host is not None:
            current().hosts["theano"] = host


def test_a_failed_swap_leaves_a_worker_engine_active(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "poor", dtypes={"float32"})
    witness = Witness(worker)
    for name, error in (("poor", SwapRefusedError), ("nonsense", UnknownBackendError)):
        with pytest.raises(error):
            kernelk.set_backend(name)
        witness.intact()


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


def test_ctrl_c_while_an_engine_starts(brake: Brake) -> None:
    witness = Witness()
    brake.hold("start")
    pids: list[int] = []

    def act() -> None:
        pid = current().hosts["spare"].pid
        assert pid is not None
        pids.append(pid)
        interrupt()

    thread = brake.when_reached("start", act)
    with pytest.raises(KeyboardInterrupt):
        kernelk.set_backend("spare")
    thread.join()
    assert not current().hosts["spare"].started
    assert wait_until(lambda: not alive(pids[0]))
    witness.intact()
    brake.free("start")
    assert kernelk.set_backend("spare").target == "spare"
    assert witness.call([])[0] == K.get_value(witness.v).sum() - 2


def test_ctrl_c_while_variables_are_loaded(brake: Brake) -> None:
    kernelk.set_backend("spare")
    witness = Witness()
    brake.hold("load")
    thread = brake.when_reached("load", lambda: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        kernelk.set_backend("spare")
    thread.join()
    witness.intact()
    brake.free("load")
    assert kernelk.set_backend("spare").loaded == len(current().live_variables())
    assert witness.call([])[0] == K.get_value(witness.v).sum() - 2
