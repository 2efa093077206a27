"""Names and habits of numpy, TensorFlow 1 and Keras: what works, and the line that says what there is instead."""

from __future__ import annotations

import operator
import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close, same_bits
from helpers.engines import require_installed

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError
from kernelk.ops.elsewhere import _IN_K, _ON_K, _ON_TENSORS, _REDUCTIONS

W = np.array([[1.5, -2.0], [3.0, 0.25]], "float32")


@pytest.mark.parametrize(
    "ufunc",
    [np.add, np.subtract, np.multiply, np.divide, np.floor_divide, np.remainder, np.less, np.less_equal, np.greater]
    + [np.greater_equal, np.matmul],
)
def test_numpys_operators_take_tensors(ufunc: Any) -> None:
    kernelk.set_backend("numpy")
    w, other = K.variable(W), np.array([[0.5, 2.0], [-1.0, 4.0]], "float32")
    assert same_bits(K.eval(ufunc(w, other)), ufunc(W, other))
    assert same_bits(K.eval(ufunc(other, w)), ufunc(other, W))
    if ufunc is not np.matmul:
        assert same_bits(K.eval(ufunc(np.float64(0.5), w)), ufunc(np.float32(0.5), W))


def test_equality_stays_identity() -> None:
    w = K.variable(W)
    assert operator.eq(w, W) is operator.eq(W, w) is operator.eq(np.float32(1), w) is False
    assert operator.ne(w, W) is operator.ne(W, w) is True
    assert w in [w]


@pytest.mark.parametrize("name", sorted(_IN_K))
def test_numpys_functions_name_ks(name: str) -> None:
    w, ufunc = K.variable(W), getattr(np, name)
    assert callable(getattr(K, _IN_K[name]))
    if name in ("equal", "not_equal"):
        return
    with pytest.raises(
        ArgumentError, match=rf"np\.{name} takes arrays, and .* is a tensor; next: K\.{_IN_K[name]}\(x\)"
    ):
        ufunc(*[w] * ufunc.nin)


@pytest.mark.parametrize("name", sorted(set(_REDUCTIONS.values())))
def test_numpys_reductions_name_ks(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"np\.{name} takes arrays, and .* is a tensor; next: K\.{name}\(x\)"):
        getattr(np, name)(K.variable(W))


def test_what_numpy_cannot_do_with_tensors() -> None:
    w, array = K.variable(W, name="w"), W.copy()
    with pytest.raises(ArgumentError, match=r"an array can't be changed in place by the tensor 'w'; next: a = a \+ x"):
        array += w
    assert same_bits(array, W)
    with pytest.raises(ArgumentError, match=r"np\.arctan takes arrays, and 'w' is a tensor; next: K\.eval\(x\)"):
        np.arctan(w)
    with pytest.raises(ArgumentError, match=r"np\.add takes arrays"):
        np.add.outer(w, w)


@pytest.mark.parametrize("name", sorted(_ON_TENSORS))
def test_attributes_of_other_tensors_name_ks(name: str) -> None:
    for x in (K.variable(W), K.placeholder((2,)), K.constant(1.0) + 1.0):
        assert not hasattr(x, name)
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; next: {re.escape(_ON_TENSORS[name])}"):
            getattr(x, name)
    for called in re.findall(r"K\.(\w+)", _ON_TENSORS[name]):
        assert called in K.__all__


def test_an_unknown_attribute_is_pythons_own_error() -> None:
    with pytest.raises(AttributeError, match="'Variable' object has no attribute 'nothing'"):
        K.variable(1.0).nothing  # noqa: B018


@pytest.mark.parametrize("name", sorted(_ON_K))
def test_names_of_one_engine_on_k(name: str) -> None:
    assert not hasattr(K, name)
    with pytest.raises(AttributeError, match=rf"K has no '{name}': .*; next: "):
        getattr(K, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        K.nothing  # noqa: B018


def test_formats_elements_and_feeds_that_do_not_work() -> None:
    w = K.variable(W, name="w")
    assert f"{w}" == repr(w)
    with pytest.raises(ArgumentError, match=r"no value to be written as '\.2f'; next: f'\{K\.eval\(x\):\.2f\}'"):
        f"{w:.2f}"
    with pytest.raises(ArgumentError, match=r"an element of 'w' can't be set; next: K\.set_value"):
        operator.setitem(w, 0, 1.0)
    with pytest.raises(ArgumentError, match="feeds map placeholders to arrays, not list"):
        w.eval([W])
    assert same_bits(K.get_value(w), W)


def test_functions_of_other_libraries_name_ks_and_the_users_line() -> None:
    require_installed("tensorflow")
    tensorflow: Any = import_module("tensorflow")
    w = K.variable(W, name="w")
    for call, said in {
        lambda: tensorflow.reduce_mean(w, axis=0): r"tensorflow's reduce_mean .* tensor 'w'; next: use K\.mean",
        lambda: tensorflow.concat([w, w], 0): r"tensorflow's concat .* next: use K\.concatenate",
        lambda: tensorflow.where(w): r"tensorflow's where .* next: use K\.switch",
        lambda: tensorflow.gather(w, [0]): r"tensorflow's gather .* next: use K\.gather",
        lambda: tensorflow.nn.elu(w): r"tensorflow's elu .* next: use K\.elu",
        lambda: tensorflow.linalg.det(w): r"tensorflow's .* next: use functions of K, or K\.eval",
        lambda: np.linalg.norm(w): r"numpy's norm .* next: use functions of K, or K\.eval",
        lambda: np.asarray(w): r"the array of the symbolic tensor 'w' isn't known",
    }.items():
        with pytest.raises(ArgumentError, match=said) as raised:
            call()
        assert "(test_elsewhere.py, line" in raised.value._raised_in()


def test_dtypes_of_frameworks() -> None:
    for engine in ("torch", "tensorflow"):
        require_installed(engine)
    torch, tensorflow = import_module("torch"), import_module("tensorflow")
    for name in ("float16", "float32", "int64", "bool", "uint8"):
        for module in (torch, tensorflow):
            assert K.cast(K.variable(W), getattr(module, name)).dtype == name
    for module in (torch, tensorflow):
        with pytest.raises(DTypeError, match="bfloat16"):
            K.variable(W, dtype=module.bfloat16)
    assert_close(K.eval(K.constant(W, dtype=torch.float64)), W.astype("float64"))
