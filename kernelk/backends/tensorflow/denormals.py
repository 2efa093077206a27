"""Keeps TensorFlow from flushing denormal numbers to zero; the TensorFlow backend calls it before its import."""

import ctypes
import platform
import sys
import tempfile

from ..elf_stub import build

_FUNCTIONS = ["_ZN3tsl4port19ScopedFlushDenormalC1Ev", "_ZN3tsl4port19ScopedFlushDenormalC2Ev"]
# *argument = 0, of 16 bits; return
_CODE = {
    "x86_64": b"\x66\xc7\x07\x00\x00\xc3",  # movw $0, (%rdi); ret
    "aarch64": b"\x1f\x00\x00\x79\xc0\x03\x5f\xd6",  # strh wzr, [x0]; ret
}


def keep_denormals(scratch):
    """Keeps denormals if TensorFlow is not loaded yet and this is Linux; else nothing happens.

    Every thread of TensorFlow's makes a `tsl::port::ScopedFlushDenormal`; numpy, the definition, has no such
    thing, and TensorFlow no option against it. A library loaded earlier comes first in the dynamic linker's
    search, so its own constructor, which notes "nothing to restore" and sets nothing, is taken instead.
    `scratch` is a folder for the library, which is gone again when this returns.
    """
    if "tensorflow" in sys.modules or not sys.platform.startswith("linux"):
        return
    try:
        machine = platform.machine()
        content = build("libkernelk_denormals.so", _FUNCTIONS, [], _CODE[machine], machine)
        with tempfile.NamedTemporaryFile(suffix=".so", dir=scratch) as file:
            file.write(content)
            file.flush()
            ctypes.CDLL(file.name, mode=ctypes.RTLD_GLOBAL)
    except (KeyError, OSError):
        # Another processor, or a folder from which nothing may be run: the backend's facts say "flush".
        pass
