"""Programs at given feed shapes: what is compiled, what is made, and whose memory it is."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.program import specialisation as specialisations
from kernelk.program.program import Program
from kernelk.session import current


def program(inputs: list[Any], outputs: list[Any]) -> Program:
    host = current().host("numpy")
    host.start()
    return K.function(inputs, outputs).program_for(current(), host.ops, 0, None)


def test_unknown_lengths_share_a_key_and_make_arrays_of_their_own() -> None:
    x = K.placeholder((None, 3))
    made = program([x], [K.tanh(x), K.sum(x)])
    two, five = (made.specialise(((n, 3),), "ones") for n in (2, 5))
    assert two.key == five.key
    assert two.output_arrays(made) == [(24, "float32", (2, 3)), (4, "float32", ())]
    assert five.output_arrays(made) == [(60, "float32", (5, 3)), (4, "float32", ())]
    assert made.specialise(((2, 3),), "all").key != made.specialise(((5, 3),), "all").key
    # An axis of length 1 broadcasts: it is a form of its own.
    assert made.specialise(((1, 3),), "ones").key != two.key


def test_known_lengths_are_inferred_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    infer = specialisations.infer
    monkeypatch.setattr(specialisations, "infer", lambda *args: calls.append(args) or infer(*args))
    known, unknown = K.placeholder((2, 3)), K.placeholder((None, 3))
    for x, times in ((known, 1), (unknown, 2)):
        calls.clear()
        made = program([x], [x * 2.0])
        for _ in range(3):
            assert made.specialise(((2, 3),), "ones").outputs == [(2, 3)]
        assert len(calls) == times


def test_every_encoded_instruction_is_blamed_on_its_node() -> None:
    x = K.placeholder((None, 3))
    b = K.variable([1.0, 2.0, 3.0])
    (g,) = K.gradients(K.sum(K.tanh(x * b)), [b])
    made = program([x], [g])
    for mode in ("ones", "all"):
        one = made.specialise(((2, 3),), mode)
        instructions = one.encode(made)["instructions"]
        for number, (op, *_) in enumerate(instructions):
            node = one.blamed(made, [number])
            # A sum to another's shape is written out as a sum and a reshape.
            assert node is not None
            assert node.op == op or node.op == "sum_to"
        assert one.blamed(made, [len(instructions)]) is None


def test_an_instruction_in_a_loop_is_blamed_on_the_step() -> None:
    x = K.placeholder((4, 2))
    y = K.foldl(lambda state, piece: K.exp(piece) + state, x)
    made = program([x], [y])
    one = made.specialise(((4, 2),), "ones")
    instructions = one.encode(made)["instructions"]
    (scan,) = [number for number, (op, *_) in enumerate(instructions) if op == "scan"]
    body = instructions[scan][2]["body"]["instructions"]
    (exp,) = [number for number, (op, *_) in enumerate(body) if op == "exp"]
    node = one.blamed(made, [scan, exp])
    assert node is not None
    assert node.op == "exp"


def unused(encoded: dict[str, Any], loop: tuple[int, int] | None = None) -> list[str]:
    """What of a program, or of a loop's body with so many sequences and states, nothing takes."""
    leaves = sum(len(encoded[kind]) for kind in ("inputs", "slots", "draws", "constants"))
    instructions = encoded["instructions"]
    taken = {*encoded["outputs"], *(n for _, n in encoded["updates"])}
    taken = taken.union(*(inputs for _, inputs, *_ in instructions))
    found = [f"{op} {leaves + i}" for i, (op, *_) in enumerate(instructions) if leaves + i not in taken]
    if loop is not None:
        sequences, states = loop
        # The first sequence tells the length.
        inputs = [*range(1, sequences), *range(sequences + states, len(encoded["inputs"]))]
        found += [f"input {i}" for i in inputs if i not in taken]
    for i, (op, _, attrs, _, _) in enumerate(instructions):
        if op == "scan":
            items = {a["index"] for name, inputs, a, *_ in instructions if name == "item" and inputs == [leaves + i]}
            body = attrs["body"]
            found += [f"value {n}" for n in range(attrs["states"], len(body["outputs"])) if n not in items]
            found += unused(body, (attrs["sequences"], attrs["states"]))
    return found


def test_what_served_for_its_shape_alone_is_not_computed() -> None:
    """The sums to a bias's and a state's shape are none, once lengths are known: so nothing keeps their operands."""
    x = K.placeholder((None, 5, 3))
    w, u, b = K.variable(np.ones((3, 4))), K.variable(np.ones((4, 4))), K.variable(np.ones(4))

    def step(element: Any, states: Any) -> Any:
        scale = K.foldl(lambda product, one: product * one, K.sum(element, axis=0))
        h = K.tanh(K.dot(element, w) + K.dot(states[0], u) * scale + b)
        return h, [h]

    last, _, _ = K.rnn(step, x, [K.zeros((2, 4))])
    total = K.sum(last * K.mean(x * 2.0))
    made = program([x], [total, *K.gradients(total, [w, u, b])])
    for mode in ("ones", "all"):
        encoded = made.specialise(((2, 5, 3),), mode).encode(made)
        assert [op for op, *_ in encoded["instructions"]].count("scan") == 2
        assert unused(encoded) == []


def test_a_program_goes_with_its_last_holder() -> None:
    """It holds variables, whose memory is given back when nobody holds them: no cycle may keep it."""
    v = K.variable(np.ones(3))
    made = program([], [v * 2.0])
    assert made.specialise((), "ones").output_arrays(made)
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()
