"""Writes the students' versions of the course's units into `student/`: without solutions and results.

In the solved notebooks here, what is between `### BEGIN SOLUTION` and `### END SOLUTION` is the solution of an
exercise, and cells carry nbgrader's metadata: nbgrader can release and grade them as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

COURSE = Path(__file__).parent
STUDENT = COURSE / "student"
_SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.DOTALL | re.MULTILINE)


def units() -> list[Path]:
    """The solved notebooks, in order."""
    return sorted(COURSE.glob("[0-9]*.ipynb"))


def without_solutions(path: Path) -> str:
    """A solved notebook as students get it, as the text of a file."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source, count = _SOLUTION.subn(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", cell.source)
            if not count:
                raise ValueError(f"{path.name}: the cell {cell.id} is to be solved, and marks no solution")
    return str(nbformat.writes(notebook)) + "\n"


def main() -> None:
    """Writes all of them."""
    STUDENT.mkdir(exist_ok=True)
    for path in units():
        (STUDENT / path.name).write_text(without_solutions(path), encoding="utf-8")


if __name__ == "__main__":
    main()
