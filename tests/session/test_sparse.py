"""Sparse input: matrices of scipy.sparse as feeds and initial values; marked, and computed densely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.processes import run_script
from scipy import sparse

from kernelk import backend as K
from kernelk.errors import ArgumentError, FeedError, ShapeError

DENSE = np.array([[0, 0, 7, 0, 0], [0, 2, 0, 0, 3], [0, 0, 0, 0, 0], [0, 0, 0, 4, 0]], np.float32)
FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_taken(form: str) -> None:
    matrix = sparse.coo_matrix(DENSE).asformat(form)
    v = K.variable(matrix)
    assert K.is_sparse(v)
    assert (v.shape, v.dtype) == ((4, 5), "float32")
    assert np.array_equal(K.get_value(v), DENSE)
    x = K.placeholder((None, 5), sparse=True)
    assert np.array_equal((x * 2.0).eval({x: matrix}), DENSE * 2)
    assert np.array_equal(K.eval(v), DENSE)
    array = sparse.coo_array(DENSE).asformat(form)
    assert np.array_equal(x.eval({x: array}), DENSE)


def test_dot_of_a_sparse_and_a_dense_one(backend: str) -> None:
    weights = np.random.RandomState(0).rand(5, 3)
    product = K.dot(K.variable(sparse.csr_matrix(DENSE)), K.variable(weights))
    assert not K.is_sparse(product)
    assert_close(K.eval(product), DENSE @ weights.astype(np.float32))
    x = K.placeholder((None, 5), sparse=True)
    call = K.function([x], [K.dot(x, K.variable(weights)), K.gradients(K.sum(K.square(x)), [x])[0]])
    for fed in (sparse.csr_matrix(DENSE), DENSE, sparse.csr_matrix(DENSE[:2])):
        dense = fed.toarray() if sparse.issparse(fed) else fed
        got, slope = call([fed])
        assert_close(got, dense @ weights.astype(np.float32))
        assert_close(slope, 2 * dense)


def test_concatenate_stays_sparse_where_all_are(backend: str) -> None:
    a, b = K.variable(sparse.csr_matrix(DENSE)), K.variable(sparse.coo_matrix(DENSE), dtype="float64")
    joined = K.concatenate([a, b])
    assert K.is_sparse(joined)
    assert K.is_sparse(K.concatenate([joined, a]))
    assert np.array_equal(K.eval(joined), np.hstack([DENSE, DENSE]).astype(np.float64))
    assert not K.is_sparse(K.concatenate([a, K.variable(DENSE)], axis=0))


def test_to_dense_is_dense() -> None:
    x = K.placeholder((None, 5), sparse=True)
    dense = K.to_dense(x)
    assert K.is_sparse(x)
    assert not K.is_sparse(dense)
    assert K.to_dense(dense) is dense
    assert np.array_equal(dense.eval({x: sparse.csr_matrix(DENSE)}), DENSE)
    v = K.variable(DENSE)
    assert not K.is_sparse(v)
    assert K.to_dense(v) is v
    assert K.is_sparse(K.print_tensor(x))
    with pytest.raises(ArgumentError, match="isn't a tensor"):
        K.is_sparse(sparse.csr_matrix(DENSE))


def test_set_value_takes_a_matrix_whole_or_not_at_all() -> None:
    v = K.variable(sparse.csr_matrix(DENSE))
    K.set_value(v, sparse.csr_matrix(2 * DENSE))
    with pytest.raises(ShapeError, match=r"\(4, 5\), but the value has \(2, 5\)"):
        K.set_value(v, sparse.csr_matrix(DENSE[:2]))
    assert np.array_equal(K.get_value(v), 2 * DENSE)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = sparse.csr_matrix(DENSE)
    x = K.placeholder((None, 5), name="x")
    with pytest.raises(FeedError, match=r"placeholder 'x' .* was fed a sparse matrix; next: .*sparse=True"):
        x.eval({x: matrix})
    y = K.placeholder((None, 4), name="y", sparse=True)
    with pytest.raises(FeedError, match=r"has shape \(None, 4\), but was fed \(4, 5\)"):
        y.eval({y: matrix})
    with pytest.raises(ArgumentError, match=r"K\.variable\(matrix\)"):
        K.constant(matrix)

    def too_large(self: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(type(matrix), "toarray", too_large)
    with pytest.raises(ArgumentError, match="too large as a dense array"):
        K.variable(matrix)


def test_scipy_is_not_needed_by_kernelk() -> None:
    """What makes a matrix is `tocoo` and `toarray`."""
    result = run_script(
        "import sys\nimport numpy as np\nfrom kernelk import backend as K\n"
        "class Matrix:\n    shape = (1, 2)\n    def toarray(self):\n        return np.ones((1, 2))\n"
        "    def tocoo(self):\n        return self\n"
        "v = K.variable(Matrix())\nresult = [K.is_sparse(v), K.eval(v * 3.0).tolist(), 'scipy' in sys.modules]",
        KERNELK_BACKEND="numpy",
    )
    assert result == [True, [[3.0, 3.0]], False]
