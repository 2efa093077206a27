"""Cases of randomness, updates of variables and gradients."""

from __future__ import annotations

import numpy as np

from kernelk import backend as K

from .case import ALL, FLOATS, ONE, Case, always, real


def _within(shape_of, low, high, mean=None):
    """A definition of random numbers: their shape, their range, about their mean where there are enough.

    The mean may be 6 of its standard errors off: one sample in 500 million is further.
    """

    def expected(*operands):
        def right(value):
            value = np.asarray(value, dtype="float64")
            inside = bool(np.all((value >= low) & (value <= high)))
            fits = value.shape == tuple(shape_of(*operands))
            error = value.std() / value.size**0.5
            return inside and fits and (mean is None or value.size < 1000 or abs(value.mean() - mean) <= 6 * error)

        return right

    return expected


def _random():
    many = (40, 50)
    # A float16 near 1 may be rounded up to it.
    for function, made, low, high, mean in (
        ("random_uniform", lambda shape, dtype=None: K.random_uniform(shape, dtype=dtype), 0, 1, 0.5),
        ("random_uniform", lambda shape, dtype=None: K.random_uniform(shape, -2.0, 6.0, dtype), -2, 6, 2),
        ("random_normal", lambda shape, dtype=None: K.random_normal(shape, dtype=dtype), -9, 9, 0),
        ("random_normal", lambda shape, dtype=None: K.random_normal(shape, 3.0, 0.5, dtype, seed=5), -2, 8, 3),
        ("truncated_normal", lambda shape, dtype=None: K.truncated_normal(shape, dtype=dtype), -2, 2, 0),
        ("truncated_normal", lambda shape, dtype=None: K.truncated_normal(shape, 1.0, 0.5, dtype), 0, 2, 1),
        ("random_binomial", lambda shape, dtype=None: K.random_binomial(shape, 0.3, dtype), 0, 1, 0.3),
        ("random_binomial", lambda shape, dtype=None: K.random_binomial(shape, 0.0, dtype), 0, 0, 0),
    ):
        note = f"from {low} to {high}"
        for dtype in FLOATS:
            yield Case(
                function,
                f"{note}, {dtype}",
                lambda made=made, dtype=dtype: made(many, dtype),
                _within(lambda: many, low, high, mean),
                dtypes=ONE,
                gives=always(dtype),
            )
        yield Case(
            function, f"{note}, a scalar", lambda made=made: made(()), _within(lambda: (), low, high), dtypes=ONE
        )
        yield Case(
            function, f"{note}, nothing", lambda made=made: made((0, 2)), _within(lambda: (0, 2), low, high), dtypes=ONE
        )
        yield Case(
            function,
            f"{note}, shaped as another",
            lambda x, made=made: made(K.shape(x)),
            _within(np.shape, low, high),
            [real("Ab")],
            ALL,
            always("float32"),
        )
    for function in ("random_uniform_variable", "random_normal_variable"):
        low, high, mean = (0, 2, 1) if "uniform" in function else (-11, 13, 1)
        for dtype in FLOATS:
            yield Case(
                function,
                dtype,
                lambda function=function, dtype=dtype: getattr(K, function)(
                    many, 0 if "uniform" in function else 1, 2, dtype
                ),
                _within(lambda: many, low, high, mean),
                dtypes=ONE,
                gives=always(dtype),
            )


def _start(dtype):
    return np.array([[1, 0, 3], [2, 5, 4]], dtype=dtype)


def _updates():
    """The new value of a variable that began as `_start`."""
    for dtype in ALL:
        same = {"gives": always(dtype), "dtypes": ONE}
        yield Case(
            "update",
            dtype,
            lambda x, d=dtype: K.update(K.variable(_start(d), dtype=d), x),
            lambda x: x,
            [real("23", dtype=dtype)],
            **same,
        )
        if dtype == "bool":
            continue
        for function, combine in (("update_add", np.add), ("update_sub", np.subtract)):
            yield Case(
                function,
                dtype,
                lambda x, d=dtype, function=function: getattr(K, function)(K.variable(_start(d), dtype=d), x),
                lambda x, d=dtype, combine=combine: combine(_start(d), x),
                [real("23", dtype=dtype)],
                **same,
            )
    for dtype in FLOATS:
        yield Case(
            "moving_average_update",
            dtype,
            lambda x, d=dtype: K.moving_average_update(K.variable(_start(d), dtype=d), x, 0.75),
            lambda x, d=dtype: _start(d) * 0.75 + x * 0.25,
            [real("23", dtype=dtype)],
            ONE,
            always(dtype),
        )
    yield Case(
        "update_add",
        "broadcast",
        lambda x: K.update_add(K.variable(_start("float32")), x),
        lambda x: _start("float32") + x,
        [real("13")],
        ONE,
    )
    yield Case(
        "update",
        "of unknown rows",
        lambda x: K.update(K.variable(_start("float32")), x),
        lambda x: x,
        [real("23")],
        ONE,
    )


def _gradients():
    for note, loss, slope in (
        ("a polynomial", lambda x: K.sum(x * x * x), lambda x: 3 * x * x),
        ("not a scalar", lambda x: x * x, lambda x: 2 * x),
        ("a mean", lambda x: K.mean(K.square(x)), lambda x: 2 * x / x.size),
        ("tanh", lambda x: K.sum(K.tanh(x)), lambda x: 1 - np.tanh(x) ** 2),
        ("through round", lambda x: K.sum(K.relu(K.round(x))), lambda x: x * 0),
        ("unconnected", lambda x: K.sum(K.stop_gradient(x)), lambda x: x * 0),
        ("second order", lambda x: K.gradients(K.sum(x * x * x), x)[0], lambda x: 6 * x),
        ("through a shape", lambda x: K.sum(K.transpose(K.reshape(x, (-1, 1))) * 2), lambda x: x * 0 + 2),
    ):
        yield Case(
            "gradients",
            note,
            lambda x, loss=loss: K.gradients(loss(x), x)[0],
            lambda x, slope=slope: slope(x),
            [real("Ab" if "mean" not in note else "ab")],
            scale=8,
        )
    yield Case(
        "gradients",
        "of two",
        lambda x, y: tuple(K.gradients(K.sum(K.dot(x, y)), [x, y])),
        lambda x, y: (np.tile(y.sum(1), (len(x), 1)), np.tile(x.sum(0)[:, None], (1, y.shape[1]))),
        [real("ab"), real("bc")],
        scale=8,
    )


CASES = [*_random(), *_updates(), *_gradients()]
