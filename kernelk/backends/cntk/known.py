"""Derives facts about a program's values from its graph alone, so that guards are built only where they are needed."""

import numpy as np

from ..numpy.ops import OPS

# float32 holds every whole number up to here, so that indices may travel as floats.
EXACT_LIMIT = 2**24
# Results of folding are kept with the compiled program: only small ones are worth it.
FOLD_BYTES = 1 << 16
FLOATS = ("float32", "float64")
REORDERED = ("reshape", "broadcast_to", "transpose", "slice", "unconcatenate")
# How many of the leading operands an op takes by value; of the others it needs only the shape.
BY_VALUE = {"reshape": 1, "broadcast_to": 1, "unconcatenate": 1, "unslice": 1, "scatter_add": 2, "size": 0, "shape": 0}
BY_VALUE.update({"conv_input": 2, "dilated_conv_input": 2, "avg_pool_grad": 1})
BY_VALUE.update({"depthwise_conv_input": 2, "dilated_depthwise_conv_input": 2})
# Ops that put zeros beside the elements of their first operand (gather: for integers whose index is outside).
WITH_ZEROS = ("unslice", "pad", "gather")


def needed(instruction):
    """The value numbers that an instruction takes by value, not by shape alone."""
    return instruction.inputs[: BY_VALUE.get(instruction.op, len(instruction.inputs))]


def stand_in(dtype, shape):
    """An array that has a shape and costs no memory, for operands of which only the shape matters."""
    return np.broadcast_to(np.zeros((), dtype), shape)


class Known(object):
    """`low`: no element is below it (NaN aside); `minus_zero`: -0.0 may occur; `limit`: an integer's magnitude."""

    __slots__ = ("array", "limit", "low", "minus_zero")

    def __init__(self, low=-np.inf, minus_zero=True, limit=None, array=None):
        self.low = low
        self.minus_zero = minus_zero
        self.limit = limit
        self.array = array


def of_constant(array):
    if array.size == 0:
        return Known(array=array)
    if array.dtype.kind == "f":
        zeros = (array == 0) & np.signbit(array)
        with np.errstate(all="ignore"):
            low = float(np.nanmin(array)) if not np.all(np.isnan(array)) else np.inf
        return Known(low, bool(zeros.any()), None, array)
    if array.dtype.kind == "b":
        return Known(0.0, False, 1, array)
    return Known(float(array.min()), False, max(abs(int(array.min())), abs(int(array.max()))), array)


def _fold(instruction, operands):
    """The result of an instruction on constants, or None."""
    if instruction.op == "shape":
        return np.asarray(instruction.input_shapes[0], dtype=np.int32)
    if instruction.op == "size":
        sizes = [instruction.input_shapes[0][axis] for axis in instruction.attrs["axes"]]
        return np.asarray(np.prod(sizes), dtype=instruction.dtype)
    by_value = len(needed(instruction))
    if instruction.op not in OPS or any(known.array is None for known in operands[:by_value]):
        return None
    if np.prod(instruction.shape, dtype=float) * np.dtype(instruction.dtype).itemsize > FOLD_BYTES:
        return None
    arrays = [known.array for known in operands[:by_value]]
    for dtype, shape in zip(instruction.input_dtypes[by_value:], instruction.input_shapes[by_value:]):
        arrays.append(stand_in(dtype, shape))
    with np.errstate(all="ignore"):
        return np.asarray(OPS[instruction.op](instruction, *arrays, **instruction.attrs))


def _float_facts(instruction, operands):
    """Bounds of a float result. Rounding is monotonic, so a bound holds once it's rounded to the same dtype."""
    op = instruction.op
    first = operands[0] if operands else Known()
    second = operands[1] if len(operands) > 1 else first
    unsigned = first.low >= 0 and not first.minus_zero and second.low >= 0 and not second.minus_zero
    if op in ("exp", "sigmoid", "softplus", "softmax", "abs", "one_hot"):
        return 0.0, False
    if op in ("sqrt", "relu"):
        return 0.0, first.minus_zero
    if op in ("tanh", "elu", "log1p", "expm1"):
        return 0.0 if first.low >= 0 else -np.inf, first.minus_zero
    if op == "cast":
        return first.low, first.minus_zero
    if op == "maximum":
        return max(first.low, second.low), first.minus_zero or second.minus_zero
    if op == "minimum":
        return min(first.low, second.low), first.minus_zero or second.minus_zero
    if op == "add":
        return first.low + second.low, first.minus_zero and second.minus_zero
    if op == "subtract":
        return -np.inf, first.minus_zero
    if op == "multiply":
        if instruction.inputs[0] == instruction.inputs[1]:
            return 0.0, False
        return (first.low * second.low, False) if unsigned else (-np.inf, True)
    if op == "divide":
        return (0.0, False) if unsigned else (-np.inf, True)
    if op in ("sum", "mean"):
        return 0.0 if first.low >= 0 else -np.inf, first.minus_zero
    if op in REORDERED or op in ("max", "min"):
        return first.low, first.minus_zero
    if op == "concatenate":
        return min(known.low for known in operands), any(known.minus_zero for known in operands)
    if op == "select":
        return min(known.low for known in operands[1:]), any(known.minus_zero for known in operands[1:])
    if op in WITH_ZEROS:
        return min(0.0, first.low), first.minus_zero
    if op in ("sin", "cos"):
        return -1.0, True
    if op == "floor":
        return np.floor(first.low), first.minus_zero
    if op == "round":
        return np.rint(first.low), first.minus_zero or first.low < 0
    if op == "scatter_add":
        return 0.0 if first.low >= 0 else -np.inf, True
    return -np.inf, True


def _limit(instruction, operands):
    """A bound of an integer result's magnitude where there is one that EXACT_LIMIT allows."""
    op = instruction.op
    first = operands[0] if operands else Known()
    limit = None
    if op in ("argmax", "argmin"):
        limit = instruction.input_shapes[0][instruction.attrs["axis"]]
    elif op == "cast" and instruction.input_dtypes[0] not in FLOATS + ("float16",):
        limit = 1 if instruction.input_dtypes[0] == "bool" else first.limit
        if instruction.dtype.startswith("u") and first.low < 0:
            return None
    elif op in REORDERED or op in WITH_ZEROS or op in ("max", "min"):
        limit = first.limit
    elif op == "sum" and first.limit is not None:
        axes = instruction.attrs["axes"]
        limit = first.limit * int(np.prod([instruction.input_shapes[0][axis] for axis in axes]))
    elif op in ("select", "concatenate", "maximum", "minimum"):
        limits = [known.limit for known in (operands[1:] if op == "select" else operands)]
        limit = None if None in limits else max(limits)
    if limit is None or limit >= min(EXACT_LIMIT, np.iinfo(instruction.dtype).max):
        return None
    return limit


def learn(program, constants):
    """One `Known` for each value number of a program."""
    facts = []
    first_constant = len(program.leaves) - len(program.constants)
    for number, (dtype, _) in enumerate(program.leaves):
        if number >= first_constant:
            facts.append(of_constant(np.asarray(constants[number - first_constant])))
        elif dtype == "bool":
            facts.append(Known(0.0, False, 1))
        elif dtype in FLOATS + ("float16",):
            facts.append(Known())
        else:
            facts.append(Known(0.0 if dtype.startswith("u") else -np.inf, False))
    for instruction in program.instructions:
        operands = [facts[number] for number in instruction.inputs]
        folded = _fold(instruction, operands)
        if folded is not None:
            facts.append(of_constant(folded))
        elif instruction.dtype in FLOATS:
            low, minus_zero = _float_facts(instruction, operands)
            with np.errstate(all="ignore"):
                low = float(np.dtype(instruction.dtype).type(low))
            low = -np.inf if np.isnan(low) else low
            facts.append(Known(low, minus_zero and low <= 0))
        elif instruction.dtype == "bool":
            facts.append(Known(0.0, False, 1))
        elif instruction.dtype == "float16":
            facts.append(Known())
        else:
            limit = _limit(instruction, operands)
            low = min([known.low for known in operands] or [-np.inf]) if limit is not None else -np.inf
            if instruction.op in WITH_ZEROS:
                low = min(0.0, low)
            facts.append(Known(0.0 if instruction.op in ("argmax", "argmin") else low, False, limit))
    return facts
