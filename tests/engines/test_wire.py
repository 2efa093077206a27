"""The wire: messages arrive whole, with their descriptors, or not at all; who waits looks before it sleeps."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk.backends.serving import wire as wire_module
from kernelk.backends.serving.shared_memory import Segment
from kernelk.backends.serving.wire import Wire, WireClosed, encode

messages = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text(max_size=30),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4),
        max_leaves=20,
    ),
    max_size=6,
)


def pair() -> tuple[Wire, Wire]:
    left, right = socket.socketpair()
    return Wire(left), Wire(right)


@settings(max_examples=25)
@given(sent=st.lists(messages, min_size=1, max_size=4), padding=st.sampled_from([0, 1, 65_530, 1_000_000]))
def test_any_message_arrives_whole(sent: list[dict[str, Any]], padding: int) -> None:
    """By turns, as request and reply."""
    left, right = pair()
    sent[0]["padding"] = "\u00e9" * padding

    def serve() -> None:
        for _ in sent:
            request, number, _ = right.receive_with_files()
            right.send(request, number)

    thread = threading.Thread(target=serve)
    thread.start()
    for number, message in enumerate(sent, 2**64 - len(sent)):
        left.send(message, number)
        assert left.receive(number) == message
    thread.join()
    left.close()
    right.close()


@given(
    plan=st.integers(0, 2**64 - 1),
    counts=st.lists(st.integers(0, 2**64 - 1), max_size=20),
    sides=st.lists(st.integers(0, 1), max_size=300),
    seconds=st.floats(0, 1e6),
)
def test_the_short_forms_say_the_same(plan: int, counts: list[int], sides: list[int], seconds: float) -> None:
    left, right = pair()
    run = {"do": "run", "plan": plan, "define": None, "load": [], "sides": sides, "counts": counts}
    left.send(run, 7)
    got = right.receive(7)
    assert {**got, "load": list(got["load"]), "counts": list(got["counts"])} == run
    kept = {**run, "sides": [], "keep": plan, "confirmed": 2**64 - 1 - plan}
    left.send(kept, 7)
    got = right.receive(7)
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in got.items()} == kept
    right.send({"seconds": seconds}, 7)
    assert left.receive(7) == {"seconds": seconds}
    longer = {**run, "load": [[1, [2, 3, "float32", [4]]]]}
    left.send(longer, 8)
    assert right.receive_with_files() == (longer, 8, [])
    left.close()
    right.close()


@settings(max_examples=40)
@given(message=messages, cuts=st.lists(st.integers(1, 40), max_size=12), closed_after=st.integers(0, 400))
def test_a_stream_in_pieces(message: dict[str, Any], cuts: list[int], closed_after: int) -> None:
    """However the bytes come, and wherever they end: the whole message or WireClosed, never anything else."""
    frame = encode(message)
    for part in (frame, frame[: closed_after % len(frame)]):
        sender, receiver = socket.socketpair()

        def feed(sender: socket.socket = sender, part: bytes = part) -> None:
            with sender:
                rest, widths = part, list(cuts)
                while rest:
                    width = widths.pop() if widths else len(rest)
                    sender.sendall(rest[:width])
                    rest = rest[width:]
                    time.sleep(0)

        thread = threading.Thread(target=feed)
        thread.start()
        wire = Wire(receiver)
        if part == frame:
            assert wire.receive(0) == message
            thread.join()
        with pytest.raises(WireClosed):
            wire.receive(0)
        thread.join()
        wire.close()


def test_descriptors_travel_with_their_message() -> None:
    left, right = pair()
    segments = [Segment.create(4096) for _ in range(64)]
    for i, segment in enumerate(segments):
        segment.array(0, "int64", (2,))[...] = i
    left.send({"first": 1}, files=[segment.fileno for segment in segments])
    message, _, files = right.receive_with_files()
    assert message == {"first": 1}
    assert len(files) == 64
    for i, file in enumerate(files):
        twin = Segment.attach(file, 4096)
        assert twin.array(0, "int64", (2,)).tolist() == [i, i]
        twin.array(0, "int64", (2,))[...] = i + 100
        assert segments[i].array(0, "int64", (2,)).tolist() == [i + 100] * 2
    big = {"padding": "x" * 2_000_000}
    sender = threading.Thread(target=left.send, args=(big, 0, [segments[0].fileno]))
    sender.start()
    message, _, files = right.receive_with_files()
    sender.join()
    assert message == big
    assert len(files) == 1
    os.close(files[0])
    left.close()
    right.close()
    for segment in segments:
        segment.close()


def test_the_other_side_gone() -> None:
    left, right = pair()
    left.send({"asked": 1})
    right.close()
    with pytest.raises(WireClosed) as caught:
        left.receive(0)
    assert caught.value.unread
    with pytest.raises(WireClosed) as caught:  # noqa: PT012
        for _ in range(3):
            left.send({"padding": "x" * 1_000_000})
    assert caught.value.unread
    left, right = pair()
    left.send({"asked": 1})
    right.receive(0)
    right.close()
    with pytest.raises(WireClosed) as caught:
        left.receive(0)
    # It was read: nobody can say that it didn't happen.
    assert not caught.value.unread


class Clock:
    """A time that only passes where it is told to: by `gap` at the next look, by 1 us at the others."""

    def __init__(self) -> None:
        self.now, self.gap = 100.0, 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


class Silent:
    """A connection on which nothing comes while somebody looks, and a message once he sleeps."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.looks = clock, 0

    def recv_into(self, buffer: bytearray, size: int = 0, flags: int = 0) -> int:
        if flags:
            self.looks += 1
            self.clock.now += self.clock.gap
            self.clock.gap = 0.0
            raise BlockingIOError
        frame = encode({"seconds": 1e-5}, 7)
        buffer[: len(frame)] = frame
        return len(frame)


@pytest.mark.parametrize(("gap", "rest"), [(60e-6, 0.003), (0.2e-3, 0.01), (3e-3, 0.05), (1.0, 0.05)])
def test_a_look_that_was_disturbed_rests_for_as_long_as_that_is_worth(
    monkeypatch: pytest.MonkeyPatch, gap: float, rest: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(wire_module, "time", clock)
    silent = Silent(clock)
    wire = Wire(silent)

    def looks() -> int:
        before = silent.looks
        assert wire.receive(7, 200e-6) == {"seconds": 1e-5}
        return silent.looks - before

    assert looks() > 100
    clock.gap = gap
    assert looks() == 1
    clock.now += 0.9 * rest
    assert looks() == 0
    clock.now += 0.15 * rest
    assert looks() > 100
