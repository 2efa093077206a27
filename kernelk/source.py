"""Locates the line that wrote a node: the notebook's cell, the line, and its text; resolved only when needed."""

from __future__ import annotations

import contextlib
import itertools
import linecache
import os
import re
import sys
from types import CodeType, FrameType
from typing import NamedTuple

# With a separator at the end, since a file next to the package may begin with its name.
PACKAGE = os.path.join(os.path.dirname(__file__), "")
# Folders of libraries that call kernelk in their user's name, such as Keras 2's.
LIBRARIES: list[str] = []
# Modules whose lines are never the user's own, however they call kernelk.
FRAMEWORKS = frozenset({"jax", "numpy", "scipy", "tensorflow", "torch"})


class _Cell:
    """The number of the cell that runs now; 0 outside a notebook.

    The process's and no session's: IPython has one shell, which runs one cell at a time, and errors are shown by it.
    """

    number = 0

    def __init__(self) -> None:
        self._files: dict[str, bool] = {}

    def of(self, code: CodeType) -> int:
        """The number for code that runs now: 0 if it isn't the cell's own, but that of a file."""
        if not self.number:
            return 0
        file = code.co_filename
        known = self._files.get(file)
        if known is None:
            known = self._files[file] = _is_file(file)
        return 0 if known else self.number


def _is_file(name: str) -> bool:
    # IPython enters its cells there, without the time at which a file was changed; a debugger may write them to files.
    entry = linecache.cache.get(name)
    return not (entry is not None and len(entry) == 4 and entry[1] is None) and os.path.isfile(name)


CELL = _Cell()


def place(file: str, cell: int) -> str:
    """ "cell 3", "cell Hbol" in marimo, whose cells have no numbers, or the file's name."""
    name = os.path.basename(file)
    if cell:
        return f"cell {cell}"
    if marimos := re.fullmatch(r"__marimo__cell_(\w+?)_\.py", name):
        return f"cell {marimos[1]}"
    # Without `%load_ext kernelk` nobody counts the cells but IPython, for its own tracebacks.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    known = getattr(getattr(shell, "compile", None), "format_code_name", lambda name: None)(file)
    if known and (number := re.fullmatch(r"In\s*\[(\d+)\]", known[1])):
        return f"cell {number[1]}"
    # xeus-python's raw mode keeps the numbers to itself.
    return "a cell" if re.fullmatch(r"\d+\.py", name) and not os.path.isfile(file) else name


class Source(NamedTuple):
    """The source of a node: the calling code, its instruction offset, and the notebook's cell number (0: none)."""

    code: CodeType
    instruction: int
    cell: int

    @property
    def line(self) -> int:
        """The line number in the cell or file."""
        positions = self.code.co_positions()
        entry = next(itertools.islice(positions, self.instruction // 2, None), None)
        return (entry and entry[0]) or self.code.co_firstlineno

    @property
    def text(self) -> str:
        """The source line itself, stripped; empty where it isn't known."""
        return linecache.getline(self.code.co_filename, self.line).strip()

    def __str__(self) -> str:
        text = self.text
        return self.location + (f": {text}" if text else "")

    @property
    def location(self) -> str:
        """ "cell 3, line 2", or the file's name in place of the cell."""
        return f"{place(self.code.co_filename, self.cell)}, line {self.line}"


class Lines:
    """The line numbers of many sources: each code object, which may hold ten thousand of them, is read once."""

    def __init__(self) -> None:
        # By identity: the hash of a code object is that of all its constants. It is kept, so that no other one takes
        # its place in memory.
        self._known: dict[int, tuple[CodeType, list[int]]] = {}

    def line(self, source: Source) -> int:
        """The same as `source.line`."""
        code = source.code
        known = self._known.get(id(code))
        if known is None:
            lines = [entry[0] or code.co_firstlineno for entry in code.co_positions()]
            known = self._known[id(code)] = (code, lines)
        lines = known[1]
        index = source.instruction // 2
        return lines[index] if index < len(lines) else code.co_firstlineno


def caller() -> Source:
    """The nearest calling frame outside kernelk; resolved to a line only when somebody asks."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return Source(frame.f_code, frame.f_lasti, CELL.of(frame.f_code))


def user() -> Source:
    """The nearest calling frame outside kernelk and the libraries that call it."""
    frame, passed = sys._getframe(2), (PACKAGE, *LIBRARIES)
    while frame.f_code.co_filename.startswith(passed) and frame.f_back is not None:
        frame = frame.f_back
    return Source(frame.f_code, frame.f_lasti, CELL.of(frame.f_code))


def is_users(frame: FrameType) -> bool:
    """Whether a frame is of code that is neither kernelk's nor of what calls it in the user's name."""
    file, root = frame.f_code.co_filename, str(frame.f_globals.get("__name__")).partition(".")[0]
    passed = file.startswith((PACKAGE, *LIBRARIES)) or root in FRAMEWORKS or file == contextlib.__file__
    # IPython 7 calls its magics through this library, whose version 4 makes code for that.
    passed = passed or root == "decorator" or file.startswith("<decorator-gen-")
    return not passed and "IPython" not in file
