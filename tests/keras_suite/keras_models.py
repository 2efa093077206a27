"""Unmodified Keras models, trained by Keras on the engine and on numpy: they learn the same from the same draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kernelk
from kernelk import backend as K

X = np.random.RandomState(1).uniform(size=(60, 6))
Y = np.eye(3)[(X.sum(1) * 7).astype(int) % 3]


def alike(engine: str, run: Callable[[], list[Any]]) -> None:
    """What `run` gives on the engine is what it gives on numpy."""
    found = []
    for name in (engine, "numpy"):
        kernelk.set_backend(name)
        K.set_random_seed(3)
        np.random.seed(3)
        found.append([np.asarray(value, dtype="float64") for value in run()])
    kernelk.set_backend(engine)
    for got, wanted in zip(*found, strict=True):
        assert np.isfinite(wanted).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


def trained(model: Any, x: Any, y: Any = Y, **options: Any) -> list[Any]:
    """Two epochs' history, weights and predictions."""
    before = model.get_weights()
    history = model.fit(x, y, epochs=2, batch_size=16, verbose=0, **options).history
    after = model.get_weights()
    assert not all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    return [*(history[name] for name in sorted(history)), *after, model.predict(x, batch_size=16)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "nadam"])
def test_model_dense(engine: str, optimizer: str) -> None:
    def run() -> list[Any]:
        model = keras.Sequential(
            [
                layers.Dense(8, activation="relu", input_shape=(6,), kernel_regularizer="l2"),
                layers.Dropout(0.3),
                layers.BatchNormalization(),
                layers.Dense(3, activation="softmax"),
            ]
        )
        model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy", keras.metrics.AUC()])
        found = trained(model, X, validation_split=0.2)
        right = model.predict(X).argmax(1) == Y.argmax(1)
        assert model.evaluate(X, Y, verbose=0)[1] == pytest.approx(right.mean(), abs=1e-6)
        return found

    alike(engine, run)


def test_model_convolutional(engine: str) -> None:
    def run() -> list[Any]:
        model = keras.Sequential(
            [
                layers.Conv2D(4, 3, activation="relu", padding="same", input_shape=(6, 6, 1)),
                layers.MaxPooling2D(),
                layers.SeparableConv2D(3, 2),
                layers.SpatialDropout2D(0.2),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, activation="softmax"),
            ]
        )
        model.compile("sgd", "categorical_crossentropy")
        return trained(model, X[:, :, None, None] * X[:, None, :, None])

    alike(engine, run)


def test_model_recurrent(engine: str) -> None:
    def run() -> list[Any]:
        model = keras.Sequential(
            [
                layers.Embedding(5, 4, mask_zero=True, input_length=6),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True, recurrent_dropout=0.2)),
                layers.GRU(3),
                layers.Dense(3, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0), "categorical_crossentropy")
        return trained(model, (X * 5).astype("int32"))

    alike(engine, run)


def test_model_of_two_inputs_and_outputs(engine: str) -> None:
    def run() -> list[Any]:
        a, b = layers.Input((6,)), layers.Input((6,))
        hidden = layers.Dense(4, activation="tanh")
        first, second = hidden(a), hidden(b)
        joined = layers.concatenate([layers.multiply([first, second]), layers.dot([first, second], -1)])
        outputs = [layers.Dense(3, activation="softmax")(joined), layers.Dense(1, activation="sigmoid")(first)]
        model = keras.Model([a, b], outputs)
        losses = ["categorical_crossentropy", "binary_crossentropy"]
        model.compile("adam", losses, loss_weights=[1.0, 0.5], metrics=["acc"])
        found = trained(model, [X, X[::-1]], [Y, Y[:, :1]], sample_weight=[X[:, 0], X[:, 1]])
        copy = keras.Model.from_config(model.get_config())
        copy.set_weights(model.get_weights())
        for own, its in zip(model.predict([X, X]), copy.predict([X, X]), strict=True):
            np.testing.assert_allclose(own, its, rtol=1e-5, atol=1e-6)
        return found[:-1] + found[-1]

    alike(engine, run)
