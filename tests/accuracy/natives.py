"""Measures the engines' own functions, on the inputs and the truths that K's are measured by."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

import kernelk
from kernelk.engines import registry

from . import ulps
from .bars import FLUSHING
from .formulas import Function
from .measure import Measured, Prepared, summed

SCRIPT = Path(__file__).with_name("native_functions.py")
# K's name, where the engine's own function of that name takes the same operands.
WITHOUT_LABEL = ("softmax", "logsumexp")


def comparable(one: Prepared) -> bool:
    """Whether an engine may have a function of its own for this one."""
    name, label = one.function.name, one.function.label
    if isinstance(one.function, Function):
        return name != "Tensor" and not label and one.function.points == "numbers"
    return name in WITHOUT_LABEL and not label


def measured(engine: str, batch: Sequence[Prepared]) -> dict[tuple[str, str, str], Measured]:
    """The engine's own functions measured, by (engine, title, dtype). Raises RuntimeError with the process's output."""
    found: dict[tuple[str, str, str], Measured] = {}
    chosen = [one for one in batch if comparable(one)]
    arrays, owners = {}, {}
    for one in chosen:
        for number, feeds in enumerate(one.feeds):
            key = f"{len(arrays)} {one.function.name}"
            arrays[key], owners[key] = feeds[0], (one, number)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(inputs, **arrays)
        ran = subprocess.run(
            [str(_python(engine)), "-W", "ignore", str(SCRIPT), engine, str(inputs), str(outputs)],
            env=_environment(engine),
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise RuntimeError(f"{engine}'s own functions: {ran.stderr[-2000:]}")
        with np.load(outputs) as made:
            results = {key: made[key] for key in made.files}
    parts: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for key, got in results.items():
        one, number = owners[key]
        part = one.rounds[number][0]
        if got.size == arrays[key].size or got.size >= len(part.taken):
            off = ulps.errors(np.ravel(got)[part.taken], part.right, engine in FLUSHING)
            parts[one.function.title, one.dtype].append((off, [""]))
    for (title, dtype), errors in parts.items():
        found[engine, title, dtype] = summed(engine, title, dtype, "value", errors)
    return found


def _python(engine: str) -> Path:
    descriptor = registry.engine(engine)
    return Path(sys.executable) if descriptor.in_kernel else registry.interpreter(descriptor)


def _environment(engine: str) -> dict[str, str]:
    environment = dict(os.environ)
    if _python(engine) != Path(sys.executable):
        for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"):
            environment.pop(name, None)
    return {
        **environment,
        "KERNELK_ISLAND": str(Path(kernelk.__file__).parent / "backends"),
        "KERNELK_CACHE": str(platformdirs.user_cache_path("kernelk") / engine),
    }
