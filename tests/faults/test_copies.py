"""A copy of a variable is a variable of its own; what can't leave its session says what to send instead."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelk
from kernelk import backend as K
from kernelk.errors import CopyRefusedError, KernelKError, StaleTensorError
from kernelk.session import Session
from kernelk.session.current import current, entered


def positive(x: Any) -> Any:
    return K.maximum(x, 0)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_variable_of_its_own(copied: Callable[[Any], Any]) -> None:
    w = K.variable([1, 7], dtype="int64", name="w", constraint=positive)
    w.trainable, w._keras_shape = False, (2,)
    made = copied(w)
    assert (made.name, made.dtype, made.shape, made.constraint) == ("w", "int64", (2,), positive)
    assert (made.trainable, made._keras_shape, made.sparse) == (False, (2,), False)
    assert (made is not w, made.slots is not w.slots, made.uid != w.uid) == (True, True, True)
    K.set_value(w, [3, 4])
    K.eval(K.update_add(made, [1, 1]))
    assert (K.get_value(w).tolist(), K.get_value(made).tolist()) == ([3, 4], [2, 8])


def test_a_copy_outlives_what_it_is_a_copy_of() -> None:
    w = K.variable(np.full(1000, 7.0))
    made = copy.copy(w)
    del w
    gc.collect()
    others = [K.variable(np.zeros(1000)) for _ in range(4)]
    assert K.get_value(made).tolist() == [7.0] * 1000
    assert len(others) == 4


def test_a_deep_copy_of_a_list_has_each_variable_once() -> None:
    w, b = K.variable([1.0]), K.variable([2.0])
    w.partner, b.partner = b, w
    weights = copy.deepcopy([w, b, w, {"w": w}])
    assert (weights[0] is weights[2], weights[0] is weights[3]["w"], weights[0] is w) == (True, True, False)
    assert (weights[0].partner is weights[1], weights[1].partner is weights[0]) == (True, True)
    assert [K.get_value(x).tolist() for x in weights[:2]] == [[1.0], [2.0]]


def test_a_copied_tensor_or_function_is_the_same_one() -> None:
    w, x = K.variable([1.0, 2.0]), K.placeholder((2,))
    y = K.sum(w * x)
    call = K.function([x], [y], updates=[K.update_add(w, x)])
    for one in (x, y, call, K.update(w, x), K.constant(1.0), K.learning_phase()):
        assert copy.copy(one) is one
        assert copy.deepcopy([one, one]) == [one, one]
    assert call([[1.0, 1.0]]) == [3.0]


def test_a_copy_of_what_is_stale_is_refused() -> None:
    w = K.variable([1.0])
    with entered(Session()), pytest.raises(StaleTensorError):
        copy.copy(w)
    K.clear_session()
    with pytest.raises(StaleTensorError, match="run the cells that make it again"):
        copy.deepcopy(w)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_belongs_to_a_session_is_pickled(protocol: int) -> None:
    w, x = K.variable([1.0], name="w"), K.placeholder((1,), name="x")
    variable = "the array K.get_value(w), or write kernelk.save and read kernelk.load there"
    tensor = "its value, the array K.eval(y)"
    for one, kind, sent in [
        (w, "a variable ('w')", variable),
        (x * w, "a tensor ('", tensor),
        (K.update(w, x), "a tensor ('", tensor),
    ]:
        with pytest.raises(CopyRefusedError) as refused:
            pickle.dumps([one], protocol)
        line = str(refused.value)
        assert line.startswith(kind)
        assert f"; next: send {sent}" in line
    with pytest.raises(
        CopyRefusedError, match=r"a function .*; next: send arrays, and make the function in the process"
    ):
        pickle.dumps({"f": K.function([x], [x * w])}, protocol)
    for refuse in (lambda one: pickle.dumps(one, protocol), copy.copy, copy.deepcopy):
        with pytest.raises(CopyRefusedError, match="next: "):
            refuse(current())


@pytest.mark.parametrize("loky", [False, True])
def test_what_sends_arguments_to_processes_says_so(loky: bool) -> None:
    kernelk.set_backend("numpy")
    w = K.variable([1.0], name="w")
    if not loky:
        process = multiprocessing.get_context("spawn").Process(target=print, args=(w,))
        with pytest.raises(KernelKError, match=r"K\.get_value"):
            process.start()
        return
    joblib = pytest.importorskip("joblib", reason="joblib isn't in this environment")
    with pytest.raises(Exception, match="pickle") as refused:
        joblib.Parallel(2)(joblib.delayed(abs)(x) for x in (w, w))
    assert "K.get_value" in f"{refused.value}{refused.value.__cause__}"
