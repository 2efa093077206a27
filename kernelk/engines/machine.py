"""Describes the machine that this process runs on."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def nvml() -> Any:
    """NVIDIA's library that knows its devices, None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def gpus() -> list[str]:
    """The names of the GPUs that NVIDIA's driver shows to this process; a queue or a container may keep some back."""
    library, count, names = nvml(), ctypes.c_uint(), []
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for index in range(count.value):
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        if not library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
            library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
            names.append(name.value.decode(errors="replace") or "unnamed")
    return names
