"""Requests that don't fit into memory are refused before anything changes, and a large call's memory is freed."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.processes import PATIENCE, environment, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk.backends.serving.freed import REST
from kernelk.backends.serving.shared_memory import Segment
from kernelk.engines import memory
from kernelk.engines.process_environment import worker_variables
from kernelk.errors import OutOfMemoryError
from kernelk.session.calls import SMALL_CALLS
from kernelk.session.current import current
from kernelk.session.session import MOST_SWAPS

BEGIN = """
import os, resource, sys, tempfile
from helpers.forking import said, spare
import numpy as np
import kernelk
from kernelk import backend as K
from kernelk.session.archive import Archive
from kernelk.session.current import current
spare()
kernelk.set_backend({engine!r})

def leave(megabytes):
    size = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20), -1))

def unlimited():
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""

MB = 1 << 20


def script(code: str, engine: str = "numpy") -> Any:
    return run_script(BEGIN.format(engine=engine) + textwrap.dedent(code))


def is_refusal(line: str) -> bool:
    """Whether it is the one line that a value gets which doesn't fit, with the figures and the next step."""
    return (
        line.startswith("OutOfMemoryError: ")
        and "\n" not in line
        and "; nothing was changed; next: free memory" in line
        and any(unit in line for unit in (" MB", " GB"))
    )


# ---------------------------------------------------------------------------- all or nothing


def test_load_and_set_value_change_all_or_nothing() -> None:
    code = """
    a, b = K.variable(np.zeros(10), name="a"), K.variable(np.zeros(50_000_000), name="b")
    ones = {"a": np.ones(10, "float32"), "b": np.ones(50_000_000, "float32")}
    path = os.path.join(tempfile.mkdtemp(), "x.npz")
    np.savez(path, **ones)
    read = Archive.read
    def read_and_leave_little(*rest):
        found = read(*rest)
        leave(100)
        return found
    Archive.read = read_and_leave_little
    values = lambda: [float(K.get_value(a)[0]), float(b.slots.view()[0])]
    result = [said(lambda: kernelk.load(path)), values()]
    leave(100)
    result += [said(lambda: K.batch_set_value([(a, ones["a"]), (b, ones["b"])])), values()]
    unlimited()
    Archive.read = read
    kernelk.load(path)
    result.append(values())
    """
    loaded, after, written, later, at_last = script(code)
    assert is_refusal(loaded)
    assert is_refusal(written)
    assert (after, later, at_last) == ([0.0, 0.0], [0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("engine", ["numpy", "spare"])
def test_a_call_goes_on_after_what_did_not_fit(engine: str) -> None:
    code = """
    x, w = K.placeholder((None,)), K.variable(np.zeros(2))
    f = K.function([x], [K.sum(x)], updates=[K.update_add(w, [1, 1])])
    big = np.ones(60_000_000, "float32")
    wide = np.ones(60_000_000)
    f([np.ones(3)])
    leave(200)
    result = [said(lambda: f([big])), said(lambda: f([wide])), float(f([np.ones(3)])[0])]
    result += [said(lambda: K.variable(big)), said(lambda: K.zeros((60_000_000,))), said(lambda: K.eye(20_000))]
    result += [said(lambda: K.variable(1.0)), float(f([np.ones(4)])[0])]
    unlimited()
    result += [float(f([big])[0]), K.get_value(w).tolist()]
    """
    feed, cast, three, variable, zeros, eye, small, four, *rest = script(code, engine)
    for line in (feed, cast, variable, zeros, eye):
        assert is_refusal(line), line
    assert (three, small, four, rest) == (3.0, "", 4.0, [60_000_000.0, [4.0, 4.0]])


def test_a_call_that_its_worker_has_no_room_for_is_let_go() -> None:
    code = """
    x, w = K.placeholder((None,)), K.variable(np.zeros(2))
    f = K.function([x], [K.sum(x)], updates=[K.update_add(w, [1, 1])])
    f([np.ones(3)])
    pid = current().host().pid
    size = int(open(f"/proc/{pid}/statm").read().split()[0]) * 4096
    resource.prlimit(pid, resource.RLIMIT_AS, (size + (100 << 20), -1))
    big = np.ones(60_000_000, "float32")
    result = [said(lambda: f([big])), float(f([np.ones(3)])[0]), current().host().pid == pid, K.get_value(w).tolist()]
    """
    refused, *rest = script(code, "spare")
    assert refused.startswith("OutOfMemoryError: Spare's worker: 300.0 MB of memory can't be allocated (")
    assert rest == [3.0, True, [2.0, 2.0]]


def test_what_no_machine_has_is_refused_at_once() -> None:
    for call in (lambda: K.zeros((1 << 45,)), lambda: K.ones((1 << 40, 1 << 40)), lambda: K.eye(1 << 30)):
        with pytest.raises(OutOfMemoryError, match=r"are needed, and .* leaves"):
            call()
    w = K.variable([1.0])
    assert K.eval(w + 1) == [2.0]


def test_too_many_open_files_are_named() -> None:
    code = """
    w = K.variable([1.0])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [open(os.devnull) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(f.fileno() for f in held) + 1, most[1]))
    result = [said(lambda: K.zeros((8 << 20,)))]
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    result += [said(lambda: K.zeros((8 << 20,))), K.eval(w + 1).tolist()]
    """
    first, *rest = script(code)
    assert is_refusal(first)
    assert "Too many open files" in first
    assert rest == ["", [2.0]]


def test_a_segment_that_cannot_be_mapped_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(mmap, "mmap", refuse)
    for make in (lambda: Segment.create(4096), lambda: Segment.attach(os.dup(0), 4096)):
        with pytest.raises(OSError, match="Cannot allocate"):
            make()
    with pytest.raises(OutOfMemoryError, match="Cannot allocate"):
        current().storage.new_segment(4096)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------- what is taken, and comes back


def anonymous(pid: int) -> int:
    """The bytes of a process's memory that belongs to no file, shared memory left out."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("at_rest", [True, False])
def test_a_worker_keeps_freed_memory_for_its_next_call_only(at_rest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    activate("torch")
    pid, array = current().host().pid, 4 * 4000 * 4000
    assert pid is not None
    x = K.placeholder((4000, 1))
    call = K.function([x], [K.sum(K.exp(x + K.transpose(x)))])
    data = np.zeros((4000, 1))
    assert call([data]) == [4000 * 4000]
    time.sleep(2 * REST)
    before = anonymous(pid)
    # Looked at after the worker's rest has begun, on a busy machine, it is gone again.
    wait_until(lambda: call([data]) and anonymous(pid) > before + 0.9 * array)
    if at_rest:
        wait_until(lambda: anonymous(pid) < before + 0.1 * array)
        return
    # What is needed here doesn't wait for that.
    rooms = [0, 1 << 30]
    monkeypatch.setattr(memory, "_rooms", lambda: [(rooms.pop(0), "this machine")])
    memory.require(1 << 30, "the value")
    assert anonymous(pid) < before + 0.1 * array


def test_a_users_own_settings_of_malloc_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert worker_variables(True)["GLIBC_TUNABLES"].startswith("glibc.malloc.check=0:glibc.malloc.mmap_max=")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=9")
    assert worker_variables(True)["GLIBC_TUNABLES"] == "glibc.malloc.trim_threshold=9"
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "9")
    assert "GLIBC_TUNABLES" not in worker_variables(True)


def test_a_variable_takes_its_value_once_more_and_no_more() -> None:
    code = """
    MB = 1 << 20
    def peak(make):
        # The highest resident size, counted anew from here.
        open("/proc/self/clear_refs", "w").write("5")
        status = lambda name: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024
        before = status("VmRSS")
        kept = make()
        return status("VmHWM") - before
    doubles, integers = np.ones(16 * MB), np.ones(16 * MB, "int64")
    other_way = np.ones((4096, 4096), "float32").T
    v = K.zeros((16 * MB,))
    kept = []
    result = [peak(lambda make=make: kept.append(make())) for make in (
        lambda: K.variable(doubles, dtype="float64"),
        lambda: K.variable(doubles, dtype="float32"),
        lambda: K.variable(integers, dtype="int32"),
        lambda: K.variable(other_way),
        lambda: K.zeros((32 * MB,)),
        lambda: K.set_value(v, doubles),
    )]
    """
    taken = script(code)
    # In megabytes, what the values themselves have.
    for figure, value in zip(taken, [128, 64, 64, 64, 128, 64]):
        assert value - 8 <= figure <= value + 16, taken


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (np.arange(200_000).reshape(2, -1).T, "int32", True),
        (np.full((300, 300), 300), "uint8", False),
        (np.r_[np.zeros(100_000), 0.5], "int64", False),
        (np.r_[np.zeros(100_000), np.nan], "int64", False),
        (np.zeros((0, 3)), "int8", True),
        (np.array(3.0), "int8", True),
    ],
)
def test_whether_a_value_fits_into_integers_is_found_out_in_pieces(value: Any, dtype: str, fits: bool) -> None:
    if fits:
        assert np.array_equal(K.get_value(K.variable(value, dtype=dtype)), value)
    else:
        with pytest.raises(kernelk.errors.DTypeError, match="doesn't fit into"):
            K.variable(value, dtype=dtype)


def test_what_a_large_feed_took_comes_back(spare: str) -> None:
    kernelk.set_backend(spare)
    x = K.placeholder((None,))
    f = K.function([x], [K.sum(x)])
    session = current()
    pid = session.host().pid

    def mapped() -> int:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        sizes = [line.split()[0].split("-") for line in lines if "memfd:kernelk" in line]
        return sum(int(end, 16) - int(start, 16) for start, end in sizes)

    f([np.ones(3)])
    for _ in range(2):
        f([np.ones(8 * MB)])
        assert session.storage.bytes > 32 * MB
        for _ in range(SMALL_CALLS + 1):
            assert f([np.ones(3)]) == [3.0]
        assert session.storage.bytes <= 2 * MB
        assert mapped() <= 2 * MB
    f([np.ones(8 * MB)])
    K.clear_session()
    assert session.storage.bytes == 0


def test_calls_that_need_it_keep_a_large_transfer_segment() -> None:
    x = K.placeholder((None,))
    f = K.function([x], [K.sum(x)])
    f([np.ones(8 * MB)])
    segment = current().calls.transfer.segment
    for _ in range(SMALL_CALLS):
        f([np.ones(3)])
        f([np.ones(4 * MB)])
    assert current().calls.transfer.segment == segment


def test_the_reports_of_swaps_are_bounded(monkeypatch: pytest.MonkeyPatch, spare: str) -> None:
    monkeypatch.setattr("kernelk.session.swap.MOST_SWAPS", 4)
    session = current()
    before = session.swap_count
    reports = [kernelk.set_backend(name) for name in [spare, "numpy"] * 4]
    assert session.swaps == reports[-4:]
    assert session.swap_count == before + 8
    assert MOST_SWAPS == 1000


# ---------------------------------------------------------------------------- the limits


def _machine(place: Path, cgroup: str, mountinfo: str, available: int = 100) -> Path:
    proc = place / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 999999999 kB\nMemAvailable: {available * 1024} kB\nSwapFree: 10240 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "self/mountinfo").write_text(mountinfo)
    (proc / "self/statm").write_text("1 1 1")
    return proc


def _group(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def _least(proc: Path) -> tuple[int, str]:
    room, limit = min(memory._rooms(proc))
    return (room + memory._RESERVE) // MB, limit


def test_the_limit_of_a_control_group_of_version_2(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    line = f"30 20 0:26 / {root} rw shared:4 - cgroup2 cgroup2 rw\n"
    proc = _machine(tmp_path, "0::/user/kernel\n", line, 10_000)
    _group(root / "user", memory__max=500 * MB, memory__current=450 * MB)
    stat = f"anon 5\ninactive_file {20 * MB}\nactive_file {10 * MB}"
    files = {"memory__max": 300 * MB, "memory__current": 100 * MB, "memory__stat": stat}
    _group(root / "user/kernel", **files)
    # The group above leaves less; both may swap.
    assert _least(proc) == (60, f"the control group's limit of {memory.size(500 * MB)}")
    _group(root / "user", memory__max="max", memory__current=450 * MB)
    assert _least(proc) == (240, f"the control group's limit of {memory.size(300 * MB)}")
    _group(root / "user/kernel", memory__swap__max=4 * MB, memory__swap__current=MB)
    assert _least(proc)[0] == 233
    _group(root / "user/kernel", memory__max="max")
    assert _least(proc) == (10_010, "the machine's memory")


def test_the_limit_of_a_control_group_of_version_1(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    line = f"30 20 0:26 /docker/1 {root} rw - cgroup cgroup rw,memory\n31 20 0:27 / /x rw - cgroup cgroup rw,cpu\n"
    # A container sees its own group as the root, under the name that it has outside.
    proc = _machine(tmp_path, "5:cpu:/a\n4:memory:/docker/1/sub\n0::/\n", line, 10_000)
    stat = f"inactive_file 1\ntotal_inactive_file {7 * MB}\n"
    _group(root, memory__limit_in_bytes=200 * MB, memory__usage_in_bytes=150 * MB, memory__stat=stat)
    _group(root / "sub", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=MB)
    assert _least(proc) == (67, f"the control group's limit of {memory.size(200 * MB)}")
    _group(root, memory__memsw__limit_in_bytes=200 * MB, memory__memsw__usage_in_bytes=151 * MB)
    assert _least(proc)[0] == 56


@pytest.mark.parametrize("broken", ["", "4:memory\n", "x", "0::/a\n4:memory:/b\n"])
def test_limits_that_cannot_be_read_are_none(broken: str, tmp_path: Path) -> None:
    assert _least(_machine(tmp_path, broken, broken))[0] == 110
    assert memory._rooms(tmp_path / "nowhere") == []


@contextlib.contextmanager
def _real_group(limit: int) -> Iterator[Path]:
    """A memory control group of its own below this process's; the test ends with what the system said against it."""
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        first = next((path for _, kinds, path in own if "memory" in kinds.split(",")), None)
        second = next(path for _, kinds, path in own if not kinds)
        folder = Path("/sys/fs/cgroup") / (f"memory{first}" if first is not None else second.lstrip("/"))
        folder /= f"kernelk-test-{os.getpid()}"
        folder.mkdir()
    except (OSError, StopIteration) as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    try:
        try:
            (folder / ("memory.max" if first is None else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory control group can be limited here: {error}")
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.parametrize("engine", ["numpy", "spare"])
def test_in_a_real_control_group_nothing_is_killed(engine: str) -> None:
    code = BEGIN.format(engine=engine) + textwrap.dedent("""
    x, w = K.placeholder((None,)), K.variable(np.zeros(2))
    f = K.function([x], [K.sum(x)], updates=[K.update_add(w, [1, 1])])
    f([np.ones(3)])
    # Pages that nobody has written to cost nothing.
    big = np.zeros(200_000_000, "float32")
    print(said(lambda: f([big])))
    print(said(lambda: K.variable(big)))
    print(said(lambda: K.zeros((200_000_000,))))
    kept = K.zeros((40_000_000,), name="kept")
    print(said(lambda: K.set_value(kept, np.broadcast_to(np.float32(1), kept.shape))))
    print(said(lambda: [K.set_value(K.zeros((40_000_000,)), np.broadcast_to(np.float32(1), kept.shape))]))
    print(f([np.ones(3)])[0], K.get_value(w), kept.slots.view()[-1])
    """)
    with _real_group(500 * MB) as group:
        enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))\n"
        done = subprocess.run(
            [sys.executable, "-c", enter + code], env=environment(), capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 0, (done.returncode, done.stderr)
    feed, variable, zeros, first, second, last = done.stdout.splitlines()[-6:]
    for line in (feed, variable, zeros, second):
        assert is_refusal(line), line
        assert "the control group's limit of 524.3 MB leaves" in line
    assert (first, last) == ("", "3.0 [2. 2.] 1.0")
