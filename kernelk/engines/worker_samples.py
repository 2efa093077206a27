"""Looks at a worker from outside: the processes of its group, the devices, the lock of Theano's compile cache."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from pathlib import Path

from .machine import nvml
from .stuck import Sample

_TICKS = float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0


def sample(group: int, device: str | None, cache_folder: Path | None) -> Sample | None:
    """The worker whose process group this is; None where the system doesn't show processes.

    `device`: the engine's, None until that is known. `cache_folder`: where it compiles under a lock, if it does.
    """
    cpu: dict[int, float] = {}
    parents: dict[int, int] = {}
    states: dict[int, set[str]] = {}
    for pid in _processes():
        fields = _stat(f"/proc/{pid}/stat")
        if fields and int(fields[2]) == group:
            cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            parents[pid] = int(fields[1])
            states[pid] = _thread_states(pid)
    if group not in cpu:
        return None
    for child in [pid for pid in states if _is_stopped(states[pid])]:
        # What starts a program by vfork waits uninterruptibly, as for a disk, until that program has begun.
        if "D" in states.get(parents[child], ()):
            states[parents[child]] = states[parents[child]] - {"D"} | {"T"}
    stopped = _is_stopped(states[group])
    runs = any(states_of & {"R", "D"} for states_of in states.values())
    owner = lock_owner(cache_folder, set(cpu)) if cache_folder is not None else ""
    return Sample(time.monotonic(), cpu, stopped, runs, device_works(device), owner)


def _processes() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _stat(path: str) -> list[str]:
    """The fields after the name in a process's or thread's `stat`: state, parent, group ...; empty if it is gone."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
    return []


def _thread_states(pid: int) -> set[str]:
    folder = f"/proc/{pid}/task"
    with contextlib.suppress(OSError):
        return {fields[0] for name in os.listdir(folder) if (fields := _stat(f"{folder}/{name}/stat"))}
    return set()


def _is_stopped(states: set[str]) -> bool:
    return bool(states) and states <= {"T", "t"}


def lock_owner(folder: Path, group: set[int]) -> str:
    """Names the other process that holds a lock of Theano's compilation cache; "" if none does."""
    for lock in folder.glob("*/*/lock_dir/lock"):
        try:
            number, _, host = lock.read_text(encoding="utf-8", errors="replace").split()[0].split("_", 2)
            pid = int(number)
        except (OSError, ValueError, IndexError):
            continue
        if host != socket.gethostname().replace("_", "-"):
            return f"process {pid} on {host}"
        if pid not in group and os.path.exists(f"/proc/{pid}"):
            return f"process {pid}"
    return ""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def device_works(device: str | None) -> bool:
    """Whether a device computes, anybody's work counted; one that can't be read counts as if it did."""
    if device is not None and device.startswith("cpu"):
        return False
    library = nvml()
    if library is None:
        # Before it is known where the engine will run, a machine without the library has no device either.
        return device is not None
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return True
    for index in range(count.value):
        handle, use = ctypes.c_void_p(), _Utilization()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
            return True
        if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(use)) or use.gpu:
            return True
    return False
