"""Keeps JAX from flushing denormal numbers to zero on a CPU; the JAX backend calls it before JAX starts its engine."""

import ctypes
import platform
import struct
import sys
import tempfile

from ..elf_stub import build

_LIBRARIES = ("libjax_common.so", "xla_extension.so")
_FUNCTION = b"fegetround"
# Clears MXCSR's bits 15 (flush to zero) and 6 (denormals are zero), then answers as the C library does:
#   stmxcsr -4(%rsp); andl $~0x8040, -4(%rsp); ldmxcsr -4(%rsp)
#   fnstcw -4(%rsp); movzwl -4(%rsp), %eax; andl $0xc00, %eax; ret
_CODE = bytes.fromhex("0fae5c24fc816424fcbf7fffff0fae5424fcd97c24fc0fb74424fc25000c0000c3")
# Kinds of relocation of x86-64 that hold a function's address.
_GLOBAL_DATA, _JUMP_SLOT = 6, 7
_DYNAMIC = 2  # the kind of segment that holds the tags below
_STRINGS, _SYMBOLS, _RELA, _RELA_SIZE, _JUMPS, _JUMPS_SIZE = 5, 6, 7, 8, 23, 2

# What the engine calls must stay loaded.
_kept = []


def _loaded_at(names):
    """The address of the first library of one of these file names in this process; None if there is none."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(None, 5)
            # Its beginning: offset 0 in the file.
            if len(fields) == 6 and not int(fields[2], 16) and fields[5].strip().split("/")[-1] in names:
                return int(fields[0].split("-")[0], 16)
    return None


def _addresses(base, name):
    """Addresses of the words through which the library at `base` calls the function `name` of another library."""
    (headers,) = struct.unpack("<Q", ctypes.string_at(base + 32, 8))
    size, count = struct.unpack("<HH", ctypes.string_at(base + 54, 4))
    tags = {}
    for index in range(count):
        kind, _, _, at = struct.unpack("<IIQQ", ctypes.string_at(base + headers + index * size, 24))
        while kind == _DYNAMIC:
            tag, value = struct.unpack("<qQ", ctypes.string_at(base + at, 16))
            if not tag:
                break
            tags[tag] = value
            at += 16

    def address(tag):
        # The loader may have made an address of it in place.
        return tags[tag] if tags[tag] >= base else base + tags[tag]

    strings, symbols = address(_STRINGS), address(_SYMBOLS)
    for table, length in ((_JUMPS, _JUMPS_SIZE), (_RELA, _RELA_SIZE)):
        addresses = []
        for offset, info, _ in struct.iter_unpack("<QQq", ctypes.string_at(address(table), tags[length])):
            if info & 0xFFFFFFFF in (_JUMP_SLOT, _GLOBAL_DATA):
                (text,) = struct.unpack("<I", ctypes.string_at(symbols + 24 * (info >> 32), 4))
                if ctypes.string_at(strings + text, len(name) + 1) == name + b"\0":
                    addresses.append(base + offset)
        if addresses:
            # The second table, of all the library's data, is long; calls go through the first.
            return addresses
    return []


def keep_denormals(scratch):
    """Keeps denormals if JAX's library is loaded, and this is Linux on x86-64; else nothing happens.

    XLA makes a `ScopedFlushDenormal` around every run on a CPU and in all its threads; numpy, the definition, has
    no such thing, and XLA no option against it. A `ScopedSetRound` follows each time, whose first act is to call
    the C library's `fegetround`. In this one library's table of imported functions that name gets another
    function, which also clears what was set just before. `scratch` is a folder for it, gone again at return.
    """
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return
    try:
        base = _loaded_at(_LIBRARIES)
        addresses = [] if base is None else _addresses(base, _FUNCTION)
        if not addresses:
            return
        with tempfile.NamedTemporaryFile(suffix=".so", dir=scratch) as file:
            file.write(build("libkernelk_rounding.so", ["kernelk_fegetround"], [], _CODE))
            file.flush()
            library = ctypes.CDLL(file.name)
        _kept.append(library)
        function = ctypes.cast(library.kernelk_fegetround, ctypes.c_void_p).value
        if not _writable(addresses):
            return
        for address in addresses:
            ctypes.c_uint64.from_address(address).value = function
    except (KeyError, OSError):
        # Another build of the library, or a folder from which nothing may be run: the backend's facts say "flush".
        pass


def _writable(addresses):
    """Whether all these addresses may be written to: a library may be linked so that its tables may not."""
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            bounds, rights = line.split(None, 2)[:2]
            if "w" in rights:
                ranges.append([int(bound, 16) for bound in bounds.split("-")])
    return all(any(first <= address < last for first, last in ranges) for address in addresses)
