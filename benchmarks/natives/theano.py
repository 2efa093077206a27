"""The baselines in Theano: one `theano.function` with updates; the LSTM by `theano.scan`.

Theano is set up as kernelk's worker does it, so that both have the same compiler, BLAS and threads.
"""

import numpy as np
from native import MOMENTUM, RATE

from natives import backend

backend("theano")
import theano
import theano.tensor as T
from theano.sandbox.rng_mrg import MRG_RandomStreams

STREAMS = MRG_RandomStreams(1)


def empty():
    return theano.function([], T.constant(np.float32(1)))


def loss_of(logits, t):
    p = T.clip(T.nnet.softmax(logits), np.float32(1e-7), np.float32(1 - 1e-7))
    return T.mean(-T.sum(t * T.log(p), -1))


def kept(x):
    return x


def half(x):
    """Dropout by Theano's own generator for it."""
    mask = STREAMS.binomial(x.shape, p=0.5, dtype="float32")
    return x * mask * np.float32(2)


def mlp_dropout(weights, x, t):
    return mlp(weights, x, t, half)


def mlp(weights, x, t, drop=kept):
    variables = [theano.shared(w) for w in weights]
    velocities = [theano.shared(np.zeros_like(w)) for w in weights]
    xs, ts = T.fmatrix(), T.fmatrix()
    hidden = drop(T.nnet.relu(T.dot(xs, variables[0]) + variables[1]))
    loss = loss_of(T.dot(hidden, variables[2]) + variables[3], ts)
    updates = []
    for w, v, g in zip(variables, velocities, T.grad(loss, variables)):
        new = np.float32(MOMENTUM) * v - np.float32(RATE) * g
        updates += [(v, new), (w, w + new)]
    step = theano.function([xs, ts], loss, updates=updates)
    return lambda: step(x, t)


def descend(weights, logits_of, x, t):
    """A step of plain gradient descent."""
    variables = [theano.shared(w) for w in weights]
    xs, ts = T.TensorType("float32", (False,) * x.ndim)(), T.fmatrix()
    loss = loss_of(logits_of(variables, xs), ts)
    updates = [(w, w - np.float32(RATE) * g) for w, g in zip(variables, T.grad(loss, variables))]
    step = theano.function([xs, ts], loss, updates=updates)
    return lambda: step(x, t)


def lenet_dropout(weights, x, t):
    return lenet(weights, x, t, half)


def lenet(weights, x, t, drop=kept):
    # Theano's own layouts: channels before rows, kernels as (out, in, rows, columns), not flipped.
    weights = [w.transpose(3, 2, 0, 1).copy() if w.ndim == 4 else w for w in weights]
    x = x.transpose(0, 3, 1, 2).copy()

    def logits_of(w, x):
        from theano.tensor.signal.pool import pool_2d

        for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
            x = T.nnet.relu(T.nnet.conv2d(x, kernel, filter_flip=False) + bias.dimshuffle("x", 0, "x", "x"))
            x = pool_2d(x, (2, 2), ignore_border=True)
        x = x.flatten(2)
        for matrix, bias in ((w[4], w[5]), (w[6], w[7])):
            x = drop(T.nnet.relu(T.dot(x, matrix) + bias))
        return T.dot(x, w[8]) + w[9]

    return descend(weights, logits_of, x, t)


def lstm(weights, x, t):
    def logits_of(w, x):
        units = weights[1].shape[0]

        def cell(piece, h, c, w0, w1, w2):
            gates = T.dot(piece, w0) + T.dot(h, w1) + w2
            a, b, d, e = [gates[:, i * units : (i + 1) * units] for i in range(4)]
            c = T.nnet.sigmoid(b) * c + T.nnet.sigmoid(a) * T.tanh(d)
            return T.nnet.sigmoid(e) * T.tanh(c), c

        zeros = T.zeros((x.shape[0], units), "float32")
        (h, _), _ = theano.scan(cell, x.dimshuffle(1, 0, 2), [zeros, zeros], w[:3])
        return T.dot(h[-1], w[3]) + w[4]

    return descend(weights, logits_of, x, t)


def holder(array):
    held = theano.shared(array)
    return held.set_value, held.get_value


def held(function, *arrays):
    """A function of shared variables, so that no input is passed."""
    result = function(*[theano.shared(array) for array in arrays])
    return theano.function([], theano.Out(result, borrow=True))


def gemm(a, b):
    return held(T.dot, a, b)


def chain(x):
    def body(y):
        for _ in range(4):
            y = T.tanh(y * np.float32(0.5) + np.float32(0.1))
        return y

    return held(body, x)


def softplus(x):
    return held(T.nnet.softplus, x)
