"""Writes the next commands that messages name, in the forms for a shell and for a notebook."""

from __future__ import annotations

import re


def in_shell_and_notebook(shell: str, notebook: str = "") -> str:
    """Both forms of a command, for an error message. pip has a magic of the same name, other programs don't."""
    notebook = notebook or (f"%{shell}" if shell.startswith("pip ") else "")
    return f"`{shell}` (in a notebook: `{notebook}`)" if notebook else f"`{shell}`"


# Debian's packages of the system's libraries that the engines ask for.
_PACKAGES = {
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libgomp.so.1": "libgomp1",
    "libz.so.1": "zlib1g",
}


def missing_package(words: str) -> str:
    """The command that installs the system library missing according to an error; "" if the error names none."""
    match = re.search(r"(lib[\w.+-]+?\.so[\w.]*): cannot open shared object file", words)
    if match is None:
        return ""
    if match[1] in _PACKAGES:
        return f"`apt install {_PACKAGES[match[1]]}`, or your system's package with {match[1]}"
    return f"install your system's package with {match[1]}"
