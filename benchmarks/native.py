"""The baselines' process: the same work written by hand, in the interpreter that kernelk's worker uses.

`python native.py ENGINE CASE` reads lines from standard input and answers each with a JSON list: "N" with the seconds
of N calls, or of copies in and out where CASE is such as move1024x100 (MB, arrays). Of single ops it also answers
"N native" and "N kernelk": the mean of N calls behind one another, by the engine's own harness where it has one, and by
kernelk's for the program that is described in the folder which is the third argument. (Python 3.6 syntax: it also runs
beside Theano and CNTK.) The models are in `natives/`.
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
# LeNet's batch of 28 x 28 images. With dropout: of half of what comes out of each dense layer but the last. The other
# models are trained by plain gradient descent.
MODELS = {
    "small_step": ("mlp", (64, 128, 10, 32)),
    "large_step": ("mlp", (1024, 1024, 160, 128)),
    "huge_step": ("mlp", (3584, 3200, 512, 64)),
    "huge_few": ("mlp", (3584, 3200, 512, 4)),
    "vast_few": ("mlp", (14336, 12800, 1024, 4)),
    "large_state": ("mlp", (7168, 6400, 512, 64)),
    "half_gigabyte": ("mlp", (8192, 7680, 512, 64)),
    "large_dropout": ("mlp_dropout", (1024, 1024, 160, 128)),
    "lenet32": ("lenet", (32,)),
    "lenet_dropout": ("lenet_dropout", (32,)),
    "lenet128": ("lenet", (128,)),
    "lstm": ("lstm", ()),
}


def shapes(case):
    """The shapes of a model's weights, and of its input."""
    model, sizes = MODELS[case]
    model = model.split("_")[0]
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
OPS = {"gemm": [(1024, 1024), (1024, 1024)], "conv": [(256, 32, 32, 16), (3, 3, 16, 32)], "chain": [(4000000,)]}
# Activations that engines have functions for.
ACTIVATIONS = {"sigmoid": [(4000000,)], "softplus": [(4000000,)]}


def operands(case):
    """The operands of an op, the same for every engine, each from the beginning of a cache line on."""
    random = np.random.RandomState(1)
    found = []
    for shape in {**OPS, **ACTIVATIONS}[case]:
        size = int(np.prod(shape))
        memory = np.empty(size + 16, "float32")
        start = -memory.ctypes.data % 64 // 4
        found.append(memory[start : start + size].reshape(shape))
        found[-1][...] = random.standard_normal(shape) * (0.1 if case in OPS else 4.0)
    return found


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


def move(holder, megabytes, count):
    """The engine's own copies of `megabytes` in so many arrays: a function whose result is the seconds in and out."""
    size = megabytes * 262144 // count
    arrays = [np.random.RandomState(i).standard_normal(size).astype("float32") for i in range(min(count, 16))]
    arrays = [arrays[i % 16] for i in range(count)]
    held = [holder(a) for a in arrays]

    def call():
        start = time.perf_counter()
        for (put, _), a in zip(held, arrays):
            put(a)
        there = time.perf_counter()
        back = [get() for _, get in held]
        seconds = [there - start, time.perf_counter() - there]
        if not np.array_equal(back[-1], arrays[-1]):
            raise RuntimeError("read back differently")
        return seconds

    return call


def loop(call, calls):
    """The mean of calls behind one another, in seconds; each result lives until the next is there."""
    repeat = range(calls)
    start = time.perf_counter()
    for _ in repeat:
        kept = call()  # noqa: F841
    return (time.perf_counter() - start) / calls


def both(engine, case, folder):
    """Harnesses by name, of an op written by hand and as kernelk's program, in this one process.

    In two processes the same program takes up to a tenth more or less time in one of them, by where memory happens to
    lie. Each makes as many calls before it looks at the clock: the caches hold the other's data.
    """
    import natives

    backend = natives.backend(engine)
    module = importlib.import_module("natives." + engine)
    with open(os.path.join(folder, "program.json")) as file:
        timed = natives.kernelks(backend, json.load(file), folder)
    call, harness = getattr(module, case)(*operands(case)), getattr(module, "harness", loop)

    def native(calls):
        gc.disable()
        harness(call, calls)
        mean = harness(call, calls)
        gc.enable()
        return mean

    return {"native": native, "kernelk": lambda calls: timed.samples(calls, 1, calls)[0]}


def answer(answers, seconds):
    """Writes a line."""
    answers.write(json.dumps(seconds) + "\n")
    answers.flush()


def main(engine, case, folder=None):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if folder:
        harnesses = both(engine, case, folder)
        for line in sys.stdin:
            calls, name = line.split()
            answer(answers, [harnesses[name](int(calls))])
        return
    module = importlib.import_module("natives." + engine)
    if case.startswith("move"):
        call = move(module.holder, *[int(number) for number in case[4:].split("x")])
        for _ in sys.stdin:
            answer(answers, call())
        return
    if case.startswith("load"):
        call = load(module.holder, int(case[4:]))
    elif case == "empty":
        call = module.empty()
    else:
        call = getattr(module, MODELS[case][0])(*data(case))
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        answer(answers, seconds)


if __name__ == "__main__":
    # The models import this module by its name.
    sys.modules["native"] = sys.modules["__main__"]
    main(*sys.argv[1:])
