"""New values that BLAS computes in one call: c times a variable, plus or minus d times a matrix product.

Found in the program before `backend` lowers it to Theano's graph. Theano's own search for them takes any factor d, and
BLAS skips a product that is multiplied by 0, with the NaN in it: here both factors are constants other than 0.
"""

import numpy as np


class Scaled(object):
    """`sign` times the value `number` times the constant `factor` (its number; None: 1)."""

    def __init__(self, number, factor=None, sign=1.0):
        self.number = number
        self.factor = factor
        self.sign = sign


def merged(program, constants):
    """Index of an instruction -> (the variable, the product), both `Scaled`: what one call of gemm computes."""
    found = {}
    uses = {}
    for instruction in program.instructions:
        for number in instruction.inputs:
            uses[number] = uses.get(number, 0) + 1
    first, slots = len(program.leaves), len(program.inputs)
    scalars = {
        number
        for number, array in enumerate(constants, first - len(constants))
        if array.shape == () and np.isfinite(array) and array != 0
    }
    leaving = set(program.results())

    def instruction_of(number):
        return program.instructions[number - first] if number >= first else None

    def alone(number):
        """The instruction of a value that nothing else needs."""
        return instruction_of(number) if uses.get(number) == 1 and number not in leaving else None

    def scaled(number, sign):
        """The operand as a constant times another value, or as itself."""
        instruction = alone(number)
        if instruction is not None and instruction.op == "multiply":
            for factor, other in (instruction.inputs, instruction.inputs[::-1]):
                if factor in scalars and program.values[other] == program.values[number]:
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
            if variable.number != slots + slot or matmul is None or matmul.op != "matmul":
                continue
            if program.values[product.number] == kind and matmul.input_dtypes == (dtype, dtype):
                found[instruction.index] = variable, product
                break
    return found
