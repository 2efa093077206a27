"""Theano computes a variable plus a constant times a product by one call of BLAS, and no NaN is lost by it."""

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
# A new value of v by the product d: whether BLAS makes it.
forms = [
    (lambda v, d, s: v - 0.01 * d, True),
    (lambda v, d, s: 0.9 * v - 0.01 * d, True),
    (lambda v, d, s: d * 0.01 - v * 0.9, True),
    (lambda v, d, s: v + d, True),
    # BLAS makes nothing of a product times 0, which is NaN where the product is.
    (lambda v, d, s: v - 0.0 * d, False),
    (lambda v, d, s: v - s * d, False),
    (lambda v, d, s: v - (d + d), False),
]
result = []
for dtype, kept in (("float32", False), ("float64", True)):
    config.LIMITS.commit_bytes = 0 if kept else 1 << 20
    found = {}
    for name in ("theano", "numpy"):
        kernelk.set_backend(name)
        a, b, s = K.placeholder((None, 5), dtype=dtype), K.placeholder((None, 4), dtype=dtype), K.variable(0.0, dtype)
        variables, updates = [], []
        for number, (form, _) in enumerate(forms):
            v, w = (K.variable(np.random.RandomState(i).randn(5, 4), dtype=dtype) for i in (1, 2))
            # Each has its own product, which nothing else needs.
            new = form(v, K.dot(K.transpose(a + float(number)), b), s)
            updates += [K.update(v, new), K.update_add(w, new)]
            variables += [v, w]
        step = K.function([a, b], [K.sum(b)], updates)
        found[name] = []
        for rows, bad in ((3, 0.0), (0, 0.0), (7, 0.0), (2, np.inf), (2, np.nan)):
            draws = np.random.RandomState(rows)
            fed = draws.randn(rows, 5), draws.randn(rows, 4)
            fed[0][:1, 0] += bad
            found[name] += [*step(list(fed)), *K.batch_get_value(variables)]
        if name == "theano":
            calls = set(re.findall(r"Gemm\{\w+\} \[id (\w+)\]", kernelk.show(step).text("theano")))
            result.append(len(calls) == sum(by_blas for _, by_blas in forms))
    most = 1e-13 if kept else 1e-5
    pairs = list(zip(found["theano"], found["numpy"]))
    result.append(all(np.allclose(x, y, rtol=most, atol=most, equal_nan=True) for x, y in pairs))
    result.append(any(np.isnan(x).any() for x, _ in pairs) and len(found["theano"]) == len(found["numpy"]))
"""


@pytest.mark.compiled_theano
def test_new_values_are_those_of_numpy() -> None:
    require_installed("theano")
    assert run_script(CODE) == [True] * 6
