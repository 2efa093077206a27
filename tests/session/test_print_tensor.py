"""`K.print_tensor`: printed by the kernel, in the cell that called, after the call; an alias in the graph otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.engines import ENGINES, activate
from helpers.notebooks import run_cells

from kernelk import backend as K
from kernelk.errors import KernelKError
from kernelk.session.current import current


@pytest.mark.parametrize("engine", ENGINES)
def test_prints_in_the_cell_that_calls(engine: str) -> None:
    activate(engine)
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\n"
            "x = K.placeholder((None, 2))\nv = K.variable([1.0, 2.0])\n"
            "y = K.print_tensor(x * v, 'product:')\nz = K.print_tensor(K.sum(y), 'sum: ')\n"
            "f = K.function([x], [z + 1.0], [K.update_add(v, 1.0)])",
            "got = f([[[1, 2], [3, 4]]])",
            "got = z.eval({x: [[1, 1]]})",
            "got = K.eval(K.print_tensor(K.ones((2,))))\nprint(got.tolist())",
        ],
        KERNELK_BACKEND=engine,
    )
    assert [cell["error"] for cell in cells] == [None] * 5, cells
    assert cells[1]["out"] == ""
    assert cells[2]["out"] == "product: [[1. 4.]\n          [3. 8.]]\nsum: 16.\n"
    assert cells[3]["out"] == "product: [[2. 3.]]\nsum: 5.\n"
    assert cells[4]["out"] == "[1. 1.]\n[1.0, 1.0]\n"


def test_it_is_an_alias_through_which_gradients_flow(backend: str, capsys: Any) -> None:
    v = K.variable([1.0, 2.0, 3.0])
    printed = K.print_tensor(v * v, "squares")
    assert (printed.shape, printed.dtype) == ((3,), "float32")
    (gradient,) = K.gradients(K.sum(printed * v), [v])
    before = current().host().compile_count
    assert K.eval(gradient).tolist() == [3.0, 12.0, 27.0]
    assert capsys.readouterr().out == "squares [1. 4. 9.]\n"
    # The message is no part of what is compiled.
    K.eval(K.print_tensor(v * 5.0, "once"))
    count = current().host().compile_count
    assert count > before
    K.eval(K.print_tensor(v * 5.0, "again"))
    assert current().host().compile_count == count


def test_only_what_is_needed_is_printed_and_once(capsys: Any) -> None:
    v = K.variable([2.0])
    seen = K.print_tensor(v, "seen")
    K.print_tensor(v, "unused")
    phase = K.in_train_phase(K.print_tensor(v * 2.0, "train"), K.print_tensor(v * 3.0, "test"))
    call = K.function([K.learning_phase()], [seen + seen, phase, K.print_tensor(seen, "twice")])
    assert [x.tolist() for x in call([0])] == [[4.0], [6.0], [2.0]]
    assert capsys.readouterr().out == "seen [2.]\ntest [6.]\ntwice [2.]\n"
    call([1])
    assert capsys.readouterr().out == "seen [2.]\ntrain [4.]\ntwice [2.]\n"


def test_updates_print_what_they_need(backend: str, capsys: Any) -> None:
    v = K.variable([1.0])
    call = K.function([], [], [K.update(v, K.print_tensor(v + 1.0, "new"))])
    assert call([]) == []
    assert K.get_value(v).tolist() == [2.0]
    K.eval(K.update_add(v, K.print_tensor(v, "more")))
    assert K.get_value(v).tolist() == [4.0]
    assert capsys.readouterr().out == "new [2.]\nmore [2.]\n"


def test_lengths_print_too(backend: str, capsys: Any) -> None:
    x = K.placeholder((None, 2))
    n = K.print_tensor(K.sum(K.cast(x, "int32")), "length")
    made = K.arange(n)
    assert made.eval({x: [[1, 2]]}).tolist() == [0, 1, 2]
    assert capsys.readouterr().out == "length 3\n"
    call = K.function([x], [made, n])
    assert [value.tolist() for value in call([[[0, 2]]])] == [[0, 1], 2]
    assert capsys.readouterr().out == "length 2\n"


def test_large_values_are_summarised_and_small_ones_whole(capsys: Any) -> None:
    K.eval(K.print_tensor(K.variable(np.zeros((300, 300))), "zeros"))
    out = capsys.readouterr().out
    assert "..." in out
    assert len(out) < 600
    K.eval(K.print_tensor(K.variable([True, False], dtype="bool"), "bools:\n"))
    assert capsys.readouterr().out == "bools:\n[ True False]\n"


def test_a_call_that_fails_prints_nothing(backend: str, capsys: Any) -> None:
    a, b = K.placeholder((None,)), K.placeholder((None,))
    call = K.function([a, b], [K.print_tensor(a, "a") + b])
    with pytest.raises(KernelKError):
        call([[1.0, 2.0], [1.0, 2.0, 3.0]])
    assert capsys.readouterr().out == ""
    call([[1.0], [1.0]])
    assert capsys.readouterr().out == "a [1.]\n"


def test_a_swap_evaluates_again_without_printing(every_engine: list[str], capsys: Any) -> None:
    import kernelk

    v = K.variable([1.0, 2.0])
    y = K.print_tensor(v * 2.0, "y")
    K.eval(y)
    assert capsys.readouterr().out == "y [2. 4.]\n"
    report = kernelk.set_backend("theano")
    assert [entry.difference for entry in report.reevaluated] == [0.0]
    assert capsys.readouterr().out == ""


def rnn(unroll: bool) -> Any:
    """A function of a recurrence that goes backwards and prints a weight, an output and a state at each step."""
    x, w = K.placeholder((2, 3, 2)), K.variable(np.ones((2, 2)))

    def step(element: Any, states: list[Any]) -> Any:
        h = K.print_tensor(K.dot(element, K.print_tensor(w, "w")) + states[0], "h")
        return h, [K.print_tensor(h * 0.5, "state")]

    last, outputs, (state,) = K.rnn(step, x, [K.zeros((2, 2))], go_backwards=True, unroll=unroll)
    (slope,) = K.gradients(K.sum(K.square(outputs)), w)
    return K.function([x], [K.print_tensor(K.sum(last) + K.sum(state), "sum"), slope])


def test_a_step_prints_once_a_step_in_order(backend: str, capsys: Any) -> None:
    fed = np.arange(12.0).reshape(2, 3, 2)
    looped, unrolled = rnn(unroll=False), rnn(unroll=True)
    total, slope = looped([fed])
    seen = capsys.readouterr().out
    assert seen.startswith("w [[1. 1.]\n   [1. 1.]]\nh [[ 9.  9.]\n   [21. 21.]]\nstate [[ 4.5  4.5]\n")
    assert [line.split()[0] for line in seen.splitlines() if line[0] != " "] == ["w", "h", "state"] * 3 + ["sum"]
    for got, wanted in zip((total, slope), unrolled([fed])):
        assert_close(got, wanted)
    # Without loops each step has its own nodes: what a user sees is the same.
    assert capsys.readouterr().out == seen


def test_loops_in_loops_print_in_order(backend: str, capsys: Any) -> None:
    rows = K.variable([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])

    def total(row: Any) -> Any:
        made = K.foldr(lambda made, x: K.print_tensor(made + x, "so far"), row, 0.0)
        # Nothing that varies: printed at each step all the same.
        return K.print_tensor(made, "row") + K.print_tensor(K.foldl(lambda a, b: K.print_tensor(a + b, "ones"), [1, 1]))

    assert K.eval(K.map_fn(total, rows)).tolist() == [5.0, 14.0]
    first = "so far 2.\nso far 3.\nso far 3.\nrow 3.\nones 2\n2\n"
    second = "so far 5.\nso far 9.\nso far 12.\nrow 12.\nones 2\n2\n"
    assert capsys.readouterr().out == first + second


def test_a_loop_prints_what_is_needed_of_it(backend: str, capsys: Any) -> None:
    x = K.placeholder((None, 2))
    seen = K.map_fn(lambda row: (K.print_tensor(row * 2, "twice"), K.print_tensor(row * 3, "thrice")), x)
    assert seen[1].eval({x: [[1, 2], [3, 4]]}).tolist() == [[3, 6], [9, 12]]
    assert capsys.readouterr().out == "thrice [3. 6.]\nthrice [ 9. 12.]\n"
    assert seen[0].eval({x: np.zeros((0, 2))}).shape == (0, 2)
    assert capsys.readouterr().out == ""
    # What is made before the loop, and only used in it, is printed once.
    before = K.print_tensor(K.sum(x), "sum")
    assert K.map_fn(lambda row: row * before, x).eval({x: [[1, 2], [3, 4]]}).tolist() == [[10, 20], [30, 40]]
    assert capsys.readouterr().out == "sum 10.\n"


def test_the_gradient_of_a_loop_prints_once(backend: str, capsys: Any) -> None:
    x, scale = K.placeholder((2,)), K.variable(3.0)
    cubes = K.map_fn(lambda e: K.print_tensor(K.print_tensor(scale, "scale") * e, "scaled") ** 3, x)
    slopes = K.gradients(K.sum(cubes), [x, scale])
    got = K.function([x], slopes)([[1.0, 2.0]])
    assert [value.tolist() for value in got] == [[81.0, 324.0], 243.0]
    assert capsys.readouterr().out == "scale 3.\nscaled 3.\nscale 3.\nscaled 6.\n"


def test_steps_of_a_length_that_is_printed(backend: str, capsys: Any) -> None:
    x = K.placeholder((None,), dtype="int32")
    length = K.foldl(lambda a, b: K.print_tensor(a + b, "length"), x, 0)
    assert K.arange(length).eval({x: [1, 2]}).tolist() == [0, 1, 2]
    assert capsys.readouterr().out == "length 1\nlength 3\n"
