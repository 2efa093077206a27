"""Cases of what goes step by step: recurrence, maps and folds over rows, connectionist temporal classification."""

from __future__ import annotations

from itertools import product

import numpy as np

from kernelk import backend as K

from .case import FLOATS, INTEGERS, ONE, Case, Operand, always, label, real


def rnn(step, x, states, backwards=False, mask=None):
    """(last output, all outputs, states): a masked step repeats the output before it and keeps the states.

    Of no steps the last output is zeros, and the states are the initial ones.
    """
    outputs, before = [], None
    order = range(x.shape[1])[::-1] if backwards else range(x.shape[1])
    for t in order:
        output, new = step(x[:, t], states)
        if mask is not None:
            held = mask[:, t].reshape(-1)
            output = _where(held, output, np.zeros_like(output) if before is None else before)
            new = [_where(held, a, b) for a, b in zip(new, states)]
        outputs.append(output)
        states, before = new, output
    if not outputs:
        like = step(np.zeros((x.shape[0], *x.shape[2:]), x.dtype), states)[0]
        return (np.zeros_like(like), np.zeros_like(like)[:, None][:, :0], *states)
    return (outputs[-1], np.stack(outputs, 1), *states)


def _where(rows, a, b):
    return np.where(rows.reshape(rows.shape + (1,) * (a.ndim - 1)), a, b)


def _simple(tanh, dot):
    def step(x, states, w, u):
        h = tanh(dot(x, w) + dot(states[0], u))
        return h, [h]

    return step


def _flat(made):
    last, outputs, states = made
    return (last, outputs, *states)


def _recurrences():
    cells = [real("nti"), real("nh"), real("ih"), real("hh")]
    k_step, step = _simple(lambda x: K.tanh(x), lambda x, y: K.dot(x, y)), _simple(np.tanh, np.dot)
    for backwards, unroll in product((False, True), (False, True)):
        yield Case(
            "rnn",
            f"go_backwards={backwards}, unroll={unroll}",
            lambda x, h, w, u, b=backwards, r=unroll: _flat(
                K.rnn(lambda i, s: k_step(i, s, w, u), x, [h], go_backwards=b, unroll=r)
            ),
            lambda x, h, w, u, b=backwards: rnn(lambda i, s: step(i, s, w, u), x, [h], b),
            cells,
            known="t" if unroll else "",
            scale=16,
        )
        for axes in ("nt", "nt1"):
            yield Case(
                "rnn",
                f"a mask of {len(axes)} axes, go_backwards={backwards}, unroll={unroll}",
                lambda x, h, w, u, m, b=backwards, r=unroll: _flat(
                    K.rnn(lambda i, s: k_step(i, s, w, u), x, [h], go_backwards=b, mask=m, unroll=r)
                ),
                lambda x, h, w, u, m, b=backwards: rnn(lambda i, s: step(i, s, w, u), x, [h], b, m),
                [*cells, real(axes, dtype="bool")],
                known="t" if unroll else "",
                scale=16,
            )
    yield Case(
        "rnn",
        "one step",
        lambda x, h, w, u: _flat(K.rnn(lambda i, s: k_step(i, s, w, u), x, [h])),
        lambda x, h, w, u: rnn(lambda i, s: step(i, s, w, u), x, [h]),
        [real("n1i"), *cells[1:]],
        scale=16,
    )
    # A time axis of no length, known or not, and one that may have none.
    for steps, axis, backwards in product(("no steps", "some steps or none"), "0oT", (False, True)):
        if (steps == "no steps") != (axis in "0o"):
            continue
        inputs = [real(f"n{axis}i"), *cells[1:]]
        note = f"{steps}{', known' if axis == '0' else ''}, go_backwards={backwards}"
        yield Case(
            "rnn",
            note,
            lambda x, h, w, u, b=backwards: _flat(K.rnn(lambda i, s: k_step(i, s, w, u), x, [h], go_backwards=b)),
            lambda x, h, w, u, b=backwards: rnn(lambda i, s: step(i, s, w, u), x, [h], b),
            inputs,
            scale=16,
        )
        for axes in (f"n{axis}", f"n{axis}1"):
            yield Case(
                "rnn",
                f"{note}, a mask of {len(axes)} axes",
                lambda x, h, w, u, m, b=backwards: _flat(
                    K.rnn(lambda i, s: k_step(i, s, w, u), x, [h], go_backwards=b, mask=m)
                ),
                lambda x, h, w, u, m, b=backwards: rnn(lambda i, s: step(i, s, w, u), x, [h], b, m),
                [*inputs, real(axes, dtype="bool")],
                scale=16,
            )
    for axis in "0o":
        yield Case(
            "rnn",
            f"no steps{', known' if axis == '0' else ''}, several states, constants, an empty batch",
            lambda x, a, b, c: _flat(
                K.rnn(lambda i, s: (i * s[2], [s[0] + i, K.expand_dims(i) - s[1]]), x, [a, b], constants=[c])
            ),
            lambda x, a, b, c: rnn(lambda i, s: (i * c, [s[0] + i, i[..., None] - s[1]]), x, [a, b]),
            [real(f"N{axis}i"), real("Ni"), real("Niz"), real("i")],
        )
        yield Case(
            "rnn",
            f"no steps{', known' if axis == '0' else ''}, integers and bools",
            lambda x, s: _flat(K.rnn(lambda i, s: (K.greater(i, s[0]), [s[0] + i]), x, [s])),
            lambda x, s: rnn(lambda i, s: (i > s[0], [s[0] + i]), x, [s]),
            [real(f"n{axis}i"), real("ni")],
            ("int32", "int64", "uint8"),
            lambda dtype: ("bool", "bool", dtype),
        )
    yield Case(
        "rnn",
        "constants",
        lambda x, h, w, u: _flat(K.rnn(lambda i, s: k_step(i, s[:1], s[1], s[2]), x, [h], constants=[w, u])),
        lambda x, h, w, u: rnn(lambda i, s: step(i, s, w, u), x, [h]),
        cells,
        scale=16,
    )
    yield Case(
        "rnn",
        "several states of several ranks",
        lambda x, a, b: _flat(
            K.rnn(lambda i, s: (i + s[0], [s[0] * 0.5 + i, K.maximum(s[1], K.expand_dims(i))]), x, [a, b])
        ),
        lambda x, a, b: rnn(lambda i, s: (i + s[0], [s[0] * 0.5 + i, np.maximum(s[1], i[..., None])]), x, [a, b]),
        [real("nti"), real("ni"), real("niz")],
        scale=8,
    )
    yield Case(
        "rnn",
        "inputs of four axes",
        lambda x, h: _flat(K.rnn(lambda i, s: (i * s[0], [i + s[0]]), x, [h])),
        lambda x, h: rnn(lambda i, s: (i * s[0], [i + s[0]]), x, [h]),
        [real("ntij"), real("nij")],
        scale=16,
    )
    yield Case(
        "rnn",
        "its input_length given",
        lambda x, h: _flat(K.rnn(lambda i, s: (i + s[0], [i + s[0]]), x, [h], input_length=3)),
        lambda x, h: rnn(lambda i, s: (i + s[0], [i + s[0]]), x, [h]),
        [real("n3i"), real("ni")],
        scale=8,
    )


def _folds():
    yield Case(
        "map_fn",
        "rows",
        lambda x: K.map_fn(lambda row: K.sum(row) * 2 + row, x),
        lambda x: x.sum(1, keepdims=True) * 2 + x,
        [real("ab")],
        (*FLOATS, "int32", "int64"),
        scale=8,
    )
    yield Case(
        "map_fn",
        "to scalars",
        lambda x: K.map_fn(lambda row: K.max(row), x),
        lambda x: x.max(1),
        [real("ab")],
        (*FLOATS, *INTEGERS),
    )
    yield Case(
        "map_fn",
        "two at once, another dtype",
        lambda x, y: K.map_fn(lambda rows: rows[0] > rows[1], (x, y), dtype="bool"),
        lambda x, y: x > y,
        [real("ab"), real("ab")],
        gives=always("bool"),
    )
    yield Case(
        "map_fn",
        "no rows",
        lambda x: K.map_fn(lambda row: row * 2, x),
        lambda x: x * 2,
        [real("0b")],
        (*FLOATS, "int32"),
    )
    for function, order in (("foldl", 1), ("foldr", -1)):

        def folded(x, start=None, order=order):
            rows = list(x[::order])
            made = rows.pop(0) if start is None else start
            for row in rows:
                made = made * 0.5 + row
            return made

        yield Case(
            function,
            "from the first",
            lambda x, function=function: getattr(K, function)(lambda made, row: made * 0.5 + row, x),
            folded,
            [real("ab")],
            scale=8,
        )
        yield Case(
            function,
            "from a start",
            lambda x, s, function=function: getattr(K, function)(lambda made, row: made * 0.5 + row, x, initializer=s),
            folded,
            [real("Ab"), real("b")],
            scale=8,
        )
        yield Case(
            function,
            "integers",
            lambda x, s, function=function: getattr(K, function)(lambda made, row: made * 3 - row, x, s),
            lambda x, s, order=order: _integers(x, s, order),
            [real("ab"), real("b")],
            ("int32", "int64", "int8", "uint8"),
        )


def _integers(x, start, order):
    for row in x[::order]:
        start = start * np.asarray(3, start.dtype) - row
    return start


# --- connectionist temporal classification: the last class is the blank ---------------------------------------------


def _logs(y, eps=1e-7):
    logs = np.log(y + eps)
    return logs - np.log(np.exp(logs).sum(-1, keepdims=True))


def _paths(logs):
    """The log probability of each sequence of labels, summed over the ways to write it."""
    found: dict[tuple[int, ...], float] = {}
    blank = logs.shape[-1] - 1
    for way in product(range(logs.shape[-1]), repeat=len(logs)):
        labels = tuple(c for i, c in enumerate(way) if c != blank and (i == 0 or c != way[i - 1]))
        score = sum(logs[i, c] for i, c in enumerate(way))
        found[labels] = np.logaddexp(found.get(labels, -np.inf), score)
    return found


def _cost(labels, y, lengths, label_lengths):
    made = []
    for row, p, n, m in zip(labels, _logs(y), lengths.reshape(-1), label_lengths.reshape(-1)):
        made.append([-_paths(p[:n])[tuple(row[:m])]])
    return np.array(made)


def _softmax(y):
    powers = np.exp(y - y.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _decoded(rows):
    """A definition of decoded labels: rows, each filled up with -1."""

    def right(value):
        return all([c for c in got if c != -1] == list(row) for got, row in zip(value.tolist(), rows))

    return right


def _greedy(y, lengths):
    rows, scores = [], []
    for p, n in zip(y, lengths.reshape(-1)):
        way = p[:n].argmax(-1)
        rows.append([int(c) for i, c in enumerate(way) if c != p.shape[-1] - 1 and (i == 0 or c != way[i - 1])])
        scores.append([-np.log(p[:n].max(-1) + 1e-7).sum()])
    return _decoded(rows), np.array(scores)


def _beam(y, lengths):
    rows = []
    for p, n in zip(_logs(y), lengths.reshape(-1)):
        found = _paths(p[:n])
        best = max(found.values())
        # Of equally probable ones the first in the order of labels, whatever the last bits of a logarithm say.
        rows.append(list(min(labels for labels, score in found.items() if score >= best - 1e-5 * max(1, abs(best)))))
    return _decoded(rows)


def _ctc():
    fed = [real("254"), Operand("21", "steps", "int32", 6)]
    yield Case(
        "ctc_batch_cost",
        "labels of several lengths",
        lambda y, n: K.ctc_batch_cost(
            K.constant([[0, 1], [2, 0]], dtype="int32"), K.softmax(y), n, K.constant([[2], [1]], dtype="int32")
        ),
        lambda y, n: _cost(np.array([[0, 1], [2, 0]]), _softmax(y), n, np.array([2, 1])),
        fed,
        ("float32",),
        scale=64,
    )
    yield Case(
        "ctc_batch_cost",
        "a label twice",
        lambda y, n: K.ctc_batch_cost(
            K.constant([[1, 1], [2, 2]], dtype="int32"), K.softmax(y), n, K.constant([[2], [1]], dtype="int32")
        ),
        lambda y, n: _cost(np.array([[1, 1], [2, 2]]), _softmax(y), n, np.array([2, 1])),
        fed,
        ("float32",),
        scale=64,
    )
    vector = Operand("2", "steps", "int32", 6)
    yield Case(
        "ctc_decode",
        "greedy",
        lambda y, n: (lambda made: (made[0][0], made[1]))(K.ctc_decode(K.softmax(y), n)),
        lambda y, n: _greedy(_softmax(y), n),
        [fed[0], vector],
        ONE,
        always(("int64", "float32")),
        scale=16,
    )
    yield Case(
        "ctc_decode",
        "beam search",
        lambda y, n: K.ctc_decode(K.softmax(y), n, greedy=False, beam_width=100)[0][0],
        lambda y, n: _beam(_softmax(y), n),
        [fed[0], vector],
        ONE,
        always("int64"),
    )
    yield Case(
        "ctc_label_dense_to_sparse",
        "made dense again",
        lambda labels, n: K.to_dense(K.ctc_label_dense_to_sparse(labels, n)),
        lambda labels, n: np.where(np.arange(3) < n[:, None], labels, 0),
        [label("43", 9), Operand("4", "steps", "int32", 4)],
        ONE,
        always("int32"),
    )


CASES = [*_recurrences(), *_folds(), *_ctc()]
