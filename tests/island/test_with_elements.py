"""Which values of a program are known to have elements: of every op in the conformance cases, those that say so do."""

from __future__ import annotations

import numpy as np
from helpers.island import program
from island_cases import cases
from island_conformance import reference

from kernelk.backends.lowering import with_elements
from kernelk.backends.numpy.ops import OPS

X = ["float32", [None, 4]]


def test_no_op_that_is_said_to_have_elements_gives_none() -> None:
    known, unknown, empty = set(), set(), set()
    for _, op, attrs, operands, dtype in cases():
        arrays = [np.asarray(operand) for operand in operands]
        if not all(array.size for array in arrays) or op not in OPS:
            continue
        result = reference(None, OPS, op, attrs, arrays, dtype)
        leaves = [[str(array.dtype), [None] * array.ndim] for array in arrays]
        lengths = [None, *result.shape[1:]] if result.ndim else []
        for shape in (lengths, [None] * result.ndim):
            instruction = [op, list(range(len(leaves))), {**attrs, "pads": 0} if "pads" in attrs else {}, dtype, shape]
            if len(leaves) in with_elements(program(inputs=leaves, instructions=[instruction], outputs=[len(leaves)])):
                assert result.size, (op, attrs, [array.shape for array in arrays])
                known.add(op)
            else:
                unknown.add(op)
        if not result.size:
            empty.add(op)
    assert "slice" in empty  # so that the cases show something
    assert "slice" in unknown
    assert {"add", "select", "cast", "reshape", "broadcast_to", "matmul", "concatenate", "conv", "max_pool"} <= known


def test_what_a_piece_or_a_variable_of_unknown_length_goes_into() -> None:
    parts = program(
        inputs=[X],
        slots=[X, ["float32", [3, 4]]],
        draws=[X],
        constants=[["float32", [0, 4]]],
        instructions=[
            ["add", [0, 3], {}, *X],  # 5: fed and drawn
            ["slice", [5], {"slices": [[1, None, None]]}, *X],  # 6
            ["add", [6, 5], {}, *X],  # 7
            ["sum", [7], {"axes": [0], "keepdims": False}, "float32", [4]],  # 8: of all shapes that the graph knows
            ["add", [1, 2], {}, *X],  # 9
            ["add", [4, 2], {}, *X],  # 10
        ],
        outputs=[8, 9, 10],
    )
    assert with_elements(parts) == {0, 2, 3, 5, 8}
