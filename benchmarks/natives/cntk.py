"""The baselines in CNTK: a `Trainer` with a learner; the LSTM by its own recurrence. MKL uses AVX2 as in kernelk."""

from natives import island

island("cntk.backend").tell_mkl()

import cntk as C  # MKL is told before it is loaded
import numpy as np
from native import MOMENTUM, RATE


def empty():
    constant = C.constant(1.0) + 0
    return lambda: constant.eval()


def training(loss, learner, feeds):
    """A call that trains on one batch and returns its loss."""
    trainer = C.Trainer(None, (loss, None), [learner])

    def step():
        trainer.train_minibatch(feeds)
        return trainer.previous_minibatch_loss_average

    return step


def loss_of(logits, ts):
    return -C.reduce_sum(ts * C.log(C.clip(C.softmax(logits), 1e-7, 1 - 1e-7)))


def rate(batch):
    return C.learning_parameter_schedule(RATE, minibatch_size=batch)


def kept(x):
    return x


def half(x):
    """Dropout as CNTK has it."""
    return C.dropout(x, 0.5)


def mlp_dropout(weights, x, t):
    return mlp(weights, x, t, half)


def mlp(weights, x, t, drop=kept):
    xs, ts = C.input_variable(x.shape[1]), C.input_variable(t.shape[1])
    parameters = [C.parameter(init=w) for w in weights]
    hidden = drop(C.relu(C.times(xs, parameters[0]) + parameters[1]))
    loss = loss_of(C.times(hidden, parameters[2]) + parameters[3], ts)
    momentum = C.momentum_schedule(MOMENTUM, minibatch_size=len(x))
    learner = C.momentum_sgd(parameters, rate(len(x)), momentum, unit_gain=False)
    return training(loss, learner, {xs: x, ts: t})


def lenet_dropout(weights, x, t):
    return lenet(weights, x, t, half)


def lenet(weights, x, t, drop=kept):
    # CNTK's own layouts: channels before rows, kernels as (out, in, rows, columns).
    weights = [w.transpose(3, 2, 0, 1).copy() if w.ndim == 4 else w for w in weights]
    x = x.transpose(0, 3, 1, 2).copy()
    xs, ts = C.input_variable(x.shape[1:]), C.input_variable(t.shape[1])
    w = [C.parameter(init=a) for a in weights]
    y = xs
    for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
        y = C.convolution(kernel, y, auto_padding=[False, False, False])
        y = C.relu(y + C.reshape(bias, (-1, 1, 1)))
        y = C.pooling(y, C.MAX_POOLING, (2, 2), (2, 2))
    y = C.reshape(y, (-1,))
    for matrix, bias in ((w[4], w[5]), (w[6], w[7])):
        y = drop(C.relu(C.times(y, matrix) + bias))
    loss = loss_of(C.times(y, w[8]) + w[9], ts)
    return training(loss, C.sgd(w, rate(len(x))), {xs: x, ts: t})


def lstm(weights, x, t):
    units = weights[1].shape[0]
    xs, ts = C.sequence.input_variable(x.shape[2]), C.input_variable(t.shape[1])
    w = [C.parameter(init=a) for a in weights]

    @C.Function
    def cell(h, c, piece):
        gates = C.times(piece, w[0]) + C.times(h, w[1]) + w[2]
        a, b, d, e = [C.slice(gates, -1, i * units, (i + 1) * units) for i in range(4)]
        c = C.sigmoid(b) * c + C.sigmoid(a) * C.tanh(d)
        return C.combine([C.sigmoid(e) * C.tanh(c), c])

    zeros = C.constant(np.zeros(units, "float32"))
    h = C.sequence.last(C.layers.Recurrence(cell, initial_state=(zeros, zeros))(xs).outputs[0])
    loss = loss_of(C.times(h, w[3]) + w[4], ts)
    return training(loss, C.sgd(w, rate(len(x))), {xs: list(x), ts: t})


def holder(array):
    held = C.parameter(init=array)
    return (lambda value: setattr(held, "value", value)), held.asarray


def anew(function, parameter):
    """An evaluation that CNTK doesn't take for done already."""

    def call():
        parameter.record_value_update()
        return function.eval({}, as_numpy=False)

    return call


def gemm(a, b):
    a, b = C.parameter(init=a), C.parameter(init=b)
    return anew(C.times(a, b), a)


def chain(x):
    start = y = C.parameter(init=x)
    for _ in range(4):
        y = C.tanh(y * 0.5 + 0.1)
    return anew(y, start)


def sigmoid(x):
    x = C.parameter(init=x)
    return anew(C.sigmoid(x), x)


def softplus(x):
    x = C.parameter(init=x)
    return anew(C.softplus(x), x)
