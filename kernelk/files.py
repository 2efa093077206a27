"""Opens and replaces the files that users name: only regular files, without waiting, completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "it is a FIFO"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)


# The end of a file's name until it is complete.
_UNFINISHED = ".kernelk-unfinished"


def require_regular(mode: int) -> None:
    """Raises OSError for a folder, a FIFO, a socket or a device, by the mode that `stat` gives."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    for is_kind, words in _KINDS:
        if is_kind(mode):
            raise OSError(errno.EINVAL, words)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Turns the ValueError for an impossible name, with a NUL or half a character, into an OSError."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name") from error


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether the path exists; False for an impossible name, or if it can't be checked."""
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError for anything else, and never blocks."""
    with _named():
        # Before it is opened, which does something to a device; and again after that, since names can change hands.
        require_regular(os.stat(path).st_mode)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        require_regular(os.fstat(handle).st_mode)
        return open(handle, "rb")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise


def read_small(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of `most` bytes at most. Raises OSError."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return content


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file next to `path` that replaces it at the end of the block; after an error nothing has changed.

    It has the old file's permissions, or those of a new one. Raises OSError.
    """
    with _named():
        target = Path(os.path.realpath(path))  # follow links, so that they still lead to the file
        try:
            mode = target.stat().st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            require_regular(mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        prefix = f".{target.name[:40]}-"
        _remove_abandoned(target.parent, prefix)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=_UNFINISHED, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _hold(handle)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode & 0o777)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _keep_name(target.parent)


def _hold(handle: int) -> bool:
    """Locks an open file, without waiting; False if another process holds it, or if locks aren't supported here."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Removes what processes that were killed have left: unfinished files that no process holds any more."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefix) and entry.name.endswith(_UNFINISHED):
                # One that was just made and isn't held yet has nothing in it.
                if not entry.stat(follow_symlinks=False).st_size:
                    continue
                handle = os.open(entry.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _hold(handle):
                        os.unlink(entry.path)
                finally:
                    os.close(handle)


def _keep_name(folder: Path) -> None:
    """Makes the new name survive a power cut, if the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
