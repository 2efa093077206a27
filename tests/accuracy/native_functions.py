"""An engine's own functions, without kernelk, in the interpreter of that engine's worker.

`python native_functions.py ENGINE INPUTS OUTPUTS` reads an .npz file of arrays that are named "number function" and
writes one with what the engine's own function of that name gives for each, without those that it refuses. Theano and
CNTK are set up as kernelk's worker sets them up. (Python 3.6 syntax: it also runs beside these.)
"""

import importlib
import os
import sys

import numpy as np

BENCHMARKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "benchmarks")
# Names of functions here: K's. Those that an engine has none of are left out.
PLAIN = ("exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tanh")


def of_numpy():
    return {name: getattr(np, name) for name in PLAIN}


def of_tensorflow():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf = importlib.import_module("tensorflow")
    found = {name: getattr(tf.math, name) for name in PLAIN}
    found.update({name: getattr(tf.nn, name) for name in ("sigmoid", "softplus", "elu", "softsign", "softmax")})
    found.update(log_sigmoid=tf.math.log_sigmoid, logsumexp=lambda x: tf.reduce_logsumexp(x, -1))
    return {name: _calling(function, tf.constant, lambda y: y.numpy()) for name, function in found.items()}


def of_jax():
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    found = {name: getattr(jax.numpy, name) for name in PLAIN}
    names = ("sigmoid", "softplus", "elu", "log_sigmoid", "softmax")
    found.update({name: getattr(jax.nn, name) for name in names})
    found.update(softsign=jax.nn.soft_sign, logsumexp=lambda x: jax.nn.logsumexp(x, -1))
    return {name: _calling(jax.jit(function), jax.numpy.asarray, np.asarray) for name, function in found.items()}


def of_torch():
    torch = importlib.import_module("torch")
    found = {name: getattr(torch, name) for name in PLAIN}
    functional = torch.nn.functional
    found.update(sigmoid=torch.sigmoid, softplus=functional.softplus, elu=functional.elu)
    found.update(softsign=functional.softsign, log_sigmoid=functional.logsigmoid)
    found.update(softmax=lambda x: torch.softmax(x, -1), logsumexp=lambda x: torch.logsumexp(x, -1))
    return {name: _calling(function, torch.from_numpy, lambda y: y.numpy()) for name, function in found.items()}


def of_theano():
    _set_up("theano")
    theano = importlib.import_module("theano")
    T = importlib.import_module("theano.tensor")
    found = {name: getattr(T, name) for name in PLAIN}
    found.update({name: getattr(T.nnet, name) for name in ("sigmoid", "softplus", "elu", "softsign", "softmax")})

    def call(function):
        def called(x):
            given = T.TensorType(str(x.dtype), (False,) * x.ndim)()
            return theano.function([given], function(given))(x)

        return called

    return {name: call(function) for name, function in found.items()}


def of_cntk():
    _set_up("cntk")
    C = importlib.import_module("cntk")
    names = ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "softplus", "elu", "softsign")

    def call(function):
        def called(x):
            return np.asarray(function(C.constant(x, dtype=x.dtype.type)).eval())

        return called

    return {name: call(getattr(C, name)) for name in names}


def _calling(function, given, taken):
    return lambda x: taken(function(given(x)))


def _set_up(engine):
    sys.path.insert(0, BENCHMARKS)
    importlib.import_module("natives").backend(engine)


def main(engine, inputs, outputs):
    functions = globals()["of_" + engine]()
    results = {}
    with np.load(inputs) as given, np.errstate(all="ignore"):
        for key in given.files:
            function = functions.get(key.split(" ")[1])
            if function is None:
                continue
            try:
                made = np.asarray(function(given[key]))
            except Exception as error:
                sys.stderr.write("%s of %s: %s\n" % (key, given[key].dtype, " ".join(str(error).split())[:200]))
                continue
            if made.dtype == given[key].dtype:
                results[key] = made
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
