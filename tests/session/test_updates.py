"""Updates: outputs and new values are computed from the old values, all of them commit at once or none does."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.processes import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk.engines.storage import Journal, Slots
from kernelk.errors import ArgumentError, DTypeError, EngineError, ShapeError, UpdateError
from kernelk.session.current import current


def test_outputs_show_the_values_from_before(backend: str) -> None:
    v = K.variable([1.0, 2.0])
    step = K.function([], [v, v * 10.0, K.sum(v)], [K.update(v, v + 1.0)])
    plain, scaled, total = step([])
    assert plain.tolist() == [1.0, 2.0]
    assert scaled.tolist() == [10.0, 20.0]
    assert total == 3.0
    assert K.get_value(v).tolist() == [2.0, 3.0]
    assert step([])[0].tolist() == [2.0, 3.0]
    assert K.get_value(v).tolist() == [3.0, 4.0]


def test_a_metrics_result_has_the_calls_own_batch_in_it(backend: str) -> None:
    total, count, x = K.variable(0.0), K.variable(0.0), K.placeholder((None,))
    result = K.identity(total / count)
    result._is_metric = True
    updates = [K.update_add(total, K.sum(x)), K.update_add(count, K.cast(K.size(x), "float32"))]
    step = K.function([x], [result, total, K.identity(total / count)], updates)
    assert [float(value) for value in step([[1.0, 2.0]])[:2]] == [1.5, 0.0]
    assert [float(value) for value in step([[6.0]])] == [3.0, 3.0, 1.5]
    unchanged = K.identity(total * 2.0)
    unchanged._is_metric = True
    assert K.function([], [unchanged])([])[0] == 18.0


def test_what_comes_after_an_update_reads_its_new_value(backend: str) -> None:
    """As Keras's metrics are written: the result comes after the updates, which are performed with it."""
    total, count, x = K.variable(0.0), K.variable(0.0), K.placeholder((None,))
    added = K.update_add(total, K.sum(x))
    with K.control_dependencies([added]):
        counted = K.update_add(count, K.cast(K.size(x), "float32"))
    with K.control_dependencies(counted):
        mean = total / count
    outside = total / count
    assert mean.eval({x: [1.0, 3.0]}) == 2.0
    assert K.batch_get_value([total, count]) == [4.0, 2.0]
    # Also where they are updates of the call anyway: once.
    for updates in ((), (added,), [counted], [added, counted]):
        K.batch_set_value([(total, 4.0), (count, 2.0)])
        assert K.function([x], [mean * 2.0, outside], updates)([[8.0, 0.0]]) == [6.0, 2.0]
        assert K.batch_get_value([total, count]) == [12.0, 4.0]


def test_updates_of_one_variable_that_come_after_each_other(backend: str) -> None:
    v = K.variable([1.0, 2.0])
    first = K.update(v, v * 10.0)
    with K.control_dependencies([first]):
        second = K.update_add(v, 1.0)
        with K.control_dependencies([second]):
            third = K.update(v, v * 2.0)
            with K.control_dependencies([third]):
                seen = v - 0.0
            with K.control_dependencies(None):
                before = v - 0.0
        middle = v - 0.0
    for updates in ((), [first], [second, first, third]):
        K.set_value(v, [1.0, 2.0])
        last, at_first = K.function([], [seen, before], updates)([])
        assert last.tolist() == [22.0, 42.0]
        assert at_first.tolist() == [1.0, 2.0]
        assert K.get_value(v).tolist() == [22.0, 42.0]
    K.set_value(v, [1.0, 2.0])
    assert K.eval(middle).tolist() == [10.0, 20.0]
    assert K.get_value(v).tolist() == [10.0, 20.0]
    with pytest.raises(ArgumentError, match="control_dependencies: str isn't a tensor"), K.control_dependencies(["v"]):
        pass


def test_several_increments_come_before(backend: str) -> None:
    a = K.variable(1.0)
    one, ten = K.update_add(a, 1.0), K.update_add(a, 10.0)
    with K.control_dependencies([one, ten]):
        together = a * 1.0
    with K.control_dependencies([one]), K.control_dependencies([ten]):
        nested = a * 1.0
        five, seven = K.update_add(a, 5.0), K.update_add(a, 7.0)
    for seen in (together, nested):
        K.set_value(a, 1.0)
        assert K.eval(seen) == 12.0
        assert K.get_value(a) == 12.0
    K.set_value(a, 1.0)
    assert K.function([], [a], [five, seven])([]) == [1.0]
    assert K.get_value(a) == 24.0
    K.set_value(a, 1.0)
    K.function([], [], [one, one, K.update_add(a, 0.0)])([])
    assert K.get_value(a) == 2.0
    with pytest.raises(UpdateError, match="is set twice"), K.control_dependencies([K.update(a, 1.0), K.update(a, 2.0)]):
        pass
    assert K.eval(a * 1.0) == 2.0


def test_what_returns_its_operand_comes_after_as_well(backend: str) -> None:
    a = K.variable(0.0)
    with K.control_dependencies([K.update_add(a, 1.0)]):
        seen = [K.mean(a), K.sum(a), K.cast(a, "float32"), a[...], K.to_dense(a), K.in_train_phase(a, a, training=1)]
    for number, y in enumerate(seen, 1):
        assert K.eval(y) == number
        assert K.get_value(a) == number


def test_graphs_from_outside_are_not_changed_inside(backend: str) -> None:
    """What is written out only when a program is made reads the variable as its own line did."""
    a = K.variable([1.0, 2.0])
    update = K.update_add(a, 1.0)
    outside = K.softmax(a) + K.softplus(a)
    wanted = K.eval(outside)
    with K.control_dependencies([update]):
        assert_close(K.eval(outside), wanted)
        (slope,) = K.gradients(K.sum(outside * outside), [a])
        call = K.function([], [outside, slope], [K.update_add(a, 0.0)])
        inside = a * 1.0
        assert K.eval(inside).tolist() == [2.0, 3.0]
    K.set_value(a, [1.0, 2.0])
    plain = K.eval(K.gradients(K.sum(outside * outside), [a])[0])
    value, found = call([])
    assert_close(value, wanted)
    assert_close(found, plain)


def test_an_update_before_a_step_of_a_loop_is_performed_once(backend: str) -> None:
    a = K.variable(1.0)
    update = K.update_add(a, 1.0)

    def step(x: Any) -> Any:
        with K.control_dependencies([update]):
            return x * a

    assert K.eval(K.map_fn(step, K.variable([1.0, 2.0]))).tolist() == [2.0, 4.0]
    assert K.get_value(a) == 2.0


def test_a_swap_does_not_perform_updates_again(spare: str) -> None:
    kernelk.set_backend("numpy")
    v = K.variable(1.0)
    with K.control_dependencies([K.update_add(v, 1.0)]):
        seen = v * 1.0
    assert K.eval(seen) == 2.0
    report = kernelk.set_backend(spare)
    assert report.reevaluated == []
    assert K.get_value(v) == 2.0


def test_what_comes_after_an_update_in_a_loop_and_in_a_gradient(backend: str) -> None:
    w, x = K.variable(2.0), K.placeholder((None,))
    with K.control_dependencies([K.update(w, w + 1.0)]):
        total = K.foldl(lambda a, e: a + e * w, x, K.constant(0.0))
        loss = K.sum(x) * w
    assert total.eval({x: [1.0, 2.0]}) == 9.0
    assert K.get_value(w) == 3.0
    (slope,) = K.gradients(loss, [w])
    assert slope.eval({x: [1.0, 2.0]}) == 3.0


def test_all_updates_start_from_the_same_values(backend: str) -> None:
    a, b, c = K.variable([1.0, 2.0]), K.variable([30.0, 40.0]), K.variable(5.0)
    swap = K.function([], [], [K.update(a, b), (b, a), K.update(c, K.sum(a) + K.sum(b) + c)])
    assert swap([]) == []
    assert K.get_value(a).tolist() == [30.0, 40.0]
    assert K.get_value(b).tolist() == [1.0, 2.0]
    assert K.get_value(c) == 78.0
    swap([])
    assert K.get_value(a).tolist() == [1.0, 2.0]
    assert K.get_value(c) == 151.0


def test_a_new_value_may_be_an_output_or_another_variables_value(backend: str) -> None:
    a, b = K.variable(np.arange(6).reshape(2, 3)), K.variable(np.zeros((2, 3)))
    fed = K.placeholder((2, 3))
    fresh = a * 2.0 + fed
    step = K.function([fed], [fresh, fed], [K.update(a, fresh), K.update(b, fed)])
    data = np.ones((2, 3), "float32")
    first, echoed = step([data])
    data[...] = 99
    first[...] = -1
    echoed[...] = -1
    assert K.get_value(a).tolist() == [[1, 3, 5], [7, 9, 11]]
    assert K.get_value(b).tolist() == [[1, 1, 1], [1, 1, 1]]
    step([np.zeros((2, 3))])
    assert K.get_value(a).tolist() == [[2, 6, 10], [14, 18, 22]]
    assert K.get_value(b).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_one_value_for_two_variables_leaves_them_independent(backend: str) -> None:
    a, b = K.variable([0.0, 0.0]), K.variable([0.0, 0.0])
    fed = K.placeholder((2,))
    shared = fed * 2.0
    K.function([fed], [], [K.update(a, shared), K.update(b, shared)])([np.array([1.0, 2.0])])
    K.function([], [], [K.update_add(a, K.constant([1.0, 1.0]))])([])
    assert K.get_value(a).tolist() == [3.0, 5.0]
    assert K.get_value(b).tolist() == [2.0, 4.0]


def test_increments_compose_in_order(backend: str) -> None:
    v = K.variable([10.0, 20.0])
    updates = [K.update_add(v, 1.0), K.update_sub(v, v * 0.5), K.update_add(v, [2.0, 3.0])]
    K.function([], [], updates)([])
    assert K.get_value(v).tolist() == [10 + 1 - 5 + 2, 20 + 1 - 10 + 3]


def test_an_increment_adds_to_a_plain_update(backend: str) -> None:
    v = K.variable([10.0])
    K.function([], [], [K.update(v, v * 3.0), K.update_add(v, v)])([])
    assert K.get_value(v).tolist() == [40.0]


def test_an_increment_before_a_plain_update_is_refused() -> None:
    v = K.variable([10.0])
    with pytest.raises(UpdateError, match="set twice"):
        K.function([], [], [K.update_add(v, v), K.update(v, v * 3.0)])


def test_two_plain_updates_of_one_variable_are_refused() -> None:
    v = K.variable(1.0, name="weight")
    with pytest.raises(UpdateError, match=r"'weight' is set twice .*test_updates\.py, line \d+"):
        K.function([], [v], [K.update(v, v + 1.0), (v, v * 2.0)])
    assert K.get_value(v) == 1.0


def test_moving_average(backend: str) -> None:
    average, value = K.variable([1.0, 2.0]), K.variable([11.0, 22.0])
    step = K.function([], [], [K.moving_average_update(average, value, 0.9)])
    step([])
    assert_close(K.get_value(average), np.array([2.0, 4.0], "float32"))
    step([])
    assert_close(K.get_value(average), np.array([2.9, 5.8], "float32"))


def test_moving_averages_compose(backend: str) -> None:
    average = K.variable([8.0])
    K.function([], [], [K.moving_average_update(average, [0.0], 0.5), K.moving_average_update(average, [4.0], 0.75)])(
        []
    )
    assert K.get_value(average).tolist() == [8.0 - 4.0 - 1.0]


def test_eval_performs_an_update(backend: str) -> None:
    v = K.variable([1.0, 2.0])
    assert K.eval(K.update(v, v * 5.0)).tolist() == [5.0, 10.0]
    assert K.get_value(v).tolist() == [5.0, 10.0]
    assert K.eval(K.update_add(v, [1.0, 1.0])).tolist() == [6.0, 11.0]
    assert K.eval(K.update_sub(v, 1.0)).tolist() == [5.0, 10.0]
    assert K.get_value(v).tolist() == [5.0, 10.0]


def test_eval_of_an_update_runs_it_again_each_time(backend: str) -> None:
    v = K.variable(0.0)
    node = K.update_add(v, 1.0)
    assert [float(K.eval(node)) for _ in range(3)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float16", "float64", "bool"])
def test_updates_of_every_kind_of_dtype(backend: str, dtype: str) -> None:
    v = K.variable(np.array([1, 0, 1]), dtype=dtype)
    if dtype == "bool":
        step = K.function([], [v], [K.update(v, K.equal(v, False))])
        assert step([])[0].dtype == bool
        assert K.get_value(v).tolist() == [False, True, False]
        return
    step = K.function([], [v], [K.update_add(v, v + 1)])
    assert step([])[0].dtype == dtype
    assert K.get_value(v).dtype == dtype
    assert K.get_value(v).tolist() == [3, 1, 3]


def test_a_scalar_increment_spreads(backend: str) -> None:
    v = K.variable(np.zeros((2, 3)))
    K.eval(K.update_add(v, 2.0))
    K.eval(K.update_add(v, np.ones((1, 3), "float32")))
    assert K.get_value(v).tolist() == [[3.0] * 3] * 2


def test_a_plain_update_needs_the_whole_shape() -> None:
    v = K.variable(np.zeros((2, 3)), name="w")
    with pytest.raises(ShapeError, match=r"'w' has shape \(2, 3\), but the value has \(3,\)"):
        K.update(v, K.constant([1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 4\)"):
        K.update_add(v, np.zeros((2, 4), "float32"))
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 2, 3\)"):
        K.update_add(v, np.zeros((3, 2, 3), "float32"))


def test_an_unknown_length_that_turns_out_wrong_changes_nothing(backend: str) -> None:
    v = K.variable([1.0, 2.0, 3.0])
    fed = K.placeholder((None,))
    step = K.function([fed], [K.sum(fed)], [K.update(v, fed * 2.0)])
    step([np.array([1.0, 1.0, 1.0])])
    assert K.get_value(v).tolist() == [2.0, 2.0, 2.0]
    for wrong in ([1.0, 2.0], [5.0]):
        with pytest.raises((EngineError, ShapeError)):
            step([np.array(wrong)])
        assert K.get_value(v).tolist() == [2.0, 2.0, 2.0]
    step([np.array([3.0, 1.0, 1.0])])
    assert K.get_value(v).tolist() == [6.0, 2.0, 2.0]


def test_an_arrays_floats_take_the_variables_dtype(backend: str) -> None:
    new, v = np.array([0.1, 1e300]), K.variable([1.0, 2.0])
    steps = [
        (K.update(v, new), [0.1, np.inf]),
        (K.update(v, [3.0, 4.0]), [3.0, 4.0]),
        (K.update_add(v, new[:1]), [3.1, 4.1]),
        (K.update_sub(v, np.array([0.5, 1])), [2.6, 3.1]),
        (K.moving_average_update(v, np.array([1.6, 2.1]), 0.5), [2.1, 2.6]),
    ]
    for step, wanted in steps:
        K.eval(step)
        assert_close(K.get_value(v), np.array(wanted, "float32"))
    integer = K.variable([1, 2], dtype="int32")
    for update in (K.update, K.update_add, K.update_sub):
        with pytest.raises(DTypeError, match="is int32, but the value is float32"):
            update(integer, np.array([0.5, 1.0]))


def test_precision_is_never_lost_in_silence() -> None:
    v = K.variable([1.0], name="w")
    with pytest.raises(DTypeError, match=r"'w' is float32, but the value is float64.*K\.cast\(value, 'float32'\)"):
        K.update(v, K.constant([1.0], dtype="float64"))
    integer = K.variable([1], dtype="int32")
    with pytest.raises(DTypeError):
        K.update_add(integer, K.constant([0.5]))


def test_only_variables_are_updated() -> None:
    with pytest.raises(UpdateError, match="expected a variable"):
        K.update(K.placeholder((2,)), [1.0, 2.0])
    with pytest.raises(UpdateError, match="expected a variable"):
        K.update_add(K.constant(1.0), 1.0)
    with pytest.raises(UpdateError, match="expected a variable"):
        K.moving_average_update(3.0, 1.0, 0.9)
    with pytest.raises(UpdateError, match=r"must be made by K\.update"):
        K.function([], [], [K.constant(1.0)])


def test_set_value_is_all_or_nothing(backend: str) -> None:
    a, b = K.variable([1.0, 2.0]), K.variable([3.0])
    with pytest.raises(ShapeError, match=r"shape \(1,\), but the value has \(2,\)"):
        K.batch_set_value([(a, [9.0, 9.0]), (b, [9.0, 9.0])])
    assert K.batch_get_value([a, b])[0].tolist() == [1.0, 2.0]
    K.batch_set_value([(a, [9.0, 8.0]), (b, np.array([7.0]))])
    assert [x.tolist() for x in K.batch_get_value([a, b])] == [[9.0, 8.0], [7.0]]
    assert K.eval(K.sum(a) + K.sum(b)) == 24.0


def test_set_value_of_a_tensor_names_the_command_for_its_value() -> None:
    v, x = K.variable([1.0], name="v"), K.variable([2.0]) + 1.0
    with pytest.raises(ArgumentError, match="the value for variable 'v' is a tensor") as caught:
        K.set_value(v, x)
    assert caught.value.next_step == "K.set_value(x, K.eval(tensor))"
    with pytest.raises(ArgumentError, match="isn't known") as within:
        K.set_value(v, [x])
    assert within.value.next_step.startswith("use K.eval(tensor)")
    assert K.get_value(v).tolist() == [1.0]


def test_set_value_checks_the_dtype() -> None:
    v = K.variable([1], dtype="uint8", name="n")
    for wrong in ([256], [-1], [0.5], [np.nan]):
        with pytest.raises(DTypeError, match="doesn't fit into uint8"):
            K.set_value(v, wrong)
    with pytest.raises(DTypeError, match="isn't an array of numbers"):
        K.set_value(v, ["one"])
    assert K.get_value(v).tolist() == [1]


def test_get_value_is_a_copy(backend: str) -> None:
    v = K.variable([1.0, 2.0])
    seen = K.get_value(v)
    seen[...] = 7
    assert K.get_value(v).tolist() == [1.0, 2.0]
    K.eval(K.update_add(v, 1.0))
    assert seen.tolist() == [7.0, 7.0]
    assert K.eval(v).tolist() == [2.0, 3.0]


def test_the_callers_array_is_copied() -> None:
    array = np.array([1.0, 2.0], "float32")
    v, c = K.variable(array), K.constant(array)
    array[...] = 5
    assert K.get_value(v).tolist() == [1.0, 2.0]
    assert K.eval(c).tolist() == [1.0, 2.0]
    K.set_value(v, array)
    array[...] = 6
    assert K.get_value(v).tolist() == [5.0, 5.0]


def test_a_failed_call_changes_no_variable(spare: str) -> None:
    a, b, n = K.variable([1.0]), K.variable([2.0]), K.placeholder((None, None))
    broken = K.function([n], [], [K.update(a, a + 1.0), K.update(b, K.reshape(n, (1,)))])
    for name in ("numpy", "spare"):
        kernelk.set_backend(name)
        with pytest.raises((EngineError, ShapeError)):
            broken([np.zeros((2, 2))])
        assert [K.get_value(x).tolist() for x in (a, b)] == [[1.0], [2.0]]
    broken([[[5.0]]])
    assert [K.get_value(x).tolist() for x in (a, b)] == [[2.0], [5.0]]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("engine", ["numpy", "spare"])
def test_ctrl_c_in_a_commit_cuts_nothing_in_two(
    engine: str, place: int, spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernelk.set_backend(engine)
    a, b = K.variable([1.0]), K.variable([2.0])
    step = K.function([], [], [K.update_add(a, 1.0), K.update_add(b, 1.0)])
    step([])
    real, count = Journal.settle, itertools.count()

    def settle(self: Journal) -> None:
        if self.unsettled and not next(count):
            for slots, active, version, holder in self.unsettled[:place]:
                slots.active, slots.version, slots.holder = active, version, holder
            os.kill(os.getpid(), signal.SIGINT)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "settle", settle)
        with pytest.raises(KeyboardInterrupt):
            step([])
    assert next(count)
    after = [K.get_value(x).tolist() for x in (a, b)]
    assert after in ([[2.0], [3.0]], [[3.0], [4.0]])
    step([])
    assert [K.get_value(x).tolist() for x in (a, b)] == [[after[0][0] + 1], [after[1][0] + 1]]


def test_ctrl_c_just_before_a_commit_forgets_the_call(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    v = K.variable([1.0])
    step = K.function([], [v], [K.update_add(v, 1.0)])
    step([])
    host = current().host("numpy")
    real = type(host).request

    def request(self: Any, message: dict[str, Any]) -> dict[str, Any]:
        reply = real(self, message)
        if message["do"] == "run":
            signal.raise_signal(signal.SIGINT)
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(type(host), "request", request)
        with pytest.raises(KeyboardInterrupt):
            step([])
    assert K.get_value(v).tolist() == [2.0]
    assert step([])[0].tolist() == [2.0]
    assert K.get_value(v).tolist() == [3.0]


def test_ctrl_c_in_batch_set_value_sets_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = [K.variable(float(i)) for i in range(3)]
    real, count = Slots.write, itertools.count()

    def write(self: Slots, value: Any) -> None:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        real(self, value)

    monkeypatch.setattr(Slots, "write", write)
    with pytest.raises(KeyboardInterrupt):
        K.batch_set_value([(v, 9.0) for v in variables])
    assert [float(x) for x in K.batch_get_value(variables)] in ([0.0, 1.0, 2.0], [9.0, 9.0, 9.0])


def test_two_interrupts_end_the_worker_and_the_next_call_has_a_new_one(
    spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernelk.set_backend("spare")
    a, b = K.variable([1.0]), K.variable([2.0])
    step = K.function([], [a + b], [K.update_add(a, 1.0), K.update_add(b, 1.0)])
    real = Journal.settle

    def settle(self: Journal) -> None:
        if self.unsettled:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        real(self)

    pid = current().host().pid
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "settle", settle)
        with pytest.raises(KeyboardInterrupt):
            step([])
    assert [K.get_value(x).tolist() for x in (a, b)] == [[2.0], [3.0]]
    assert step([])[0].tolist() == [5.0]
    assert current().host().pid != pid
    assert [K.get_value(x).tolist() for x in (a, b)] == [[3.0], [4.0]]


@settings(max_examples=60)
@given(data=st.data())
def test_random_lists_of_updates(data: st.DataObject) -> None:
    """Any mixture of updates gives what the same arithmetic on the old values gives."""
    count = data.draw(st.integers(1, 4))
    start = [np.array(data.draw(st.lists(st.integers(-9, 9), min_size=2, max_size=2)), "float64") for _ in range(count)]
    variables = [K.variable(x, dtype="float64") for x in start]
    wanted = [x.copy() for x in start]
    updates, assigned = [], set()
    for _ in range(data.draw(st.integers(0, 6))):
        target, source = (data.draw(st.integers(0, count - 1)) for _ in range(2))
        kind = data.draw(st.sampled_from(["add", "sub", "average", "assign"]))
        if kind == "assign" and target in assigned | {t for t, _ in updates}:
            continue
        if kind == "assign":
            updates.append((target, K.update(variables[target], variables[source] * 2.0)))
            wanted[target] = start[source] * 2
            assigned.add(target)
        elif kind == "average":
            updates.append((target, K.moving_average_update(variables[target], variables[source], 0.5)))
            wanted[target] = wanted[target] + (start[source] - start[target]) * 0.5
        else:
            make = K.update_add if kind == "add" else K.update_sub
            updates.append((target, make(variables[target], variables[source])))
            wanted[target] = wanted[target] + (start[source] if kind == "add" else -start[source])
    outputs = K.function([], variables, [node for _, node in updates])([])
    for before, after, was, value in zip(outputs, K.batch_get_value(variables), start, wanted):
        np.testing.assert_array_equal(before, was)
        np.testing.assert_array_equal(after, value)


def test_versions_count_commits() -> None:
    v, w = K.variable(1.0), K.variable(1.0)
    step = K.function([], [v + w], [K.update_add(v, 1.0)])
    before = (v.slots.version, w.slots.version)
    step([])
    assert (v.slots.version - before[0], w.slots.version - before[1]) == (1, 0)
    session = current()
    host = session.ready_host()
    program = step.program_for(session, host.ops, 0, [])
    with session.lock:
        assert session.calls.execute(host, program, [], commit=False)[0] == 3.0
    assert K.get_value(v) == 2.0
    assert step([])[0] == 3.0
    assert K.get_value(v) == 3.0


def test_level_of_dropout_is_checked() -> None:
    with pytest.raises(ArgumentError):
        K.dropout(K.variable([1.0]), 1.0)


def test_contexts_are_those_of_a_thread(backend: str) -> None:
    ones, tens = K.variable(1.0, name="ones"), K.variable(10.0, name="tens")
    entered = threading.Barrier(2, timeout=PATIENCE)
    left = threading.Barrier(2, timeout=PATIENCE)
    made: dict[str, list[Any]] = {}

    def record(name: str, variable: Any, leaves_first: bool) -> None:
        with K.name_scope(name):
            with K.control_dependencies([K.update_add(variable, variable)]):
                entered.wait()
                inside = K.identity(ones + tens, name="inside")
                if not leaves_first:
                    left.wait()
                    left.wait()
                late = K.identity(ones + tens, name="late")
            if leaves_first:
                left.wait()
            after = K.identity(ones + tens, name="after")
            made[name] = [inside, late, after]
        if leaves_first:
            left.wait()

    threads = [
        threading.Thread(target=record, args=("first", ones, True)),
        threading.Thread(target=record, args=("second", tens, False)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, tensors in made.items():
        assert [x.name for x in tensors] == [f"{name}/inside", f"{name}/late", f"{name}/after"]
    assert K.identity(ones, name="outside").name == "outside"
    values = {}
    for name, tensors in made.items():
        K.batch_set_value([(ones, 1.0), (tens, 10.0)])
        values[name] = [float(K.eval(x)) for x in tensors]
    assert values == {"first": [12.0, 14.0, 14.0], "second": [21.0, 41.0, 41.0]}
