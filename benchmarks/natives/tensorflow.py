"""The baselines in TensorFlow 2: `tf.function` with a gradient tape."""

import itertools
import os

import numpy as np
from native import MOMENTUM, RATE, STEPS

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf


def empty():
    constant = tf.function(lambda: tf.constant(1.0))
    return lambda: constant().numpy()


def loss_of(logits, t):
    p = tf.nn.softmax(logits)
    p = tf.clip_by_value(p / tf.reduce_sum(p, -1, keepdims=True), 1e-7, 1 - 1e-7)
    return tf.reduce_mean(-tf.reduce_sum(t * tf.math.log(p), -1))


def kept(x):
    return x


def half(x):
    """Dropout as TensorFlow has it."""
    return tf.nn.dropout(x, 0.5)


def mlp_dropout(weights, x, t):
    return mlp(weights, x, t, half)


def mlp(weights, x, t, drop=kept):
    variables = [tf.Variable(w) for w in weights]
    velocities = [tf.Variable(np.zeros_like(w)) for w in weights]

    @tf.function
    def step(x, t):
        with tf.GradientTape() as tape:
            hidden = drop(tf.nn.relu(tf.matmul(x, variables[0]) + variables[1]))
            loss = loss_of(tf.matmul(hidden, variables[2]) + variables[3], t)
        for w, v, g in zip(variables, velocities, tape.gradient(loss, variables)):
            v.assign(MOMENTUM * v - RATE * g)
            w.assign_add(v)
        return loss

    return lambda: step(x, t).numpy()


def dense_epoch(x, y, batch):
    """An epoch of the dense net of `keras2_side.py`: shuffled batches, Adam, and the loss and the accuracy of each."""
    random, sizes = np.random.RandomState(0), [x.shape[1], 64, 64, y.shape[1]]
    w = []
    for inputs, outputs in itertools.pairwise(sizes):
        w += [random.standard_normal((inputs, outputs)) * (2.0 / (inputs + outputs)) ** 0.5, np.zeros(outputs)]
    variables = [tf.Variable(value.astype("float32")) for value in w]
    first = [tf.Variable(tf.zeros_like(v)) for v in variables]
    second = [tf.Variable(tf.zeros_like(v)) for v in variables]
    count = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec((None, sizes[0])), tf.TensorSpec((None, sizes[-1]))])
    def step(x, t):
        with tf.GradientTape() as tape:
            h = tf.nn.relu(tf.matmul(x, variables[0]) + variables[1])
            h = tf.nn.relu(tf.matmul(h, variables[2]) + variables[3])
            logits = tf.matmul(h, variables[4]) + variables[5]
            loss = loss_of(logits, t)
        right = tf.equal(tf.argmax(logits, -1), tf.argmax(t, -1))
        n = count.assign_add(1.0)
        rate = 0.001 * tf.sqrt(1.0 - 0.999**n) / (1.0 - 0.9**n)
        for w, m, v, g in zip(variables, first, second, tape.gradient(loss, variables)):
            m.assign(0.9 * m + 0.1 * g)
            v.assign(0.999 * v + 0.001 * tf.square(g))
            w.assign_sub(rate * m / (tf.sqrt(v) + 1e-7))
        return loss, tf.reduce_mean(tf.cast(right, tf.float32))

    def call():
        order = np.random.permutation(len(x))
        for start in range(0, len(x), batch):
            part = order[start : start + batch]
            for result in step(tf.constant(x[part]), tf.constant(y[part])):
                result.numpy()

    return call


def descend(weights, logits_of, x, t):
    """A step of plain gradient descent."""
    variables = [tf.Variable(w) for w in weights]

    @tf.function
    def step(x, t):
        with tf.GradientTape() as tape:
            loss = loss_of(logits_of(variables, x), t)
        for w, g in zip(variables, tape.gradient(loss, variables)):
            w.assign_sub(RATE * g)
        return loss

    return lambda: step(x, t).numpy()


def lenet_dropout(weights, x, t):
    return lenet(weights, x, t, half)


def lenet(weights, x, t, drop=kept):
    def logits_of(w, x):
        for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID") + bias)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = tf.reshape(x, (x.shape[0], -1))
        for matrix, bias in ((w[4], w[5]), (w[6], w[7])):
            x = drop(tf.nn.relu(tf.matmul(x, matrix) + bias))
        return tf.matmul(x, w[8]) + w[9]

    return descend(weights, logits_of, x, t)


def lstm(weights, x, t):
    def logits_of(w, x):
        units = w[1].shape[0]
        sequence = tf.transpose(x, (1, 0, 2))
        h = c = tf.zeros((x.shape[0], units))
        for i in tf.range(STEPS):
            gates = tf.matmul(sequence[i], w[0]) + tf.matmul(h, w[1]) + w[2]
            a, b, d, e = tf.split(gates, 4, 1)
            c = tf.sigmoid(b) * c + tf.sigmoid(a) * tf.tanh(d)
            h = tf.sigmoid(e) * tf.tanh(c)
        return tf.matmul(h, w[3]) + w[4]

    return descend(weights, logits_of, x, t)


def holder(array):
    held = tf.Variable(array)
    return held.assign, held.numpy


def ready(function, *arrays):
    """A call of a concrete function, made without the rewriting that kernelk does without: it changes values."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False, "constant_folding": False})
    held = [tf.constant(array) for array in arrays]
    concrete = tf.function(function).get_concrete_function(*held)
    return lambda: concrete(*held)


def gemm(a, b):
    # Not of tf.matmul itself: TensorFlow calls such a function more slowly than one of a lambda.
    return ready(lambda a, b: tf.matmul(a, b), a, b)


def conv(x, kernel):
    return ready(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "VALID"), x, kernel)


def chain(x):
    def body(y):
        for _ in range(4):
            y = tf.tanh(y * 0.5 + 0.1)
        return y

    return ready(body, x)


def sigmoid(x):
    return ready(lambda x: tf.sigmoid(x), x)


def softplus(x):
    return ready(lambda x: tf.nn.softplus(x), x)
