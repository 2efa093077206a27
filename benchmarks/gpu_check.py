"""One command for a machine with a GPU: a swap, a profile and a comparison on it, written to GPU_RESULTS.md."""

from __future__ import annotations

import itertools
import os
import sys
from datetime import date

os.environ.setdefault("KERNELK_QUIET", "1")

import numpy as np
from measure import HERE
from models import model

import kernelk
from kernelk import backend as K
from kernelk.errors import KernelKError
from kernelk.session.current import current

ENGINES = ["torch", "jax"]


def gpus() -> dict[str, str]:
    """The first GPU of each engine that lists one; a line says what the others list."""
    found = {}
    for engine in ENGINES:
        try:
            kernelk.set_backend(engine)
        except KernelKError as error:
            print(f"{engine}: {error}")
            continue
        devices = current().hosts[engine].facts["devices"]
        print(f"{engine} lists {', '.join(devices)}")
        other = [device for device in devices if not device.startswith("cpu")]
        if other:
            found[engine] = other[0]
    return found


def main() -> int:
    """Runs the check; 0 where it has passed, or where there is no GPU."""
    found = gpus()
    if not found:
        print("no GPU: nothing was checked, and GPU_RESULTS.md is as it was")
        return 0
    parts = ["# On a GPU\n", f"Made by `python benchmarks/gpu_check.py`, {date.today()}.\n"]
    kernelk.set_backend("numpy")
    step = model("lenet32")
    losses = [float(np.asarray(step()).reshape(-1)[0])]
    square = K.variable(np.random.default_rng(0).standard_normal((2048, 2048)))
    for engine, device in found.items():
        report = kernelk.set_backend(engine, device=device)
        losses.append(float(np.asarray(step()).reshape(-1)[0]))
        parts += [
            f"## {engine} on {device}\n",
            f"```\n{report}\n```\n",
            f"```\n{kernelk.profile(step, budget=10)}\n```\n",
        ]
    result = kernelk.compare(K.dot(square, square), *found, "numpy", budget=20)
    parts += ["## A matrix product of 2048, with numpy on the processor\n", f"```\n{result}\n```\n"]
    (HERE / "GPU_RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))
    going_on = all(a > b for a, b in itertools.pairwise(losses))
    print(f"the loss goes on across the swaps: {losses}" if going_on else f"the loss does not go on: {losses}")
    return 0 if going_on and result.equal else 1


if __name__ == "__main__":
    sys.exit(main())
