"""Before a session touches memory: what doesn't fit is refused here, with the figures.

To map shared memory reserves nothing: the process would be killed, or hit by SIGBUS, once it writes there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..display.tables import size
from ..errors import OutOfMemoryError, one_line
from ..twins import as_usable

# Smaller amounts are taken without asking: the figures take a tenth of a millisecond to read.
ASKED_FROM = 16 << 20

# So much is left to everything else.
_RESERVE = 16 << 20


def _next() -> str:
    stop = as_usable("%kbackend --stop NAME")
    return f"free memory (del, {stop}), or use smaller batches, a smaller dtype or a larger machine"


class Holder(Protocol):
    """What holds memory that it can do without."""

    def give_back(self) -> None:
        """Gives it back to the system, if it isn't in the middle of something."""


holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def room() -> tuple[int, str]:
    """The bytes that can be had here, and what limits them."""
    return min(_rooms(), default=(sys.maxsize, ""))


def require(nbytes: int, what: str) -> None:
    """Raises OutOfMemoryError where so much doesn't fit. `what` begins the message: "set_value"."""
    if nbytes < ASKED_FROM:
        return
    free, limit = room()
    if nbytes > free:
        for holder in list(holders):
            holder.give_back()
        free, limit = room()
    if nbytes > free:
        raise OutOfMemoryError(
            f"{what}: {size(nbytes)} are needed, and {limit} leaves {size(max(free, 0))}; nothing was changed",
            next_step=_next(),
        )


def refused(nbytes: int, what: str, error: BaseException) -> OutOfMemoryError:
    """The error where the system wouldn't give that memory."""
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return OutOfMemoryError(
        f"{what}: {size(nbytes)} of memory can't be allocated ({reason}); nothing was changed", next_step=_next()
    )


def shown(what: str, error: MemoryError) -> OutOfMemoryError:
    """Python's and numpy's own error as one of kernelk's, which it is already where kernelk has raised it."""
    if isinstance(error, OutOfMemoryError):
        return error
    reason = one_line(error) or "the process has no memory left"
    return OutOfMemoryError(f"{what}: {reason}; nothing was changed", next_step=_next())


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns a MemoryError of Python's or numpy's inside the block into kernelk's."""
    try:
        yield
    except MemoryError as error:
        raise shown(what, error) from None


def _rooms(proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Returns the bytes that each limit leaves, with the limit's name. Limits that can't be read are left out."""
    rooms: list[tuple[int, str]] = []
    machine = _fields(proc / "meminfo", 1024)
    swap = machine.get("SwapFree:", 0)
    if "MemAvailable:" in machine:
        rooms.append((machine["MemAvailable:"] + swap - _RESERVE, "the machine's memory"))
    for folder, second in _control_groups(proc):
        rooms += _second(folder, swap) if second else _first(folder, swap)
    rooms += _address_space(proc)
    if not hasattr(os, "memfd_create") and hasattr(os, "statvfs"):
        # Segments are unlinked files there.
        with contextlib.suppress(OSError):
            disk = os.statvfs(tempfile.gettempdir())
            rooms.append((disk.f_bavail * disk.f_frsize, f"the disk of {tempfile.gettempdir()}"))
    return rooms


def _address_space(proc: Path) -> list[tuple[int, str]]:
    # RLIMIT_DATA isn't considered: it doesn't count shared memory.
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return []
        mapped = int((proc / "self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return []
    return [(limit - mapped, f"the process's limit of {size(limit)} (ulimit -v)")]


def _control_groups(proc: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's memory control group and of those above it, and whether they are version 2's."""
    try:
        paths = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        # Numbers, root, place and options; after a dash the kind, the source, and the file system's own options.
        if "-" not in fields or len(fields) < fields.index("-") + 4:
            continue
        root, mount_point, kind, own = fields[3], fields[4], fields[fields.index("-") + 1], fields[-1].split(",")
        second = kind == "cgroup2"
        if not second and not (kind == "cgroup" and "memory" in own):
            continue
        for entry in paths:
            if len(entry) < 3 or (entry[1] != "" if second else "memory" not in entry[1].split(",")):
                continue
            try:
                below = PurePosixPath(entry[2]).relative_to(root)
            except ValueError:
                # A container sees its own group as the root.
                below = PurePosixPath()
            folder = Path(mount_point) / below
            yield folder, second
            yield from ((parent, second) for parent in folder.parents if parent.is_relative_to(mount_point))


def _second(folder: Path, swap: int) -> list[tuple[int, str]]:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return []
    stat = _fields(folder / "memory.stat")
    cached = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    most, swapped = _number(folder / "memory.swap.max"), _number(folder / "memory.swap.current")
    if most is not None:
        swap = min(swap, max(most - (swapped or 0), 0))
    return [(limit - used + cached + swap - _RESERVE, _group(limit))]


def _first(folder: Path, swap: int) -> list[tuple[int, str]]:
    stat = _fields(folder / "memory.stat")
    cached = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    rooms = []
    for name, more in (("memory", swap), ("memory.memsw", 0)):
        limit, used = _number(folder / f"{name}.limit_in_bytes"), _number(folder / f"{name}.usage_in_bytes")
        # Without a limit it is the largest number of pages.
        if limit is not None and used is not None and limit < 1 << 62:
            rooms.append((limit - used + cached + more - _RESERVE, _group(limit)))
    return rooms


def _group(limit: int) -> str:
    return f"the control group's limit of {size(limit)}"


def _number(file: Path) -> int | None:
    """The number in a file; None for "max" and for what can't be read."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path, unit: int = 1) -> dict[str, int]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
        return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1}
    except (OSError, ValueError):
        return {}
