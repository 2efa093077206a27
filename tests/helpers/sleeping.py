"""A third party's engine that tests and benchmarks start on a cluster: numpy, whose `exp` sleeps a millisecond for each
element, so that the processors of one machine don't decide how many of them work at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kernelk.engines import registry
from kernelk.engines.descriptors import Engine

ENGINE = Engine(
    "sleeping",
    "Sleeping",
    "helpers.sleeping_backend",
    "SleepingBackend",
    imports="helpers",
    install="pip install kernelk-sleeping",
)


def package(folder: Path) -> None:
    """Leaves in a folder what pip leaves of a package: its metadata and its entry point."""
    info = folder / "kernelk_sleeping-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernelk-sleeping\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[kernelk.backends]\nsleeping = helpers.sleeping:ENGINE\n")


def conceal(hidden: bool) -> None:
    """Called in a process of a cluster: the engine isn't installed there, or is again."""
    global ENGINE
    ENGINE = replace(ENGINE, imports="no_such_package" if hidden else "helpers")
    registry._descriptor.cache_clear()


def settle(folders: Sequence[str] = (), **variables: str | None) -> None:
    """Called in a process of a cluster: it finds packages there, and has these environment variables, or hasn't."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
