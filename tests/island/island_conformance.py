"""Compares a backend, op by op, with the numpy backend: `python island_conformance.py ISLAND_FOLDER MODULE CLASS`.

Runs under any interpreter that a worker may have, with the island alone (Python 3.6 syntax, numpy only). Prints one
line for each kind of difference and `N passed, N failed`. ISLAND_OPTIONS holds the backend's options as JSON;
ISLAND_SAMPLE=N takes every Nth case, for an engine that takes seconds to compile each, ISLAND_OPS=NAME,NAME the cases
of these ops alone; with both, every Nth of theirs.
"""

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from island_cases import cases  # noqa: E402


def island(folder):
    spec = importlib.util.spec_from_file_location(
        "island", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["island"] = module
    spec.loader.exec_module(module)


def ones(shape):
    return [1 if n == 1 else None for n in shape]


def encode(op, attrs, operands, dtype, shape, specialises, as_slots):
    mask = {"ones": ones, "all": list}[specialises]
    leaves = [[str(a.dtype), list(a.shape) if as_slots else mask(a.shape)] for a in operands]
    program = {
        "inputs": [] if as_slots else leaves,
        "slots": leaves if as_slots else [],
        "draws": [],
        "constants": [],
        "instructions": [[op, list(range(len(operands))), attrs, dtype, mask(shape)]],
        "outputs": [len(operands)],
        "updates": [],
    }
    return json.loads(json.dumps(program))


def agree(expected, got, dtype, exact, near=None):
    """What is wrong with a result, or None. `near`: the op whose results lie near 0 where their operands don't."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return "%s%s instead of %s%s" % (got.dtype, got.shape, expected.dtype, expected.shape)
    if exact or expected.dtype.kind != "f":
        same = (
            np.array_equal(expected, got)
            or np.array_equal(np.isnan(expected), np.isnan(got))
            and np.array_equal(expected[~np.isnan(expected)], got[~np.isnan(got)])
            if expected.dtype.kind == "f"
            else np.array_equal(expected, got)
        )
    else:
        tolerance = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-12}[str(expected.dtype)]
        same = np.allclose(
            expected,
            got,
            rtol=tolerance,
            # The logarithm of a sum of nearly 1 is as far off as the sum itself, if all of it is added up.
            atol=tolerance if near == "log_softmax" else 1e-6 if dtype == "float16" else tolerance * 1e-3,
            equal_nan=True,
        )
    return None if same else "values differ: expected %s got %s" % (expected.ravel()[:8], got.ravel()[:8])


ROUNDED = {
    "exp",
    "log",
    "tanh",
    "sqrt",
    "power",
    "divide",
    "sum",
    "mean",
    "softmax",
    "log_softmax",
    "sigmoid",
    "softplus",
    "elu",
    "softsign",
    "log1p",
    "expm1",
    "sigmoid_slope",
    "tanh_slope",
    "matmul",
    "mod",
    "floor_divide",
    "sin",
    "cos",
    "prod",
    "cumsum",
    "cumprod",
    "scatter_add",
    "batch_matmul",
    "avg_pool",
    "avg_pool_grad",
}
ROUNDED.update(
    kind + part
    for kind in ("", "dilated_", "depthwise_", "dilated_depthwise_")
    for part in ("conv", "conv_input", "conv_kernel")
)


def reference(numpy_backend, ops, op, attrs, operands, dtype):
    """The definition's own value: the primitive, or the composite written out in numpy float64."""
    if op in ops:
        instruction = type("I", (), {"dtype": dtype, "op": op})
        with np.errstate(all="ignore"):
            return np.asarray(ops[op](instruction, *operands, **attrs))
    x = operands[0].astype("float64")
    with np.errstate(all="ignore"):
        if op == "mean":
            y = x.mean(tuple(attrs["axes"]), keepdims=attrs["keepdims"])
        elif op == "relu":
            return np.maximum(operands[0], np.zeros((), dtype))
        elif op == "relu_grad":
            return np.where(operands[0] > 0, operands[1], np.zeros((), dtype))
        elif op == "sigmoid":
            y = 1 / (1 + np.exp(-x))
        else:
            shifted = x - x.max(attrs["axis"], keepdims=True)
            y = shifted - np.log(np.exp(shifted).sum(attrs["axis"], keepdims=True))
            y = np.exp(y) if op == "softmax" else y
    return np.asarray(y).astype(dtype)


def main(folder, module, name):
    island(folder)
    base = importlib.import_module("island.base")
    lowering = importlib.import_module("island.lowering")
    numpy_backend = importlib.import_module("island.numpy.backend")
    scratch = tempfile.mkdtemp()
    options = dict(json.loads(os.environ.get("ISLAND_OPTIONS", "{}")), scratch=scratch)
    options.setdefault("cache", scratch)
    backend = getattr(importlib.import_module("island." + module + ".backend"), name)(options)
    print(json.dumps(backend.facts(), sort_keys=True))
    passed, failed, seen = 0, 0, {}
    every = int(os.environ.get("ISLAND_SAMPLE", "1"))
    chosen = [name for name in os.environ.get("ISLAND_OPS", "").split(",") if name]
    selected = (case for case in cases() if not chosen or case[1] in chosen)
    for number, (label, op, attrs, operands, dtype) in enumerate(selected):
        if number % every:
            continue
        if op not in backend.ops and op in base.COMPOSITES:
            continue  # a composite that this backend leaves to the decomposition
        operands = [np.asarray(a) for a in operands]
        expected = reference(numpy_backend, numpy_backend.OPS, op, attrs, operands, dtype)
        for as_slots in (False, True):
            encoded = encode(op, attrs, operands, dtype, expected.shape, backend.specialises, as_slots)
            problem = None
            try:
                run = backend.compile(lowering.Program(encoded), [])
                state = [backend.load(a) for a in operands] if as_slots else []
                outputs, _ = run([] if as_slots else operands, state, [])
                problem = agree(expected, np.asarray(backend.to_numpy(outputs[0])), dtype, op not in ROUNDED, op)
            except Exception:
                problem = traceback.format_exc().strip().splitlines()[-1]
            if problem is None:
                passed += 1
            else:
                failed += 1
                key = (label, dtype)
                if key not in seen:
                    seen[key] = problem
                    kinds = " ".join("%s%s" % (a.dtype, a.shape) for a in operands)
                    print("FAIL %s %s [%s] %s: %s" % (label, attrs, kinds, "slots" if as_slots else "feeds", problem))
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
