"""The products of float32 in a program, and how they are told to round their factors to bfloat16."""

from .base import window_ops

# Their first two operands are the factors.
PRODUCTS = {"matmul", "batch_matmul"}.union(*[window_ops(name) for name in ("conv", "conv_input", "conv_kernel")])


def round_factors(program):
    """Marks every product of float32 in the program, its loops included: both factors are rounded to bfloat16."""
    for instruction in program.instructions:
        if instruction.op in PRODUCTS and instruction.dtype == "float32":
            instruction.rounded = True
        elif instruction.op == "scan":
            round_factors(instruction.attrs["body"])
