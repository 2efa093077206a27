"""Which memory goes with a request, and which comes back with its reply."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelk.backends.serving.shared_memory import aligned
from kernelk.backends.serving.wire import Malformed, encode, opened
from kernelk.remote.serving import joined, split
from kernelk.remote.traffic import Traffic, merged


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70), st.booleans()), max_size=12))
def test_ranges_have_all_bytes_of_what_is_named_and_none_of_what_is_not(blocks: list[tuple[int, int, bool]]) -> None:
    """Blocks lie side by side in three segments, as variables do; some of them are named, in any order."""
    ends = [0, 0, 0]
    named, others = [], []
    for segment, size, is_named in blocks:
        (named if is_named else others).append([segment, ends[segment], "int8", [size]])
        ends[segment] += aligned(size)
    ranges = merged(reversed(named))
    covered = {(segment, i) for segment, offset, size in ranges for i in range(offset, offset + size)}
    assert len(covered) == sum(size for _, _, size in ranges)
    for found, where in ((True, named), (False, others)):
        for segment, offset, _, (size,) in where:
            assert all(((segment, i) in covered) is found for i in range(offset, offset + size))


def run(**more: Any) -> dict[str, Any]:
    return {"do": "run", "plan": 1, "define": None, "load": [], "sides": [], "counts": [], **more}


def test_a_plan_is_told_once() -> None:
    traffic = Traffic()
    define = {
        "feeds": [[0, 0, "float32", [4]]],
        "outputs": [[0, 64, "float64", []]],
        "into": [[[1, 0, "int64", [2]], [1, 128, "int64", [2]]]],
    }
    fed, out = (0, 0, 16), (0, 64, 8)
    assert traffic.of(run(define=define, sides=[1])) == ([fed], [out, (1, 128, 16)])
    assert traffic.of(run(sides=[0])) == ([fed], [out, (1, 0, 16)])
    assert traffic.of(run(keep=3)) == ([fed], [out])
    assert traffic.of(run(keep=4, load=[[7, [2, 0, "bool", [3]]]])) == ([fed, (2, 0, 3)], [out])
    assert traffic.of({"do": "release", "plans": [1]}) == ([], [])
    with pytest.raises(KeyError):
        traffic.of(run(keep=5))


def test_what_a_request_reads_and_writes() -> None:
    traffic, one = Traffic(), [3, 64, "float16", [2, 2]]
    for do, fields, reads, writes in (
        ("compile", {"constants": [one]}, 1, 0),
        ("describe", {"constants": [one]}, 1, 0),
        ("load", {"variables": [[5, one]]}, 1, 0),
        ("fetch", {"variables": [[5, one]]}, 0, 1),
        ("time", {"constants": [], "feeds": [one], "variables": []}, 1, 0),
        ("checksum", {"variables": [5]}, 0, 0),
    ):
        place = [(3, 64, 8)]
        assert traffic.of({"do": do, **fields}) == (place * reads, place * writes)


def test_a_frame_is_whole_or_refused() -> None:
    frame = encode({"do": "give_back"}, 7)
    assert opened(frame) == (7, {"do": "give_back"})
    assert split(joined(["x", 1], frame)) == (["x", 1], frame)
    for bad in (b"", frame[:-1], frame + b"x", b"\xff" * 40):
        with pytest.raises(Malformed):
            opened(bad)
    for first in (b"", b"{\n", "text", None):
        with pytest.raises(Malformed):
            split(first)  # type: ignore[arg-type]
