"""Theano and PyTorch compute a variable plus a scalar times a product by one call of BLAS; no NaN is lost by it."""

from __future__ import annotations

import pytest
from helpers.engines import require_installed
from helpers.processes import run_script

# In a session of its own: this one's Theano runs without a compiler, and so without calls of BLAS.
CODE = r"""
import re
import numpy as np, kernelk
from kernelk import backend as K, config
config.LIMITS.build_beside = False
engine, pattern = {engine!r}, {pattern!r}
# A new value of v by the product d; s is 0 and t 0.5: whether Theano and PyTorch have BLAS make it.
forms = [
    (lambda v, d, s, t: v - 0.01 * d, True, True),
    (lambda v, d, s, t: 0.9 * v - 0.01 * d, True, True),
    (lambda v, d, s, t: d * 0.01 - v * 0.9, True, True),
    (lambda v, d, s, t: v + d, True, True),
    (lambda v, d, s, t: t * v - d * t, False, True),
    # BLAS makes nothing of a product times 0, which is NaN where the product is; nor of a variable times 0.
    (lambda v, d, s, t: v - 0.0 * d, False, False),
    (lambda v, d, s, t: v - s * d, False, True),
    (lambda v, d, s, t: s * (v / s) + 0.5 * d, False, False),
    (lambda v, d, s, t: s * v + 0.5 * d, False, True),
    (lambda v, d, s, t: v - (d + d), False, False),
    (lambda v, d, s, t: v - K.dot(v, d) * 0.1, False, False),
    (lambda v, d, s, t: v - K.dot(d, K.relu(v)) * 0.1, True, True),
]
result = []
for dtype, kept in (("float32", False), ("float64", True)):
    config.LIMITS.commit_bytes = 0 if kept else 1 << 20
    found = {{}}
    for name in (engine, "numpy"):
        kernelk.set_backend(name)
        a, b = K.placeholder((None, 4), dtype=dtype), K.placeholder((None, 4), dtype=dtype)
        s, t = K.variable(0.0, dtype), K.variable(0.5, dtype)
        variables, updates = [], []
        for number, (form, *_) in enumerate(forms):
            v, w = (K.variable(np.random.RandomState(i).randn(4, 4), dtype=dtype) for i in (1, 2))
            # Each has its own product, which nothing else needs.
            new = form(v, K.dot(K.transpose(a + float(number)), b), s, t)
            updates += [K.update(v, new), K.update_add(w, new)]
            variables += [v, w]
        step = K.function([a, b], [K.sum(b)], updates)
        found[name] = []
        for rows, bad in ((3, 0.0), (0, 0.0), (7, 0.0), (2, np.inf), (2, np.nan)):
            draws = np.random.RandomState(rows)
            fed = draws.randn(rows, 4), draws.randn(rows, 4)
            fed[0][:1, 0] += bad
            K.batch_set_value([(v, np.random.RandomState(i).randn(4, 4)) for i, v in enumerate(variables)])
            found[name] += [*step(list(fed)), *K.batch_get_value(variables)]
        if name == engine:
            calls = set(re.findall(pattern, kernelk.show(step).text(engine)))
            result.append(len(calls) - sum(by_blas[engine == "torch"] for _, *by_blas in forms))
    most = 1e-12 if kept else 1e-4
    pairs = list(zip(found[engine], found["numpy"]))
    different = [i for i, (x, y) in enumerate(pairs) if not np.allclose(x, y, rtol=most, atol=most, equal_nan=True)]
    result += [different, any(np.isnan(x).any() for x, _ in pairs)]
"""


@pytest.mark.parametrize(
    ("engine", "pattern"),
    [
        pytest.param("theano", r"Gemm\{\w+\} \[id (\w+)\]", marks=pytest.mark.compiled_theano),
        ("torch", r"(v\d+) = torch\.addmm"),
    ],
)
def test_new_values_are_those_of_numpy(engine: str, pattern: str) -> None:
    require_installed(engine)
    assert run_script(CODE.format(engine=engine, pattern=pattern)) == [0, [], True] * 2
