"""Reads npz files for `kernelk.load`: only the arrays that are asked for. A damaged file is an error of one line."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .. import files
from ..arrays import Array
from ..display.tables import plain, size
from ..engines import memory
from ..errors import FileError, KernelKError, one_line, printable

# The member of the file that says what the others are: JSON, as an array of one string.
ABOUT = "kernelk"
FORMAT = 3

_MOST_ABOUT = 64 << 20
# Those that numpy writes. Python's other decompressors return a block's whole content at once, however large.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Version 3 differs from 2 in the letters that names of fields may have, which no size depends on.
_HEAD_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


class Head(NamedTuple):
    """The header of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


class About(NamedTuple):
    """The header of a file: the random state, and for each key the kind and text that identify its variable."""

    random: dict[str, Any] | None
    variables: list[tuple[str, str, str]]


def named_reason(error: BaseException) -> str:
    """Returns an error's reason in a few words."""
    if isinstance(error, MemoryError):
        return "out of memory"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return plain(one_line(reason), 120) or type(error).__name__


class Archive:
    """An npz file, open while in its `with` block. All its methods raise FileError, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = printable(path, 300)
        self._heads: dict[str, Head] = {}

    def __enter__(self) -> Archive:
        with self._translated():
            self._file = files.open_regular(self._path)
            try:
                self._open(self._file)
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def keys(self) -> list[str]:
        """The keys of all arrays."""
        return list(self._members)

    def head(self, key: str) -> Head:
        """An array's shape and dtype; the array itself isn't read."""
        with self._translated():
            return self._head(key, self._members[key])

    def read(self, keys: Iterable[str]) -> dict[str, Array]:
        """Returns these arrays. If they don't fit into memory, only their headers are read."""
        keys = list(dict.fromkeys(keys))
        with self._translated():
            needed = sum(self._head(key, self._members[key]).nbytes for key in keys)
            free, limit = memory.room()
            if needed > free:
                raise FileError(
                    f"{self._shown} doesn't fit into memory: its arrays take {size(needed)}, and {limit} leaves "
                    f"{size(max(free, 0))}",
                    next_step="load some of them with kernelk.load(path, variables=[...]), or use a machine with more",
                )
            return {key: self._array(self._members[key]) for key in keys}

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        foreign = "load a file that kernelk.save or np.savez wrote"
        try:
            yield
        except KernelKError:
            raise
        except FileNotFoundError:
            raise FileError(
                f"{self._shown} doesn't exist", next_step="check the path, or run kernelk.save first"
            ) from None
        # The errors that zipfile, zlib, json and numpy raise for damaged bytes aren't documented.
        except Exception as error:
            raise FileError(
                f"{self._shown} can't be read: {named_reason(error)}; nothing was changed", next_step=foreign
            ) from error

    def _open(self, file: BinaryIO) -> None:
        if file.read(6) == b"\x93NUMPY":
            raise FileError(
                f"{self._shown} contains a single array and isn't an npz file",
                next_step="load a file that kernelk.save or np.savez wrote",
            )
        self._archive = zipfile.ZipFile(file)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            # By its full name: numpy reads "w.npy" as "w".
            key = info.filename.removesuffix(".npy")
            if key == info.filename:
                continue
            if key in self._members:
                raise ValueError(f"it contains '{plain(key)}' twice")
            if info.flag_bits & 1:
                raise ValueError(f"'{plain(key)}' in it is encrypted")
            if info.compress_type not in _COMPRESSIONS:
                raise ValueError(f"'{plain(key)}' in it is compressed in a way that numpy doesn't write")
            self._members[key] = info
        header = self._members.pop(ABOUT, None)
        if header is None:
            self.about = About(None, [(key, "name", key) for key in self._members])
        else:
            self.about = self._parsed_about(header)

    def _parsed_about(self, info: zipfile.ZipInfo) -> About:
        """Parses the header of a file that `save` wrote."""
        head = self._head(ABOUT, info)
        if head.dtype.kind != "U" or head.shape or head.nbytes > _MOST_ABOUT:
            raise ValueError(f"its list of variables, '{ABOUT}', is none")
        try:
            header = json.loads(self._array(info).item())
        except RecursionError:
            raise ValueError("its list of variables is nested too deeply") from None
        version = header.get("format") if isinstance(header, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError("its list of variables has no format")
        if version > FORMAT:
            raise FileError(
                f"{self._shown} was written by kernelk {plain(str(header.get('kernelk', 'of a later version')), 30)}",
                next_step="pip install --upgrade kernelk",
            )
        state = header.get("random")
        if not isinstance(state, dict) or not isinstance(header.get("variables"), list):
            raise ValueError("its list of variables is damaged")
        random: dict[str, Any] = {name: state.get(name) for name in ("entropy", "count", "fixed", "counter")}
        # In the first format all draws shared one counter.
        counts = state.get("counts") if version > 1 else {}
        # In the second one no draw took its seed from np.random.
        taken = state.get("taken") if version > 2 else {}
        # The counters must have room to grow; a seed has 64 bits.
        ends = {"entropy": math.inf, "count": 2**62, "fixed": 2**64, "counter": 2**62}
        whole = all(_is_below(ends[name], number) for name, number in random.items())
        if not (whole and _are_counts(counts) and _are_counts(taken)):
            raise ValueError("its random state is damaged")
        random["counts"], random["taken"] = counts, taken
        listed = header["variables"]
        if not all(type(entry) is list and [type(word) for word in entry] == [str] * 3 for entry in listed):
            raise ValueError("its list of variables is damaged")
        variables = [(key, kind, text) for key, kind, text in listed]
        if sorted(key for key, _, _ in variables) != sorted(self._members):
            raise ValueError("the arrays in it aren't those that it lists")
        return About(random, variables)

    def _head(self, key: str, info: zipfile.ZipInfo) -> Head:
        if key not in self._heads:
            with self._archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                if version not in _HEAD_READERS:
                    raise ValueError(f"'{plain(key)}' in it isn't an array that numpy writes")
                try:
                    shape, _, dtype = _HEAD_READERS[version](member)
                except Exception as error:
                    # numpy's own words show what its parser saw, such as the addresses of objects.
                    raise ValueError(f"'{plain(key)}' in it isn't an array that numpy writes") from error
                begin = member.tell()
            if dtype.hasobject:
                raise ValueError("it contains Python objects")
            nbytes = math.prod(shape) * dtype.itemsize
            # So that no memory is allocated for a size that the file only claims.
            if min(shape, default=0) < 0 or begin + nbytes != info.file_size:
                raise ValueError(f"'{plain(key)}' in it isn't as long as its shape and dtype say")
            self._heads[key] = Head(shape, dtype, nbytes)
        return self._heads[key]

    def _array(self, info: zipfile.ZipInfo) -> Array:
        with self._archive.open(info) as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
            member.read(1)  # reaches the end, where the checksum is compared
            return array


def _is_below(end: float, value: Any) -> bool:
    return type(value) is int and 0 <= value < end


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number.isascii() and number.isdigit() and len(number) < 20 and _is_below(2**62, count)
        for number, count in value.items()
    )
