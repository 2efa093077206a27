"""Cases of what networks are made of: products, softmax and losses, normalisation, dropout."""

from __future__ import annotations

import numpy as np

from kernelk import backend as K

from .case import FLOATS, INTEGERS, MATRICES, NUMBERS, ONE, Case, Operand, always, floating, index, label, real


def _products():
    for left, right in (
        ("ab", "bc"),
        ("Ab", "bC"),
        ("aB", "Bc"),
        ("abc", "cd"),
        ("ab", "cbd"),
        ("abc", "dce"),
        ("a", "a"),
        ("ab", "b"),
        ("a", "ab"),
        ("ABc", "cD"),
        ("aB", "CBd"),
        ("AbC", "Cd"),
    ):
        yield Case(
            "dot",
            f"{left} with {right}",
            lambda x, y: K.dot(x, y),
            np.dot,
            [real(left), real(right)],
            NUMBERS,
            scale=8,
        )
    yield Case(
        "dot", "integer edges", lambda x, y: K.dot(x, y), np.dot, [real("ab", "edges"), real("bc", "edges")], INTEGERS
    )
    for form in ("csr", "csc", "coo"):
        left = Operand("Ab", "small", sparse=form)
        yield Case(
            "dot",
            f"{form} with dense",
            lambda x, y: K.dot(x, y),
            np.dot,
            [left, real("bc")],
            MATRICES,
            scale=8,
        )
        yield Case(
            "dot", f"{form} with nonfinite", lambda x, y: K.dot(x, y), _dot, [left, real("bc", "nonfinite")], ONE
        )
    yield Case("dot", "nonfinite", lambda x, y: K.dot(x, y), _dot, [real("ab", "nonfinite"), real("bc")], scale=8)
    for left, right, axes, subscripts in (
        ("nab", "nbc", None, "nab,nbc->nac"),
        ("Nab", "Nbc", (2, 1), "nab,nbc->nac"),
        ("nab", "ncb", (2, 2), "nab,ncb->nac"),
        ("nab", "nac", (1, 1), "nab,nac->nbc"),
        ("nab", "nac", 1, "nab,nac->nbc"),
        ("na", "nab", None, "na,nab->nb"),
        ("nab", "nb", (2, 1), "nab,nb->na"),
        ("nab", "ncda", (1, -1), "nab,ncda->nbcd"),
        ("nabc", "ncd", (3, 1), "nabc,ncd->nabd"),
        ("nabc", "ndbe", (2, 2), "nabc,ndbe->nacde"),
        ("NabC", "NdCE", (3, 2), "nabc,ndce->nabde"),
        ("nA", "nA", 1, "na,na->n"),
        ("na", "na", None, "na,na->n"),
    ):

        def expected(x, y, subscripts=subscripts):
            made = np.einsum(subscripts, x, y)
            return made[:, None] if made.ndim == 1 else made

        yield Case(
            "batch_dot",
            f"{left} with {right}, axes={axes}",
            lambda x, y, axes=axes: K.batch_dot(x, y, axes),
            expected,
            [real(left), real(right)],
            NUMBERS,
            scale=8,
        )


def _dot(x, y):
    return sum(x[:, i : i + 1] * y[i : i + 1] for i in range(x.shape[1]))


def softmax(x, axis=-1):
    """exp(x) normalised along an axis."""
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    """The logarithm of softmax, without overflow."""
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def _wide(expected):
    return lambda x: expected(x.astype("float64"))


def _softmax():
    for kind in ("real", "extreme", "nonfinite"):
        for axes, axis in (("ab", -1), ("abc", 1), ("ab", 0), ("Ab", 1), ("a", 0)):
            yield Case(
                "softmax",
                f"{kind}, axis {axis} of {axes}",
                lambda x, axis=axis: K.softmax(x, axis),
                lambda x, axis=axis: softmax(x, axis),
                [real(axes, kind)],
                scale=4,
            )
    yield Case("softmax", "integers", lambda x: K.softmax(x), _wide(softmax), [real("ab")], INTEGERS, floating, scale=4)


EPSILON = 1e-7


def _inside(p):
    return np.clip(p, EPSILON, 1 - EPSILON)


def _picked(logs, labels, axis):
    """The negative of the labels' entries; 0 for a label that is no class."""
    logs = np.moveaxis(logs, axis, -1)
    labels = labels.reshape(logs.shape[:-1])
    chosen = labels[..., None] == np.arange(logs.shape[-1])
    return -np.where(chosen, logs, 0).sum(-1)


def _losses():
    for axes, axis in (("ab", -1), ("abc", 1), ("Ab", -1), ("a", 0)):
        yield Case(
            "categorical_crossentropy",
            f"probabilities, axis {axis} of {axes}",
            lambda t, o, axis=axis: K.categorical_crossentropy(t, o, axis=axis),
            lambda t, o, axis=axis: -(t * np.log(_inside(o / o.sum(axis, keepdims=True)))).sum(axis),
            [real(axes, "unit"), real(axes, "unit")],
            scale=8,
        )
        for kind in ("real", "extreme"):
            yield Case(
                "categorical_crossentropy",
                f"{kind} logits, axis {axis} of {axes}",
                lambda t, o, axis=axis: K.categorical_crossentropy(t, o, from_logits=True, axis=axis),
                lambda t, o, axis=axis: -(t * log_softmax(o, axis)).sum(axis),
                [real(axes, "bits"), real(axes, kind)],
                scale=8,
            )
    yield Case(
        "categorical_crossentropy",
        "certain",
        lambda t, o: K.categorical_crossentropy(t, o),
        lambda t, o: -(t * np.log(_inside(o / o.sum(-1, keepdims=True)))).sum(-1),
        [real("ab", "bits"), real("ab", "bits")],
        ["float64"],
        scale=8,
    )
    for axes, labels, axis in (("a3", "a", -1), ("a3b", "ab", 1), ("ab3", "ab1", -1), ("A3", "A", -1), ("a3", "a1", 1)):
        for logits, kind in ((False, "unit"), (True, "real"), (True, "extreme")):
            for dtype in ("int32", "int64", "uint8"):
                yield Case(
                    "sparse_categorical_crossentropy",
                    f"{kind} {'logits' if logits else 'probabilities'} {axes}, {dtype} labels {labels}, axis {axis}",
                    lambda t, o, logits=logits, axis=axis: K.sparse_categorical_crossentropy(t, o, logits, axis),
                    lambda t, o, logits=logits, axis=axis: _picked(
                        log_softmax(o if logits else np.log(_inside(o)), axis), t, axis
                    ),
                    [label(labels, 3, dtype) if logits else index(labels, 3, dtype), real(axes, kind)],
                    gives=lambda dtype: dtype,
                    scale=8,
                )
    for kind in ("unit", "bits"):
        yield Case(
            "binary_crossentropy",
            f"{kind} probabilities",
            lambda t, o: K.binary_crossentropy(t, o),
            lambda t, o: -(t * np.log(_inside(o)) + (1 - t) * np.log(1 - _inside(o))),
            [real("Ab", "bits"), real("Ab", kind)],
            FLOATS if kind == "unit" else ["float64"],
            scale=8,
        )
    for kind in ("real", "extreme"):
        yield Case(
            "binary_crossentropy",
            f"{kind} logits",
            lambda t, o: K.binary_crossentropy(t, o, from_logits=True),
            lambda t, o: np.logaddexp(o, 0) - o * t,
            [real("Ab", "bits"), real("Ab", kind)],
            scale=4,
        )
    for kind in ("real", "nonfinite"):
        for k in (1, 2, 5):
            for dtype in ("int32", "int64"):
                yield Case(
                    "in_top_k",
                    f"{kind}, k={k}, {dtype}",
                    lambda p, t, k=k: K.in_top_k(p, t, k),
                    lambda p, t, k=k: _in_top_k(p, t, k),
                    [real("a3", kind), index("a", 3, dtype)],
                    FLOATS,
                    always("bool"),
                )


def _in_top_k(scores, targets, k):
    found = []
    for row, target in zip(scores, targets):
        valid = 0 <= target < len(row)
        own = row[target] if valid else np.nan
        found.append(bool(valid and np.isfinite(own) and (row > own).sum() < k))
    return np.array(found, dtype=bool)


def _along(x, vector, axis):
    return vector.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _normalization():
    for axes, axis, epsilon in (("abc", -1, 1e-3), ("abcd", 1, 0.1), ("Ab", 1, 1e-2), ("abcde", -1, 1.0)):
        letter = axes[axis]

        def normalized(x, m, v, b, g, axis=axis, epsilon=epsilon):
            m, v, b, g = (_along(x, vector, axis) for vector in (m, v, b, g))
            return (x - m) / np.sqrt(v + epsilon) * g + b

        vectors = [real(letter), real(letter, "positive"), real(letter), real(letter)]
        yield Case(
            "batch_normalization",
            f"axis {axis} of {axes}, epsilon {epsilon}",
            lambda x, m, v, b, g, axis=axis, e=epsilon: K.batch_normalization(x, m, v, b, g, axis, e),
            normalized,
            [real(axes), *vectors],
            scale=8,
        )
        yield Case(
            "batch_normalization",
            f"axis {axis} of {axes}, neither beta nor gamma",
            lambda x, m, v, axis=axis: K.batch_normalization(x, m, v, None, None, axis),
            lambda x, m, v, axis=axis, f=normalized: f(x, m, v, 0 * m, 0 * m + 1, axis, 1e-3),
            [real(axes), *vectors[:2]],
            scale=8,
        )
    yield Case(
        "batch_normalization",
        "parameters of all axes",
        lambda x, m, v, b, g: K.batch_normalization(x, m, v, b, g),
        lambda x, m, v, b, g: (x - m) / np.sqrt(v + 1e-3) * g + b,
        [real("ab"), real("1b"), real("1b", "positive"), real("1b"), real("1b")],
        scale=8,
    )
    for axes, reduced, left in (
        ("ab", [0], "b"),
        ("abcd", [0, 1, 2], "d"),
        ("abcd", [0, 2, 3], "b"),
        ("abc", (0, -2), "c"),
    ):

        def trained(x, g, b, reduced=tuple(reduced)):
            mean, variance = x.mean(reduced, keepdims=True), x.var(reduced, keepdims=True)
            g, b = (vector.reshape(mean.shape) for vector in (g, b))
            normal = (x - mean) / np.sqrt(variance + 0.1) * g + b
            return normal, mean.squeeze(reduced), variance.squeeze(reduced)

        yield Case(
            "normalize_batch_in_training",
            f"over {reduced} of {axes}",
            lambda x, g, b, reduced=reduced: K.normalize_batch_in_training(x, g, b, reduced, epsilon=0.1),
            trained,
            [real(axes), real(left), real(left)],
            scale=16,
        )
    yield Case(
        "normalize_batch_in_training",
        "neither beta nor gamma",
        lambda x: K.normalize_batch_in_training(x, None, None, [0], epsilon=0.1),
        lambda x: ((x - x.mean(0)) / np.sqrt(x.var(0) + 0.1), x.mean(0), x.var(0)),
        [real("ab")],
        scale=16,
    )
    for axes, axis in (("ab", -1), ("abc", 1), ("aB", 0), ("ab", None)):
        yield Case(
            "l2_normalize",
            f"axis {axis} of {axes}",
            lambda x, axis=axis: K.l2_normalize(x, axis),
            lambda x, axis=axis: x / np.sqrt(np.maximum((x * x).sum(axis, keepdims=True), 1e-12)),
            [real(axes, "positive")],
            scale=4,
        )
    yield Case("l2_normalize", "zeros", lambda x: K.l2_normalize(x * 0, 1), lambda x: x * 0, [real("ab")])
    for layout, axes, bias in (
        ("channels_last", "ab", "b"),
        ("channels_last", "abc", "c"),
        ("channels_last", "abcd", "d"),
        ("channels_last", "abcde", "e"),
        ("channels_first", "ab", "b"),
        ("channels_first", "abc", "b"),
        ("channels_first", "abcd", "b"),
        ("channels_first", "abcde", "b"),
    ):
        axis = axes.index(bias)
        yield Case(
            "bias_add",
            f"{layout}, {axes} and {bias}",
            lambda x, b, layout=layout: K.bias_add(x, b, layout),
            lambda x, b, axis=axis: x + _along(x, b, axis),
            [real(axes), real(bias)],
        )
        if len(axes) > 2:
            rest = axes[1:] if layout == "channels_last" else axes[2:] + axes[1]
            yield Case(
                "bias_add",
                f"{layout}, {axes} and {rest}",
                lambda x, b, layout=layout: K.bias_add(x, b, layout),
                # As in Keras: with channels first, the bias is reshaped and not transposed.
                lambda x, b, first=(layout == "channels_first"): x + (b.reshape(x.shape[1:]) if first else b),
                [real(axes), real(rest)],
            )


def _dropped(level, shape=None):
    """Whether elements, or whole parts of them, are 0 or scaled up, and none is anything else."""

    def expected(x):
        def right(value):
            whole = x / (1 - level)
            kept = np.isclose(value, whole, rtol=8e-3, atol=4e-3)
            if not np.all(kept | (value == 0)):
                return False
            # Along an axis of length 1 of the mask, all share one fate.
            axes = tuple(i for i, n in enumerate(shape or ()) if n == 1)
            solid = np.where(x == 0, True, kept)
            dead = np.where(x == 0, True, value == 0)
            return bool(np.all(solid.all(axes) | dead.all(axes))) if axes else True

        return right

    return expected


def _dropout():
    for level in (0.3, 0.5, 0.9):
        yield Case(
            "dropout", f"level {level}", lambda x, p=level: K.dropout(x, p), _dropped(level), [real("A99", "positive")]
        )
    yield Case("dropout", "level 0", lambda x: K.dropout(x, 0.0), lambda x: x, [real("ab")])
    for shape in ((None, 1), (None, 1, None), (1, 1, None)):
        axes = "abc"[: len(shape)]
        yield Case(
            "dropout",
            f"a mask of {shape}",
            lambda x, shape=shape: K.dropout(x, 0.4, noise_shape=shape, seed=3),
            _dropped(0.4, shape),
            [real(axes, "positive")],
        )


CASES = [*_products(), *_softmax(), *_losses(), *_normalization(), *_dropout()]
