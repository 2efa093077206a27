"""An engine in the notebook's own process whose device an error leaves unusable: what is lost, and what is said."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.fake_engines import lacking_engine
from helpers.messages import one_line

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import checkpoint
from kernelk.engines.local_host import LocalHost
from kernelk.errors import EngineError
from kernelk.session.current import current

SIZE = 20_000  # more than what is kept as a copy


class Device:
    """A device in numpy's memory: `broken`, it computes and hands over nothing any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = False
        self.fetches = 0
        made: Any = lacking_engine(monkeypatch, "far").Lacking
        real = made.facts
        made.facts = lambda backend: {**real(backend), "device": "cuda:0"}
        made.keeps_updates = property(lambda backend: True, lambda backend, value: None)
        made.usable = lambda backend: not self.broken
        # As on a device: nothing there shares memory with the kernel's.
        made.load = lambda backend, array: np.array(array)
        made.to_numpy = lambda backend, value: self.to_numpy(value)
        made.ops["exp"] = self.breaking(made.ops["exp"])

    def to_numpy(self, value: Any) -> Any:
        self.check()
        return np.array(value)

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("device-side assert triggered")

    def breaking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def exp(instruction: Any, x: Any) -> Any:
            self.broken = self.broken or bool(x.max() > 600)
            self.check()
            return function(instruction, x)

        return exp


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 1e6)
    made = Device(monkeypatch)
    kernelk.set_backend("far")
    return made


class Model:
    """A step that changes a small and a large variable and reads a third; `risky` may break the device."""

    def __init__(self) -> None:
        self.w, self.v = K.variable(np.zeros(SIZE)), K.variable([1.0, 2.0])
        self.rate = K.variable(1.0)
        x = K.placeholder(())
        step = [K.update_add(self.w, K.ones((SIZE,)) * self.rate), K.update(self.v, self.v * 2.0)]
        self.step = K.function([], [K.sum(self.v)], step)
        self.risky = K.function([x], [K.exp(x)], [K.update_add(self.w, K.exp(x) * K.ones((SIZE,)))])

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step([])

    def state(self) -> list[float]:
        """The value of w, which is the same in all its places, and those of v."""
        w, v = K.batch_get_value([self.w, self.v])
        assert same_bits(w, np.full(SIZE, w[0], np.float32))
        return [float(w[0]), *v.tolist()]


def host() -> LocalHost:
    found = current().hosts["far"]
    assert isinstance(found, LocalHost)
    return found


def test_new_values_stay_on_the_device_until_somebody_looks(device: Device) -> None:
    model = Model()
    model.steps(3)
    assert len(host().holding) == 2
    assert model.state() == [3.0, 8.0, 16.0]
    assert not host().holding
    model.steps(1)
    kernelk.set_backend("numpy")
    assert model.state() == [4.0, 16.0, 32.0]
    model.steps(1)
    assert model.state() == [5.0, 32.0, 64.0]


def test_an_error_that_leaves_the_device_usable_loses_nothing(device: Device, said: list[str]) -> None:
    model = Model()
    model.steps(3)
    y = K.placeholder((2,), dtype="int32")
    refused = K.function([y], [K.pow(y, y)], [K.update(model.v, model.v + 1.0)])
    with pytest.raises(EngineError):
        refused([np.array([2, -1], "int32")])
    model.steps(1)
    assert model.state() == [4.0, 16.0, 32.0]
    assert not [line for line in said if "lost" in line]


def test_the_calls_since_the_last_checkpoint_are_lost_and_counted(device: Device, said: list[str]) -> None:
    model = Model()
    model.steps(2)
    # All is fetched: a checkpoint.
    assert model.state() == [2.0, 4.0, 8.0]
    model.steps(3)
    with pytest.raises(EngineError) as caught:
        model.risky([1000.0])
    message = one_line(caught.value)
    assert "device-side assert triggered" in message
    assert "cuda:0 can't be used any more in this process" in message
    assert "3 calls since the last checkpoint are lost: 2 variables have their values from before" in message
    assert "next: kernelk.set_backend('far', in_kernel=False)" in message
    assert model.state() == [2.0, 4.0, 8.0]
    assert not [line for line in said if "lost" in line], "told once"
    # The engine is refused from here on, and another one goes on.
    for _ in range(2):
        with pytest.raises(EngineError, match="cuda:0 can't be used any more in this process"):
            model.step([])
    kernelk.set_backend("numpy")
    model.steps(1)
    assert model.state() == [3.0, 8.0, 16.0]


def test_it_is_one_cut_whatever_was_looked_at_or_set_since(device: Device) -> None:
    model = Model()
    model.steps(2)
    assert model.state() == [2.0, 4.0, 8.0]
    model.steps(1)
    # One of the two is looked at, and is no checkpoint.
    assert K.get_value(model.v).tolist() == [8.0, 16.0]
    model.steps(1)
    assert K.get_value(model.v).tolist() == [16.0, 32.0]
    K.set_value(model.rate, 5.0)
    with pytest.raises(EngineError, match="2 calls since the last checkpoint are lost: 2 variables"):
        model.risky([1000.0])
    assert model.state() == [2.0, 4.0, 8.0]
    # What the calls haven't changed is as it was set.
    assert K.get_value(model.rate) == 5.0


def test_what_was_set_after_the_last_call_stays(device: Device) -> None:
    model = Model()
    model.steps(2)
    K.set_value(model.v, [7.0, 7.0])
    with pytest.raises(EngineError, match="2 calls since the last checkpoint are lost: 1 variable has its value"):
        model.risky([1000.0])
    assert model.state() == [0.0, 7.0, 7.0]


def test_a_device_that_fails_while_values_are_fetched_is_told_of(device: Device, said: list[str]) -> None:
    model = Model()
    model.steps(4)
    device.broken = True
    assert model.state() == [0.0, 1.0, 2.0]
    (line,) = [line for line in said if "lost" in line]
    assert "4 calls since the last checkpoint are lost: 2 variables have their values from before" in line


def test_a_device_that_fails_in_a_checkpoint_leaves_the_one_before(
    device: Device, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.steps(2)
    assert model.state() == [2.0, 4.0, 8.0]
    model.steps(2)
    real = device.to_numpy
    count = iter(range(100))

    def second(backend: Any, value: Any) -> Any:
        device.broken = next(count) == 1
        return real(value)

    monkeypatch.setattr(type(host()._executor.backend), "to_numpy", second)  # type: ignore[union-attr]
    assert model.state() == [2.0, 4.0, 8.0]
    assert "2 calls since the last checkpoint are lost" in said[-1]


def test_checkpoints_are_made_when_they_are_due(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 0.0)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FACTOR", 0)
    model = Model()
    model.steps(4)
    # Each call but the last one is fetched before the next.
    with pytest.raises(EngineError, match="nothing is lost"):
        model.risky([1000.0])
    assert model.state() == [4.0, 16.0, 32.0]


def test_a_swap_away_from_a_lost_device_goes_on_from_the_checkpoint(device: Device, said: list[str]) -> None:
    model = Model()
    model.steps(2)
    device.broken = True
    kernelk.set_backend("numpy")
    assert "2 calls since the last checkpoint are lost" in said[0]
    model.steps(1)
    assert model.state() == [1.0, 2.0, 4.0]


def test_variables_that_are_gone_need_nothing(device: Device) -> None:
    model = Model()
    model.steps(2)
    del model.w
    kept = model.v
    del model
    K.eval(K.constant(1.0) * 2.0)
    assert K.get_value(kept).tolist() == [4.0, 8.0]


def test_a_call_that_fails_leaves_no_memory_behind(device: Device) -> None:
    session = current()

    def held() -> int:
        storage, transfer = session.storage, session.calls.transfer.segment
        sizes = sum(segment.size for number, segment in storage.segments.items() if number != transfer)
        return sizes - sum(length for ranges in storage._free.values() for _, length in ranges)

    def fail(model: Model) -> None:
        with pytest.raises(EngineError, match="nothing is lost"):
            model.risky([1000.0])

    before, model = held(), Model()
    fail(model)
    kernelk.set_backend("numpy")
    session.hosts.pop("far").stop()
    del model
    gc.collect()
    for _ in range(2):
        # What the first one gives back, the second one finds.
        with session.lock:
            session.safe_point()
    assert held() == before
