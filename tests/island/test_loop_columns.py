"""Loops whose columns are computed apart: what they give, and that no step cuts or joins columns any more."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk.backends.loop_columns import FEWEST_ROWS, MOST_COLUMNS, MOST_PARTS, NARROWEST, in_columns
from kernelk.backends.lowering import Program
from kernelk.backends.numpy.backend import NumpyBackend
from kernelk.backends.staged import compile_program

ROWS, WIDTH, GATES, STEPS = FEWEST_ROWS, NARROWEST, 4, 3
NARROW, WIDE = (ROWS, WIDTH), (ROWS, GATES * WIDTH)
# The leaves of the bodies here, in order.
LEAVES = {
    "x": NARROW,
    "z": WIDE,
    "h": NARROW,
    "c": NARROW,
    "u": (WIDTH, GATES * WIDTH),
    "v": (GATES * WIDTH, WIDTH),
    "bias": (1, GATES * WIDTH),
    "row": (GATES * WIDTH,),
    "column": (ROWS, 1),
    "factor": (),
    "noise": WIDE,
    "fixed": (WIDTH, GATES * WIDTH),
    "fixed row": (1, GATES * WIDTH),
}
SEQUENCES, STATES, INPUTS, DRAWS = 2, 2, 10, 1
NUMBERS = {name: number for number, name in enumerate(LEAVES)}


class Loops(NumpyBackend):
    """numpy, with the loops of an engine that has none."""

    ops: ClassVar = {name: call for name, call in NumpyBackend.ops.items() if name not in ("scan", "item")}
    slow_columns = True
    joins_results = True


class Body:
    """A loop's body as it is written, an instruction after another."""

    def __init__(self, dtype: str = "float64", leaves: dict[str, tuple[int, ...]] = LEAVES) -> None:
        self.dtype = dtype
        self.shapes = list(leaves.values())
        self.instructions: list[list[Any]] = []

    def add(self, op: str, inputs: list[int], shape: tuple[int, ...], **attrs: Any) -> int:
        self.instructions.append([op, inputs, attrs, self.dtype, list(shape)])
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def by_element(self, op: str, *inputs: int) -> int:
        return self.add(op, list(inputs), np.broadcast_shapes(*[self.shapes[n] for n in inputs]))

    def cut(self, number: int, start: int, stop: int) -> int:
        rows = self.shapes[number][0]
        return self.add("slice", [number], (rows, stop - start), slices=[[None, None, None], [start, stop, None]])

    def joined(self, *numbers: int) -> int:
        width = sum(self.shapes[n][1] for n in numbers)
        return self.add("concatenate", list(numbers), (self.shapes[numbers[0]][0], width), axis=1)

    def product(self, a: int, b: int, transpose_b: bool = False) -> int:
        width = self.shapes[b][0 if transpose_b else 1]
        return self.add("matmul", [a, b], (self.shapes[a][0], width), transpose_a=False, transpose_b=transpose_b)

    def program(self, outputs: list[int], reverse: bool = False) -> Program:
        """A program of a loop with this body, whose first outputs are the states."""
        kinds = [[self.dtype, list(shape)] for shape in self.shapes[: len(LEAVES)]]
        body = {
            "inputs": kinds[:INPUTS],
            "draws": kinds[INPUTS : INPUTS + DRAWS],
            "constants": kinds[INPUTS + DRAWS :],
            "slots": [],
            "instructions": self.instructions,
            "outputs": outputs,
            "updates": [],
        }
        whole = [[dtype, [STEPS, *shape]] for dtype, shape in kinds]
        attrs = {"sequences": SEQUENCES, "states": STATES, "reverse": reverse, "body": body}
        count = len(kinds)
        shapes = [self.shapes[n] for n in outputs]
        shapes[STATES:] = [(STEPS, *shape) for shape in shapes[STATES:]]
        items = [["item", [count], {"index": i}, self.dtype, list(shape)] for i, shape in enumerate(shapes)]
        return Program(
            {
                "inputs": whole[:SEQUENCES],
                "slots": kinds[SEQUENCES:INPUTS],
                "draws": whole[INPUTS : INPUTS + DRAWS],
                "constants": kinds[INPUTS + DRAWS :],
                "instructions": [["scan", list(range(count)), attrs, self.dtype, []], *items],
                "outputs": [count + 1 + i for i in range(len(items))],
                "updates": [],
            }
        )

    def written_anew(self, outputs: list[int]) -> list[str]:
        """The ops of the body with its columns apart."""
        return [inner.op for inner in in_columns(self.program(outputs).instructions[0]).program.instructions]


def check(program: Program, dtype: str = "float64") -> None:
    """Compares the loop with its columns apart with numpy's, over two runs."""
    random = np.random.default_rng(1)
    constants = [random.standard_normal(shape).astype(dtype) for _, shape in program.constants]
    wanted, found = NumpyBackend({}).compile(program, constants), compile_program(Loops({}), program, constants)
    for _ in range(2):
        feeds, state, draws = (
            [random.standard_normal(shape).astype(dtype) for _, shape in kinds]
            for kinds in (program.inputs, program.slots, program.draws)
        )
        for a, b in zip(wanted(feeds, state, draws)[0], found(feeds, state, draws)[0], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12 if dtype == "float64" else 1e-5, atol=1e-12)


def cell(body: Body) -> tuple[int, int, list[int]]:
    """An LSTM's (new state, new memory, gates), whose gates are columns of one product."""
    product = body.product(NUMBERS["h"], NUMBERS["u"])
    whole = body.by_element("add", body.by_element("add", product, NUMBERS["z"]), NUMBERS["bias"])
    gates = [body.cut(whole, i * WIDTH, (i + 1) * WIDTH) for i in range(GATES)]
    i, f, o = (body.by_element("sigmoid", gates[n]) for n in (0, 1, 3))
    kept = body.by_element("multiply", f, NUMBERS["c"])
    memory = body.by_element("add", kept, body.by_element("multiply", i, body.by_element("tanh", gates[2])))
    return body.by_element("multiply", o, body.by_element("tanh", memory)), memory, gates


def test_an_lstm_is_computed_gate_by_gate() -> None:
    body = Body()
    state, memory, gates = cell(body)
    outputs = [state, memory, gates[1], state]
    check(body.program(outputs))
    check(body.program(outputs, reverse=True))
    ops = body.written_anew(outputs)
    assert "slice" not in ops
    assert ops.count("matmul") == GATES


@pytest.mark.parametrize(("weights", "transpose"), [("v", False), ("u", True), ("fixed", True)])
def test_joined_columns_are_multiplied_one_after_another(weights: str, transpose: bool) -> None:
    body = Body()
    parts = [body.by_element("multiply", NUMBERS["h"], n) for n in (NUMBERS["x"], NUMBERS["c"], NUMBERS["h"])]
    joined = body.joined(*parts, NUMBERS["x"])
    state = body.product(joined, NUMBERS[weights], transpose)
    outputs = [state, NUMBERS["h"], joined]
    check(body.program(outputs))
    ops = body.written_anew(outputs)
    assert "concatenate" not in ops
    assert ops.count("matmul") == GATES
    # The columns of a constant are cut before the first run.
    assert ops.count("slice") == (GATES if weights == "fixed" else 0)


def test_sequences_are_cut_before_the_first_step_where_nothing_else_is_done_with_them() -> None:
    body = Body()
    parts = [body.cut(NUMBERS["z"], 0, WIDTH), body.cut(NUMBERS["z"], WIDTH + 1, 2 * WIDTH + 1)]
    state = body.by_element("add", NUMBERS["h"], body.by_element("multiply", *parts))
    outputs = [state, NUMBERS["c"], parts[1]]
    check(body.program(outputs))
    assert body.written_anew(outputs) == ["multiply", "add"]
    whole = body.by_element("sigmoid", NUMBERS["z"])
    assert body.written_anew([*outputs, whole]).count("slice") == 2
    check(body.program([*outputs, whole]))


@pytest.mark.parametrize(
    "case",
    [
        "overlap",
        "whole too",
        "product too",
        "product is a result",
        "many",
        "step",
        "reversed",
        "noise",
        "new state",
        "rows",
    ],
)
def test_what_is_not_only_cut_into_columns_stays_whole(case: str) -> None:
    body = Body()
    product = body.product(NUMBERS["h"], NUMBERS["u"])
    whole = body.by_element("add", product, NUMBERS["z"])
    if case == "noise":
        # Drawn for each step.
        whole = body.by_element("add", whole, NUMBERS["noise"])
    results, slices = [], [[0, 3, None], [3, 6, None]]
    if case == "overlap":
        slices = [[0, 4, None], [3, 7, None]]
    elif case == "step":
        slices = [[0, 12, 4], [3, 6, None]]
    elif case == "reversed":
        slices = [[2, None, -1], [5, 2, -1]]
    elif case == "many":
        slices = [[i, i + 1, None] for i in range(MOST_PARTS + 1)]
    rows = [None, None, -1 if case == "rows" else None]
    for columns in slices:
        width = len(range(GATES * WIDTH)[slice(*columns)])
        results.append(body.add("slice", [whole], (ROWS, width), slices=[rows, columns]))
    if case == "whole too":
        results.append(body.by_element("tanh", whole))
    elif case == "product too":
        results.append(body.by_element("tanh", product))
    elif case == "product is a result":
        results.append(product)
    if case == "new state":
        parts = [body.by_element("multiply", NUMBERS["h"], NUMBERS["x"]), NUMBERS["x"], NUMBERS["c"], NUMBERS["x"]]
        joined = body.joined(*parts)
        results.append(body.by_element("tanh", joined))
    outputs = [NUMBERS["c"], NUMBERS["h"], *results]
    check(body.program(outputs))
    ops = body.written_anew(outputs)
    if case == "new state":
        assert "concatenate" in ops
    else:
        assert ops.count("slice") == len(slices)
        assert ops.count("matmul") == 1


def test_few_rows_many_columns_and_other_dtypes_stay_as_they_are() -> None:
    def ops(rows: int, width: int, dtype: str = "float32") -> list[str]:
        shapes = {name: (width, 2 * width) if name in ("u", "fixed") else (rows, 1) for name in LEAVES}
        shapes["h"] = (rows, width)
        body = Body(dtype, shapes)
        product = body.product(NUMBERS["h"], NUMBERS["u"])
        parts = [body.cut(product, 0, width), body.cut(product, width, 2 * width)]
        return body.written_anew([NUMBERS["h"], NUMBERS["c"], *parts])

    assert "slice" not in ops(FEWEST_ROWS, MOST_COLUMNS // 2)
    assert "slice" in ops(FEWEST_ROWS - 1, MOST_COLUMNS // 2)
    assert "slice" in ops(FEWEST_ROWS, MOST_COLUMNS // 2 + 1)
    assert "slice" in ops(FEWEST_ROWS, MOST_COLUMNS // 2, "float16")
    assert "slice" in ops(FEWEST_ROWS, MOST_COLUMNS // 2, "int32")


def test_a_long_chain_stays_whole_and_narrow_parts_are_joined() -> None:
    def ops(length: int) -> list[str]:
        body = Body()
        whole = body.product(NUMBERS["h"], NUMBERS["u"])
        for _ in range(length):
            whole = body.by_element("tanh", whole)
        parts = [body.cut(whole, n * WIDTH, (n + 1) * WIDTH) for n in range(GATES)]
        check(body.program([NUMBERS["h"], NUMBERS["c"], *parts]))
        return body.written_anew([NUMBERS["h"], NUMBERS["c"], *parts])

    # With the product three ops, each of which would be one for every part.
    assert "slice" not in ops(2)
    assert ops(3) == ["matmul", *["tanh"] * 3, *["slice"] * GATES]
    body = Body()
    parts = [body.cut(NUMBERS["h"], 0, 1), body.cut(NUMBERS["h"], 1, NARROWEST), body.by_element("tanh", NUMBERS["x"])]
    outputs = [NUMBERS["c"], NUMBERS["h"], body.joined(*parts)]
    check(body.program(outputs))
    assert "concatenate" in body.written_anew(outputs)


def test_each_instruction_is_known_to_come_of_one_of_the_body() -> None:
    body = Body()
    state, _, gates = cell(body)
    joined = body.joined(*gates)
    back = body.product(joined, NUMBERS["v"])
    made = in_columns(body.program([state, back, joined]).instructions[0])
    assert len(made.origins) == len(made.program.instructions)
    for inner, origin in zip(made.program.instructions, made.origins):
        # A product of joined columns is the sum of theirs.
        assert inner.op == body.instructions[origin][0] or (inner.op, body.instructions[origin][0]) == ("add", "matmul")


@st.composite
def bodies(draw: Any) -> tuple[Body, list[int]]:
    """Bodies of up to 16 instructions on narrow and wide matrices, and what they return."""
    body = Body()
    names = ["bias", "row", "column", "factor", "fixed row"]
    narrow, wide = [NUMBERS[n] for n in ("x", "h", "c")], [NUMBERS[n] for n in ("z", "noise")]
    wide_rows = [*wide, *(NUMBERS[n] for n in names)]
    for _ in range(draw(st.integers(1, 16))):
        kind = draw(st.sampled_from(["product", "back", "cut", "join", "wide", "narrow"]))
        if kind == "product":
            matrix = NUMBERS[draw(st.sampled_from(["u", "fixed", "v"]))]
            wide.append(body.product(draw(st.sampled_from(narrow)), matrix, matrix == NUMBERS["v"]))
        elif kind == "back":
            matrix = NUMBERS[draw(st.sampled_from(["u", "fixed", "v"]))]
            narrow.append(body.product(draw(st.sampled_from(wide)), matrix, matrix != NUMBERS["v"]))
        elif kind == "cut":
            start = draw(st.one_of(st.sampled_from(range(0, GATES * WIDTH, WIDTH)), st.integers(0, 9)))
            narrow.append(body.cut(draw(st.sampled_from(wide)), start, start + WIDTH))
        elif kind == "join":
            wide.append(body.joined(*draw(st.lists(st.sampled_from(narrow), min_size=GATES, max_size=GATES))))
        else:
            among = wide if kind == "wide" else narrow
            op = draw(st.sampled_from(["add", "multiply", "maximum", "tanh", "sigmoid"]))
            operands = [draw(st.sampled_from(among))]
            if op not in ("tanh", "sigmoid"):
                operands.append(draw(st.sampled_from([*among, *wide_rows] if kind == "wide" else among)))
            if draw(st.booleans()):
                operands.reverse()
            among.append(body.by_element(op, *operands))
    newest = [*narrow[-4:], *wide[-4:]]
    return body, [
        *draw(st.lists(st.sampled_from(narrow), min_size=STATES, max_size=STATES)),
        *draw(st.lists(st.sampled_from(newest), min_size=1, max_size=4)),
    ]


@settings(max_examples=300, deadline=None)
@given(bodies(), st.booleans())
def test_any_body_gives_what_it_gave(made: tuple[Body, list[int]], reverse: bool) -> None:
    body, outputs = made
    check(body.program(outputs, reverse))
