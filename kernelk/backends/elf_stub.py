"""Writes small shared libraries byte by byte: stand-ins for symbols that an engine links to but needn't really call.

No compiler, no root, no LD_LIBRARY_PATH. The TensorFlow backend uses it in its worker, and the install of CNTK's
environment does in the kernel.
"""

import struct

MACHINES = {"x86_64": 62, "aarch64": 183}
OBJECT_SIZE = 64  # zero bytes behind each data name
PAGE = 0x10000  # the largest page of these machines


def _elf_hash(name):
    """The System V hash, by which the loader looks a name up."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _padded(content, alignment=16):
    return content + bytes(-len(content) % alignment)


def build(soname, functions, objects, code, machine="x86_64"):
    """An ELF64 shared object: every function runs the machine `code`, every object is 64 zero bytes.

    `machine` is one of MACHINES. Raises ValueError for names that can't be.
    """
    function_names = [name.encode() for name in functions]
    object_names = [name.encode() for name in objects]
    names = function_names + object_names
    for name in [soname.encode(), *names]:
        if not name or b"\0" in name:
            raise ValueError("%r can't name a symbol or library: it is empty or holds a zero byte" % (name,))
    if len(set(names)) != len(names):
        raise ValueError("a name is listed twice: each must be one function or one object")

    # The string table begins with a zero byte, so that offset 0 is the empty name.
    strings, offsets = bytearray(b"\0"), []
    for name in [soname.encode(), *names]:
        offsets.append(len(strings))
        strings += name + b"\0"

    # DT_HASH alone: every glibc and musl still reads it, and DT_GNU_HASH would force an order of the symbols.
    # One chain for every bucket would do; as many buckets as symbols keep look-ups short.
    count = len(names) + 1  # symbol 0 is the undefined one, by definition
    buckets, chain = [0] * max(1, len(names)), [0] * count
    for index, name in enumerate(names, start=1):
        bucket = _elf_hash(name) % len(buckets)
        chain[index], buckets[bucket] = buckets[bucket], index
    hash_table = struct.pack("<%dI" % (2 + len(buckets) + count), len(buckets), count, *buckets, *chain)

    # First segment, read and execute: headers, hash, symbols, strings, code. Second, read and write, on its
    # own page: the dynamic section and, behind the file's end, zeros for the data objects. No section
    # headers: the loader reads program headers only.
    hash_at = 64 + 4 * 56
    symbols_at = hash_at + len(_padded(hash_table))
    strings_at = symbols_at + len(_padded(bytes(24 * count)))
    code_at = strings_at + len(_padded(bytes(strings)))
    code_end = code_at + len(code)
    dynamic_at = -(-code_end // PAGE) * PAGE
    dynamic = b"".join(
        struct.pack("<qQ", tag, value)
        for tag, value in [
            (14, offsets[0]),  # DT_SONAME: by it a library loaded by full path satisfies a later DT_NEEDED
            (4, hash_at),  # DT_HASH
            (5, strings_at),  # DT_STRTAB
            (6, symbols_at),  # DT_SYMTAB
            (10, len(strings)),  # DT_STRSZ
            (11, 24),  # DT_SYMENT
            (0, 0),  # DT_NULL
        ]
    )
    objects_at = dynamic_at + len(dynamic)
    objects_at += -objects_at % OBJECT_SIZE

    symbols = bytearray(24)
    for index, offset in enumerate(offsets[1:]):
        is_function = index < len(function_names)
        address = code_at if is_function else objects_at + OBJECT_SIZE * (index - len(function_names))
        size = len(code) if is_function else OBJECT_SIZE
        info = 0x10 | (2 if is_function else 1)  # STB_GLOBAL with STT_FUNC or STT_OBJECT
        # Section 1 stands for "defined here": 0 would mean undefined, SHN_ABS an address that doesn't move.
        symbols += struct.pack("<IBBHQQ", offset, info, 0, 1, address, size)

    read, write, execute = 4, 2, 1
    data_size = objects_at + OBJECT_SIZE * len(object_names) - dynamic_at
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, at, at, at, in_file, in_memory, alignment)
        for kind, flags, at, in_file, in_memory, alignment in [
            (1, read | execute, 0, code_end, code_end, PAGE),  # PT_LOAD
            (1, read | write, dynamic_at, len(dynamic), data_size, PAGE),  # PT_LOAD
            (2, read | write, dynamic_at, len(dynamic), len(dynamic), 8),  # PT_DYNAMIC
            # PT_GNU_STACK without execute: where it is missing the loader makes the whole process's stack
            # executable, which hardened kernels refuse.
            (0x6474E551, read | write, 0, 0, 0, 16),
        ]
    )
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1, System V
    # ET_DYN, the machine, version 1; no entry point; segment headers at 64; four of 56 bytes; no sections.
    header = identity + struct.pack("<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0)
    first = header + segments + b"".join(map(_padded, (hash_table, bytes(symbols), bytes(strings)))) + code
    return first.ljust(dynamic_at, b"\0") + dynamic
