"""The baselines in numpy: the MLP with its gradients by hand; nobody writes the other models this way."""

import numpy as np
from native import MOMENTUM, RATE


def empty():
    return lambda: np.asarray(np.float32(1))


def mlp(weights, x, t):
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


def holder(array):
    held = array.copy()
    return (lambda value: np.copyto(held, value)), (lambda: np.copy(held))


def gemm(a, b):
    return lambda: a @ b


def chain(x):
    def call():
        y = x
        for _ in range(4):
            # Not by operators: these compute in the memory of a nameless value, which no program of kernelk's does.
            y = np.multiply(y, np.float32(0.5))
            y = np.add(y, np.float32(0.1))
            y = np.tanh(y)
        return y

    return call
