"""The models of `native.py` written in K: each a call that trains on one batch and ends with the loss in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from native import MODELS, MOMENTUM, RATE, UNITS, data

from kernelk import backend as K

Weights = list[Any]
Drop = Callable[[Any], Any]


def kept(x: Any) -> Any:
    """Where nothing is dropped."""
    return x


def half(x: Any) -> Any:
    """Dropout of half of all."""
    return K.dropout(x, 0.5)


def mlp(w: Weights, x: Any, drop: Drop = kept) -> Any:
    """Two dense layers, up to the softmax."""
    hidden = drop(K.relu(K.dot(x, w[0]) + w[1]))
    return K.softmax(K.dot(hidden, w[2]) + w[3])


def lenet(w: Weights, x: Any, drop: Drop = kept) -> Any:
    """Two convolutions with pooling and three dense layers."""
    for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
        x = K.relu(K.bias_add(K.conv2d(x, kernel, data_format="channels_last"), bias, "channels_last"))
        x = K.pool2d(x, (2, 2), (2, 2), data_format="channels_last")
    x = K.batch_flatten(x)
    for matrix, bias in ((w[4], w[5]), (w[6], w[7])):
        x = drop(K.relu(K.dot(x, matrix) + bias))
    return K.softmax(K.dot(x, w[8]) + w[9])


DENSE = {"mlp": mlp, "lenet": lenet}


def lstm(w: Weights, x: Any) -> Any:
    """An LSTM by `K.rnn`, and a dense layer on its last output."""

    def cell(piece: Any, states: Any) -> Any:
        h, c = states
        gates = K.dot(piece, w[0]) + K.dot(h, w[1]) + w[2]
        a, b, d, e = (gates[:, i * UNITS : (i + 1) * UNITS] for i in range(4))
        c = K.sigmoid(b) * c + K.sigmoid(a) * K.tanh(d)
        h = K.sigmoid(e) * K.tanh(c)
        return h, [h, c]

    zeros = K.zeros((K.int_shape(x)[0], UNITS))
    last, _, _ = K.rnn(cell, x, [zeros, zeros])
    return K.softmax(K.dot(last, w[3]) + w[4])


def activations() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A chain of activations of 256 by 512 numbers: a call that ends with its mean, and one with its slope's mean."""
    values = np.random.RandomState(0).randn(256, 512).astype("float32")
    x = K.placeholder(values.shape)
    y = x
    for function in (K.sigmoid, K.tanh, K.softplus, K.elu, K.softsign, K.relu):
        y = function(y)
    slope = K.gradients(K.sum(y), [x])[0]
    forward, backward = K.function([x], [K.mean(y)]), K.function([x], [K.mean(slope)])
    return lambda: forward([values]), lambda: backward([values])


def empty() -> Callable[[], Any]:
    """A call that computes nothing."""
    constant = K.function([], [K.constant(1.0)])
    return lambda: constant([])


def model(case: str) -> Callable[[], Any]:
    """One training step of a case: momentum for an MLP, plain gradient descent for the others."""
    weights, x, t = data(case)
    name, _, dropped = MODELS[case][0].partition("_")
    xs, ts = K.placeholder(x.shape), K.placeholder(t.shape)
    parameters = [K.variable(w) for w in weights]
    p = lstm(parameters, xs) if name == "lstm" else DENSE[name](parameters, xs, half if dropped else kept)
    loss = K.mean(K.categorical_crossentropy(ts, p))
    updates = []
    for w, g in zip(parameters, K.gradients(loss, parameters)):
        if name != "mlp":
            updates.append(K.update_sub(w, RATE * g))
            continue
        v = K.zeros(K.int_shape(w))
        new = MOMENTUM * v - RATE * g
        updates += [K.update(v, new), K.update_add(w, new)]
    step = K.function([xs, ts], [loss], updates)
    return lambda: step([x, t])
