"""A worker that sends invalid replies is ended, with a one-line error, and the session keeps all values."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile import HOSTILE, Hostile
from helpers.processes import alive, wait_until

import kernelk
from kernelk import backend as K
from kernelk.backends.serving.shared_memory import Segment
from kernelk.engines import worker_host
from kernelk.errors import EngineError, KernelKError, WorkerDiedError
from kernelk.session.current import current


@pytest.fixture
def hostile(spare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hostile:
    """The engine "spare", whose worker does what it is told to."""
    monkeypatch.setenv("KERNELK_TEST_HOSTILE", str(tmp_path / "answer"))
    last = 'importlib.import_module("kernelk.backends.serving.worker").main('
    monkeypatch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(last, HOSTILE + last))
    return Hostile(tmp_path / "answer")


# The kind of request, and what is done in place of the reply to it.
REPLIES = {
    "the number of the request before": ("run", "raw(message, 0, number - 1)"),
    "a number that is still to come": ("run", "raw(message, 0, number + 1)"),
    "a list": ("run", "raw([1, 2])"),
    "null": ("run", "raw(None)"),
    "no JSON": ("run", "raw(b'{')"),
    "no UTF-8": ("run", "raw(b'\\xff\\xfe')"),
    "nothing": ("run", "raw(b'')"),
    "a deep one": ("run", "raw(b'[' * 200000)"),
    "an unknown kind": ("run", "raw({'seconds': 0.1}, 9)"),
    "a request": ("run", "raw(bytes(16), 1)"),
    "a short one of two bytes": ("run", "raw(b'ab', 2)"),
    "no seconds": ("run", "raw({})"),
    "seconds that are whole": ("run", "raw({'seconds': 1})"),
    "seconds that are words": ("run", "raw({'seconds': 'soon'})"),
    "an error that is words": ("run", "raw({'error': 'no'})"),
    "an error without a message": ("run", "raw({'error': {'type': 'E', 'instruction': None, 'inside': []}})"),
    "an error at a place that isn't one": (
        "run",
        "raw({'error': {'type': 'E', 'message': 'm', 'instruction': 'first', 'inside': 3, 'trace': ''}})",
    ),
    "warnings that are none": ("run", "raw({'seconds': 0.1, 'warnings': [1]})"),
    "four gigabytes": ("run", "raw(b'', length=0xffffffff)"),
    "two at once": ("run", "connection.sendall(struct.pack('<IBQd', 8, 2, number, 0.1) * 2)"),
    "negative bytes": ("compile", "raw({'seconds': 0.1, 'bytes': -5, 'maps': 0, 'stages': None})"),
    "negative maps": ("compile", "raw({'seconds': 0.1, 'bytes': 5, 'maps': -1, 'stages': None})"),
    "no bytes": ("compile", "raw({'seconds': 0.1})"),
    "an id that wasn't loaded": ("load", "raw({'different': [123456]})"),
    "ids that are words": ("load", "raw({'different': 'all'})"),
    "half a pair": ("load", "raw({'different': [[1]]})"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_cant_be_right_ends_its_worker(name: str, hostile: Hostile) -> None:
    kernelk.set_backend("spare")
    w = K.variable([1.0, 2.0])
    x = K.placeholder(())
    step = K.function([x], [w * 2.0], [K.update_add(w, K.ones((2,)) * x)])
    assert step([1.0])[0].tolist() == [2.0, 4.0]
    kernelk.set_backend("numpy")
    assert step([1.0])[0].tolist() == [4.0, 6.0]
    pid = current().host("spare").pid
    assert pid is not None
    other = K.function([x], [x + w])
    kind, code = REPLIES[name]
    hostile.answer(kind, code)

    def use() -> None:
        kernelk.set_backend("spare")  # loads
        other([1.0])  # compiles, runs

    with pytest.raises(EngineError, match=r"sent an invalid reply.*all variables are kept") as caught:
        use()
    assert hostile.has_answered
    assert "\n" not in str(caught.value)
    assert caught.value.next_step == "run the cell again, which restarts the worker"
    assert wait_until(lambda: not alive(pid))
    kernelk.set_backend("spare")
    assert K.get_value(w).tolist() == [3.0, 4.0]
    for i in range(3):
        assert other([float(i)])[0].tolist() == [i + 3.0, i + 4.0]
    assert step([1.0])[0].tolist() == [6.0, 8.0]
    assert K.get_value(w).tolist() == [4.0, 5.0]


def test_a_second_reply_is_never_taken_for_the_next(hostile: Hostile) -> None:
    kernelk.set_backend("spare")
    x = K.placeholder(())
    call = K.function([x], [x + 1.0])
    call([1.0])
    hostile.answer("run", "raw(message); time.sleep(0.1); raw(message)")
    # The second one comes while the worker is still at the first.
    assert float(call([2.0])[0]) == 3.0
    with pytest.raises(EngineError, match="an invalid reply"):
        call([3.0])
    assert [float(call([float(i)])[0]) for i in range(4)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "words",
    [
        "raw({'facts': {}})",
        "raw(dict(message, keeps=1))",
        "raw({'facts': {}, 'keeps': True})",
        "raw([])",
        "raw({'seconds': 0.1}, number=5)",
        "raw(b'', 3)",
    ],
)
def test_first_words_that_cant_be_right(words: str, hostile: Hostile) -> None:
    w = K.variable([1.0])
    hostile.answer("facts", words)
    with pytest.raises(EngineError, match="an invalid reply") as caught:
        kernelk.set_backend("spare")
    assert "\n" not in str(caught.value)
    assert K.backend() == "numpy"
    kernelk.set_backend("spare")
    assert K.eval(w + 1.0).tolist() == [2.0]


def test_a_length_that_is_only_declared_takes_no_memory(hostile: Hostile) -> None:
    """Less than what is refused at once, and never sent."""
    kernelk.set_backend("spare")
    w = K.variable([1.0])
    K.eval(w + 1.0)
    hostile.answer("run", "raw(b'x' * 70000, length=200 << 20); os._exit(3)")
    tracemalloc.start()
    try:
        with pytest.raises(WorkerDiedError, match="ended with status 3"):
            K.eval(w + 1.0)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert K.eval(w + 1.0).tolist() == [2.0]


def test_a_worker_that_closes_its_end_and_lives_on(hostile: Hostile) -> None:
    kernelk.set_backend("spare")
    w = K.variable([1.0])
    K.eval(w + 1.0)
    pid = current().host().pid
    assert pid is not None
    hostile.answer("run", "connection.shutdown(1); time.sleep(1000)")
    with pytest.raises(KernelKError) as caught:
        K.eval(w + 1.0)
    assert "\n" not in str(caught.value)
    assert wait_until(lambda: not alive(pid))
    assert K.eval(w + 1.0).tolist() == [2.0]


def test_a_segment_cant_be_cut_off() -> None:
    """Another process that did it would end this one by a signal, at the next look at a variable."""
    segment = Segment.create(1 << 16)
    assert segment.fileno is not None
    for size in (0, 4096, 1 << 20):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(segment.fileno, size)
    array = segment.array(0, "float64", (100,))
    array[...] = 1.0
    assert float(np.sum(array)) == 100.0
    segment.close()


def test_a_segment_that_cant_be_mapped_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("mmap.mmap", refuse)
    for _ in range(10):
        with pytest.raises(OSError, match="Cannot allocate"):
            Segment.create(4096)
    assert len(os.listdir("/proc/self/fd")) == before
