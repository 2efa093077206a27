"""The baselines, an engine a file: each case of `native.MODELS` written by hand, as that engine's users write it.

Each module has `empty()`, and `mlp`, `lenet` and `lstm` of (weights, x, t), which return a call that ends with its
result in numpy, and `holder(array)`, which returns (put, get) of a variable. `gemm`, `conv` and `chain` of their
operands return calls of single ops; `sigmoid` and `softplus`, where the engine's own are right, calls of these. Python
3.6 syntax: they run beside Theano and CNTK.
"""

import importlib
import importlib.util
import os
import sys
import tempfile

import numpy as np


def island(name):
    """A module of kernelk's island, for a baseline that is to have its engine set up as kernelk's worker has it."""
    if "island" in sys.modules:
        return importlib.import_module("island." + name)
    folder = os.environ["KERNELK_ISLAND"]
    spec = importlib.util.spec_from_file_location(
        "island", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    sys.modules["island"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["island"])
    return importlib.import_module("island." + name)


def backend(engine):
    """kernelk's backend in this process, made before the engine is imported, as kernelk's worker makes it."""
    name = {"tensorflow": "TensorFlow", "cntk": "CNTK"}.get(engine, engine.capitalize())
    options = {"cache": os.environ["KERNELK_CACHE"], "scratch": tempfile.mkdtemp()}
    return getattr(island(engine + ".backend"), name + "Backend")(options)


def kernelks(backend, program, folder):
    """The `Timed` that kernelk's worker would make of `program`; the constants and variables are in `folder`."""
    arrays = [
        [np.load(os.path.join(folder, file)) for file in sorted(os.listdir(folder)) if file.startswith(kind)]
        for kind in ("constant", "variable")
    ]
    return island("serving.timed").Timed(backend, program, arrays[0], [], arrays[1], [], [])
