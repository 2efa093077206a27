"""The baselines' process: the same work written by hand, in the interpreter that kernelk's worker uses.

`python native.py ENGINE CASE` reads lines from standard input and answers each with a JSON list: "N" with the seconds
of N calls, "N together" twice with the mean of N calls behind one another, by the engine's own harness where it has
one (Python 3.6 syntax: it also runs beside Theano and CNTK). The models are in `natives/`.
"""

import gc
import importlib
import json
import os
import sys
import time

import numpy as np

RATE, MOMENTUM = 0.01, 0.9
# Of the LSTM: batch, time steps, features, units, classes.
BATCH, STEPS, FEATURES, UNITS, CLASSES = 32, 50, 64, 128, 10
# name: (model, sizes). An MLP's (inputs, hidden, classes, batch): momentum updates every weight and every velocity.
# LeNet's batch of 28 x 28 images. The other models are trained by plain gradient descent.
MODELS = {
    "small_step": ("mlp", (64, 128, 10, 32)),
    "large_step": ("mlp", (1024, 1024, 160, 128)),
    "lenet32": ("lenet", (32,)),
    "lenet128": ("lenet", (128,)),
    "lstm": ("lstm", ()),
}


def shapes(case):
    """The shapes of a model's weights, and of its input."""
    model, sizes = MODELS[case]
    if model == "mlp":
        inputs, hidden, classes, batch = sizes
        return [(inputs, hidden), (hidden,), (hidden, classes), (classes,)], (batch, inputs)
    if model == "lenet":
        kernels = [(5, 5, 1, 6), (6,), (5, 5, 6, 16), (16,)]
        return kernels + [(256, 120), (120,), (120, 84), (84,), (84, 10), (10,)], (sizes[0], 28, 28, 1)
    gates = [(FEATURES, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,)]
    return gates + [(UNITS, CLASSES), (CLASSES,)], (BATCH, STEPS, FEATURES)


def data(case):
    """Weights and one batch, float32, the same for every engine."""
    random = np.random.RandomState(0)
    weight_shapes, input_shape = shapes(case)
    weights = [
        (random.standard_normal(shape) * 0.05).astype("float32") if len(shape) > 1 else np.zeros(shape, "float32")
        for shape in weight_shapes
    ]
    classes = weight_shapes[-1][0]
    x = random.standard_normal(input_shape).astype("float32")
    t = np.eye(classes, dtype="float32")[random.randint(0, classes, input_shape[0])]
    return weights, x, t


# name: shapes of float32 operands of single ops: a product, a convolution (images and kernel, channels last), a chain.
OPS = {"gemm": [(512, 512), (512, 512)], "conv": [(16, 32, 32, 16), (3, 3, 16, 32)], "chain": [(1000000,)]}


def operands(case):
    """The operands of an op, the same for every engine."""
    random = np.random.RandomState(1)
    return [(random.standard_normal(shape) * 0.1).astype("float32") for shape in OPS[case]]


def load(holder, megabytes):
    """The engine's own load of 16 arrays of `megabytes` in all, read back and compared, as a call."""
    arrays = [np.random.RandomState(i).standard_normal(megabytes * 65536 // 4).astype("float32") for i in range(16)]
    held = [holder(a) for a in arrays]

    def call():
        for (put, _), a in zip(held, arrays):
            put(a)
        if not all(np.array_equal(get(), a) for (_, get), a in zip(held, arrays)):
            raise RuntimeError("read back differently")

    return call


def loop(call, calls):
    """The mean of calls behind one another, in seconds."""
    repeat = range(calls)
    start = time.perf_counter()
    for _ in repeat:
        call()
    return (time.perf_counter() - start) / calls


def main(engine, case):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module("natives." + engine)
    if case.startswith("load"):
        call = load(module.holder, int(case[4:]))
    elif case == "empty":
        call = module.empty()
    elif case in OPS:
        call = getattr(module, case)(*operands(case))
    else:
        call = getattr(module, MODELS[case][0])(*data(case))
    harness = getattr(module, "harness", loop)
    for line in sys.stdin:
        calls, _, together = line.partition(" ")
        if together:
            gc.disable()
            seconds = [harness(call, int(calls)) for _ in range(2)]
            gc.enable()
        else:
            seconds = []
            for _ in range(int(calls)):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
        answers.write(json.dumps(seconds) + "\n")
        answers.flush()


if __name__ == "__main__":
    # The models import this module by its name.
    sys.modules["native"] = sys.modules["__main__"]
    main(*sys.argv[1:])
