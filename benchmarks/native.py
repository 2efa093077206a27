"""The baselines: the same work written by hand on each engine, run in the interpreter that kernelk's worker uses.

`python native.py ENGINE CASE` reads lines "N" from standard input and answers each with the seconds of N calls, as a
JSON list (Python 3.6 syntax: it also runs beside Theano and CNTK). Every call ends with its results in numpy.
"""

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time

import numpy as np

# name: (inputs, hidden, classes, batch); "step" with momentum updates every weight and every velocity.
MODELS = {"small_step": (64, 128, 10, 32), "large_step": (1024, 1024, 160, 128)}
RATE, MOMENTUM = 0.01, 0.9


def data(case):
    """Weights and one batch, float32, the same for every engine."""
    inputs, hidden, classes, batch = MODELS[case]
    random = np.random.RandomState(0)
    weights = [
        (random.standard_normal((inputs, hidden)) * 0.05).astype("float32"),
        np.zeros(hidden, "float32"),
        (random.standard_normal((hidden, classes)) * 0.05).astype("float32"),
        np.zeros(classes, "float32"),
    ]
    x = random.standard_normal((batch, inputs)).astype("float32")
    t = np.eye(classes, dtype="float32")[random.randint(0, classes, batch)]
    return weights, x, t


def tensorflow(case):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    if case == "empty":
        constant = tf.function(lambda: tf.constant(1.0))
        return lambda: constant().numpy()
    weights, x, t = data(case)
    variables = [tf.Variable(w) for w in weights]
    velocities = [tf.Variable(np.zeros_like(w)) for w in weights]

    @tf.function
    def step(x, t):
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(tf.matmul(x, variables[0]) + variables[1])
            p = tf.nn.softmax(tf.matmul(hidden, variables[2]) + variables[3])
            p = p / tf.reduce_sum(p, -1, keepdims=True)
            p = tf.clip_by_value(p, 1e-7, 1 - 1e-7)
            loss = tf.reduce_mean(-tf.reduce_sum(t * tf.math.log(p), -1))
        for w, v, g in zip(variables, velocities, tape.gradient(loss, variables)):
            v.assign(MOMENTUM * v - RATE * g)
            w.assign_add(v)
        return loss

    return lambda: step(x, t).numpy()


def with_workers_flags():
    """Sets Theano up as kernelk's worker does, so that both have the same compiler, BLAS and threads."""
    folder = os.environ["KERNELK_ISLAND"]
    spec = importlib.util.spec_from_file_location(
        "island", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    sys.modules["island"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["island"])
    backend = importlib.import_module("island.theano_backend").TheanoBackend
    backend({"cache": os.environ["KERNELK_CACHE"], "scratch": tempfile.mkdtemp()})


def theano(case):
    with_workers_flags()
    import theano as th
    import theano.tensor as T

    if case == "empty":
        return th.function([], T.constant(np.float32(1)))
    weights, x, t = data(case)
    variables = [th.shared(w) for w in weights]
    velocities = [th.shared(np.zeros_like(w)) for w in weights]
    xs, ts = T.fmatrix(), T.fmatrix()
    hidden = T.nnet.relu(T.dot(xs, variables[0]) + variables[1])
    p = T.nnet.softmax(T.dot(hidden, variables[2]) + variables[3])
    p = T.clip(p / p.sum(-1, keepdims=True), np.float32(1e-7), np.float32(1 - 1e-7))
    loss = T.mean(-T.sum(ts * T.log(p), -1))
    updates = []
    for w, v, g in zip(variables, velocities, T.grad(loss, variables)):
        new = np.float32(MOMENTUM) * v - np.float32(RATE) * g
        updates += [(v, new), (w, w + new)]
    step = th.function([xs, ts], loss, updates=updates)
    return lambda: step(x, t)


def cntk(case):
    import cntk as C

    if case == "empty":
        constant = C.constant(1.0) + 0
        return lambda: constant.eval()
    weights, x, t = data(case)
    xs = C.input_variable(x.shape[1])
    ts = C.input_variable(t.shape[1])
    parameters = [C.parameter(init=w) for w in weights]
    hidden = C.relu(C.times(xs, parameters[0]) + parameters[1])
    p = C.softmax(C.times(hidden, parameters[2]) + parameters[3])
    loss = -C.reduce_sum(ts * C.log(C.clip(p, 1e-7, 1 - 1e-7)))
    learner = C.momentum_sgd(
        parameters,
        C.learning_parameter_schedule(RATE, minibatch_size=x.shape[0]),
        C.momentum_schedule(MOMENTUM, minibatch_size=x.shape[0]),
        unit_gain=False,
    )
    trainer = C.Trainer(None, (loss, None), [learner])

    def step():
        trainer.train_minibatch({xs: x, ts: t})
        return trainer.previous_minibatch_loss_average

    return step


def load(engine, megabytes):
    """The engine's own load of 16 arrays of `megabytes` in all, read back and compared, as a call."""
    arrays = [np.random.RandomState(i).standard_normal(megabytes * 65536 // 4).astype("float32") for i in range(16)]
    if engine == "tensorflow":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow as tf

        held = [tf.Variable(a) for a in arrays]
        put, get = (lambda v, a: v.assign(a)), (lambda v: v.numpy())
    elif engine == "theano":
        with_workers_flags()
        import theano as th

        held = [th.shared(a) for a in arrays]
        put, get = (lambda v, a: v.set_value(a)), (lambda v: v.get_value())
    elif engine == "cntk":
        import cntk as C

        held = [C.parameter(init=a) for a in arrays]
        put, get = (lambda v, a: setattr(v, "value", a)), (lambda v: v.asarray())
    else:
        held = [a.copy() for a in arrays]
        put, get = np.copyto, np.copy

    def call():
        for v, a in zip(held, arrays):
            put(v, a)
        if not all(np.array_equal(get(v), a) for v, a in zip(held, arrays)):
            raise RuntimeError("read back differently")

    return call


def numpy(case):
    if case == "empty":
        return lambda: np.asarray(np.float32(1))
    weights, x, t = data(case)
    w1, b1, w2, b2 = weights
    velocities = [np.zeros_like(w) for w in weights]

    def step():
        pre = x @ w1 + b1
        hidden = np.maximum(pre, 0)
        logits = hidden @ w2 + b2
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        loss = -np.mean(np.sum(t * np.log(np.clip(p, 1e-7, 1 - 1e-7)), -1))
        g = (p - t) / np.float32(len(x))
        back = (g @ w2.T) * (pre > 0)
        for w, v, slope in zip(weights, velocities, [x.T @ back, back.sum(0), hidden.T @ g, g.sum(0)]):
            v *= np.float32(MOMENTUM)
            v -= np.float32(RATE) * slope
            w += v
        return loss

    return step


def main(engine, case):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if case.startswith("load"):
        call = load(engine, int(case[4:]))
    else:
        call = {"tensorflow": tensorflow, "theano": theano, "cntk": cntk, "numpy": numpy}[engine](case)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        answers.write(json.dumps(seconds) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
