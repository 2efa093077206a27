"""The baselines in JAX: `jax.jit` with `value_and_grad`; a scanned LSTM by `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from native import MOMENTUM, RATE

from natives import island


def empty():
    constant = jax.jit(lambda: jnp.float32(1))
    return lambda: np.asarray(constant())


def loss_of(logits, t):
    p = jnp.clip(jax.nn.softmax(logits), 1e-7, 1 - 1e-7)
    return jnp.mean(-jnp.sum(t * jnp.log(p), -1))


def kept(x, key):
    return x


def half(x, key):
    """Dropout as JAX's libraries write it."""
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)


def keys(drop):
    """A function that gives a new key for each step, and no work where nothing is dropped."""
    state = [jax.random.key(0)]
    split = jax.jit(jax.random.split)

    def another():
        if drop is kept:
            return state[0]
        state[0], key = split(state[0])
        return key

    return another


def mlp_dropout(weights, x, t):
    return mlp(weights, x, t, half)


def mlp(weights, x, t, drop=kept):
    def loss(w, x, t, key):
        hidden = drop(jax.nn.relu(x @ w[0] + w[1]), key)
        return loss_of(hidden @ w[2] + w[3], t)

    @jax.jit
    def step(w, v, x, t, key):
        value, g = jax.value_and_grad(loss)(w, x, t, key)
        v = [MOMENTUM * b - RATE * c for b, c in zip(v, g)]
        return value, [a + b for a, b in zip(w, v)], v

    another = keys(drop)
    state = [[jnp.asarray(w) for w in weights], [jnp.zeros_like(w) for w in weights]]

    def call():
        value, state[0], state[1] = step(state[0], state[1], x, t, another())
        return finished(value, state)

    return call


def finished(value, state):
    """The loss, once all of the step is done: JAX hands results out before they are there."""
    jax.block_until_ready(state)
    return np.asarray(value)


def descend(weights, logits_of, x, t, drop=kept):
    """A step of plain gradient descent."""

    @jax.jit
    def step(w, x, t, key):
        value, g = jax.value_and_grad(lambda w: loss_of(logits_of(w, x, key), t))(w)
        return value, [a - RATE * b for a, b in zip(w, g)]

    another = keys(drop)
    state = [[jnp.asarray(w) for w in weights]]

    def call():
        value, state[0] = step(state[0], x, t, another())
        return finished(value, state)

    return call


def lenet_dropout(weights, x, t):
    return lenet(weights, x, t, half)


def lenet(weights, x, t, drop=kept):
    def logits_of(w, x, key):
        for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.reshape(x.shape[0], -1)
        for matrix, bias, own in ((w[4], w[5], 0), (w[6], w[7], 1)):
            x = drop(jax.nn.relu(x @ matrix + bias), jax.random.fold_in(key, own))
        return x @ w[8] + w[9]

    return descend(weights, logits_of, x, t, drop)


def lstm(weights, x, t):
    def logits_of(w, x, key):
        def cell(state, piece):
            h, c = state
            a, b, d, e = jnp.split(piece @ w[0] + h @ w[1] + w[2], 4, 1)
            c = jax.nn.sigmoid(b) * c + jax.nn.sigmoid(a) * jnp.tanh(d)
            return (jax.nn.sigmoid(e) * jnp.tanh(c), c), None

        zeros = jnp.zeros((x.shape[0], w[1].shape[0]), jnp.float32)
        (h, _), _ = lax.scan(cell, (zeros, zeros), jnp.swapaxes(x, 0, 1))
        return h @ w[3] + w[4]

    return descend(weights, logits_of, x, t)


def holder(array):
    held = [jnp.asarray(array)]

    def put(value):
        held[0] = jax.block_until_ready(jnp.array(value))

    return put, (lambda: np.array(held[0]))


def ready(function, *arrays):
    """A call that is over when its result is there; of a program that XLA makes with kernelk's options."""
    held = [jnp.asarray(array) for array in arrays]
    compiled = jax.jit(function).lower(*held).compile(compiler_options=island("jax.backend").STRICT)
    return lambda: compiled(*held).block_until_ready()


def gemm(a, b):
    return ready(lambda a, b: a @ b, a, b)


def conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return ready(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=layout), x, kernel)


def chain(x):
    def body(y):
        for _ in range(4):
            y = jnp.tanh(y * 0.5 + 0.1)
        return y

    return ready(body, x)


def sigmoid(x):
    return ready(jax.nn.sigmoid, x)


def softplus(x):
    return ready(jax.nn.softplus, x)
