"""New values that BLAS computes in one call: c times a variable, plus or minus d times a matrix product.

Found in the program before Theano's and PyTorch's backends compile it. BLAS skips what is multiplied by 0, with the
NaN in it: whoever has it called sees to it that neither factor is 0.
"""

import numpy as np


class Scaled(object):
    """`sign` times the value `number` times the scalar `factor` (its number; None: 1)."""

    def __init__(self, number, factor=None, sign=1.0):
        self.number = number
        self.factor = factor
        self.sign = sign


def usable(factor):
    """Whether BLAS multiplies by this number as everything else does."""
    return bool(np.isfinite(factor)) and factor != 0


def merged(program, is_factor):
    """Index of an instruction -> (the variable, the product), both `Scaled`: what one call of gemm computes.

    `is_factor(number)`: whether this scalar may be one.
    """
    found = {}
    uses = {}
    for instruction in program.instructions:
        for number in instruction.inputs:
            uses[number] = uses.get(number, 0) + 1
    first, slots = len(program.leaves), len(program.inputs)
    leaving = set(program.results())

    def instruction_of(number):
        return program.instructions[number - first] if number >= first else None

    def alone(number):
        """The instruction of a value that nothing else needs."""
        return instruction_of(number) if uses.get(number) == 1 and number not in leaving else None

    def scaled(number, sign):
        """The operand as a scalar times another value, or as itself."""
        instruction = alone(number)
        if instruction is not None and instruction.op == "multiply":
            for factor, other in (instruction.inputs, instruction.inputs[::-1]):
                alike = program.values[other] == program.values[number]
                if alike and program.values[factor] == (instruction.dtype, ()) and is_factor(factor):
                    return Scaled(other, factor, sign)
        return Scaled(number, None, sign)

    for slot, number in program.updates:
        instruction = instruction_of(number)
        if instruction is None or instruction.op not in ("add", "subtract"):
            continue
        dtype, shape = kind = program.slots[slot]
        if dtype not in ("float32", "float64") or len(shape) != 2 or 1 in shape or program.values[number] != kind:
            continue
        operands = [scaled(instruction.inputs[0], 1.0)]
        operands.append(scaled(instruction.inputs[1], -1.0 if instruction.op == "subtract" else 1.0))
        for variable, product in (operands, operands[::-1]):
            matmul = alone(product.number)
            if variable.number != slots + slot or matmul is None or matmul.op != "matmul" or matmul.rounded:
                continue
            # What is written over the variable reads nothing else of it.
            if variable.number in matmul.inputs:
                continue
            if program.values[product.number] == kind and matmul.input_dtypes == (dtype, dtype):
                found[instruction.index] = variable, product
                break
    return found
