"""Traces a program's instructions as JAX's values, for XLA, and hides from it what it would compute inexactly."""

import numpy as np

from ..lowering import lower
from .elementwise import FLOATS, UNSIGNED, broadcast
from .ops import OPS, scanned

# Set by `hand_over` when the first backend starts: op functions are only called after that.
lax = None

# Sums and products of the other are computed in float32, and rounded.
WIDE_FLOATS = ("float32", "float64")

# The processor multiplies and adds in one instruction that doesn't round the product: LLVM uses it wherever a
# product reaches a sum, and no option prevents that. x * y - z is then not 0 where z is x * y, nor NaN where both
# are infinite.
SUMS = ("add", "subtract", "cumsum", "mod", "floor_divide", "softmax")
MOVES = ("negative", "select", "reshape", "broadcast_to", "transpose", "concatenate", "unconcatenate", "slice")
MOVES += ("unslice", "pad", "gather")


def _products_in_sums(program):
    """Numbers of values that are products of floats, and get into a sum with nothing computed between."""
    products, added = set(), set()
    first = len(program.leaves)
    for instruction in reversed(program.instructions):
        number = first + instruction.index
        if instruction.op in SUMS or (instruction.op in MOVES and number in added):
            added.update(instruction.inputs)
        elif instruction.op in ("multiply", "power") and number in added and instruction.dtype in WIDE_FLOATS:
            products.add(number)
    return products


def opaque(x, zero):
    """`x` as XLA can't know it: its bits exclusive-or `zero`, an int32 argument that is always 0."""
    integer = {2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]
    mask = lax.broadcast(lax.convert_element_type(zero, integer), x.shape)
    return lax.bitcast_convert_type(lax.bitwise_xor(lax.bitcast_convert_type(x, integer), mask), x.dtype)


def lowered(program, values, embedded, zero):
    """JAX's values of a program, or a body, and which of its instructions are refused: pairs of one and a truth.

    `embedded` are the small constants among its leaves by number.
    """
    first = len(program.leaves)
    guarded = _products_in_sums(program)
    refusals = []
    ops = _ops_for(program, embedded, refusals)

    def scan(instruction, *operands, **attrs):
        inner = {position: embedded[number] for position, number in enumerate(instruction.inputs) if number in embedded}

        def step(body, leaves):
            values, refusals = lowered(body, leaves, inner, zero)
            return values, [refused for _, refused in refusals]

        values, refused = scanned(instruction, operands, step)
        refusals.extend((instruction, truth) for truth in refused)
        return values

    def protected(instruction, *operands, **attrs):
        value = ops[instruction.op](instruction, *operands, **attrs)
        return opaque(value, zero) if first + instruction.index in guarded else value

    table = dict.fromkeys(ops, protected) if guarded else dict(ops)
    return lower(program, values, dict(table, scan=scan)), refusals


def has_products_in_sums(program):
    return bool(_products_in_sums(program)) or any(
        has_products_in_sums(i.attrs["body"]) for i in program.instructions if i.op == "scan"
    )


def _ops_for(program, embedded, refusals):
    """OPS, where powers whose exponent is the constant 2 are products: numpy takes them so, too.

    Powers of integers add to `refusals` whether an exponent is negative.
    """
    squares, refusable = set(), set()
    for instruction in program.instructions:
        if instruction.op != "power":
            continue
        exponent = embedded.get(instruction.inputs[1])
        if instruction.dtype in FLOATS:
            if exponent is not None and exponent.size == 1 and exponent.reshape(-1)[0] == 2:
                squares.add(instruction.index)
        elif instruction.dtype not in UNSIGNED and (exponent is None or np.any(exponent < 0)):
            refusable.add(instruction.index)
    if not squares and not refusable:
        return OPS

    def power(instruction, x, y):
        x, y = broadcast(x, y)
        if instruction.index in squares:
            return lax.mul(x, x)
        # Of nothing, nothing is refused.
        if instruction.index in refusable and 0 not in x.shape:
            refusals.append((instruction, lax.reduce_or(lax.lt(y, lax.full_like(y, 0)), tuple(range(y.ndim)))))
        return OPS["power"](instruction, x, y)

    return dict(OPS, power=power)
