"""CNTK's limits: the dtypes, shapes and ops that are left to numpy's definitions, as inexact or missing there."""

from .elementwise import OPS as ELEMENTWISE
from .known import EXACT_LIMIT, FLOATS, REORDERED, needed
from .nodes import broadcast_shape
from .ops import OPS

# CNTK's kernels refuse more axes than these once neighbours that act alike are merged.
MOST_AXES = 12
MOST_MERGED = 4
MOST_REDUCED = 2
BOOLEAN = {"equal", "not_equal", "less", "less_equal"}
TAKES_BOOL = BOOLEAN | {"logical_and", "logical_or", "logical_not", "select", "cast", "concatenate", "unslice"}
TAKES_BOOL |= {"pad", "gather"} | set(REORDERED)
TAKES_INTEGERS = BOOLEAN | {"select", "cast", "concatenate", "unslice", "sum", "max", "min", "maximum", "minimum"}
TAKES_INTEGERS |= {"pad", "gather"} | set(REORDERED)


def merged_rank(shapes):
    """The number of axes of a broadcast over these shapes once neighbours that broadcast alike are merged."""
    whole = broadcast_shape(shapes)
    padded = [(1,) * (len(whole) - len(shape)) + tuple(shape) for shape in shapes]
    patterns = [tuple(p[i] == 1 for p in padded) for i in range(len(whole)) if whole[i] != 1]
    return sum(1 for i, pattern in enumerate(patterns) if i == 0 or pattern != patterns[i - 1])


def merged_permutation(shape, permutation):
    """The number of axes that a transposition moves once axes that stay neighbours are merged."""
    moved = [axis for axis in permutation if shape[axis] != 1]
    kept = sorted(moved)
    order = [kept.index(axis) for axis in moved]
    return sum(1 for i, axis in enumerate(order) if i == 0 or axis != order[i - 1] + 1)


def reduced_groups(shape, axes):
    """The number of separate runs of axes that a reduction takes."""
    flags = [axis in axes for axis in range(len(shape)) if shape[axis] != 1]
    return sum(1 for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1]))


def index_bound(instruction, operand):
    """The number of valid indices, for an operand that holds indices; None for any other operand."""
    if instruction.op == "one_hot":
        return instruction.attrs["depth"]
    if operand == 1 and instruction.op in ("gather", "scatter_add"):
        return instruction.input_shapes[0 if instruction.op == "gather" else 2][0]
    return None


def why_not(instruction, position, known):
    """Returns why CNTK can't run an instruction, whose value number is `position`, in a few words; None if it can."""
    name = instruction.op
    if name not in OPS:
        return "no exact counterpart"
    count = len(needed(instruction))
    shapes = list(instruction.input_shapes[:count]) + [instruction.shape]
    if any(0 in shape for shape in shapes):
        return "no elements"
    for operand, (number, dtype) in enumerate(zip(instruction.inputs[:count], instruction.input_dtypes[:count])):
        if dtype in FLOATS or dtype == "bool" and name in TAKES_BOOL:
            continue
        if index_bound(instruction, operand) is not None and dtype not in FLOATS + ("float16", "bool"):
            continue
        limit = known[number].limit
        if dtype not in ("float16", "bool") and name in TAKES_INTEGERS and limit is not None and limit < EXACT_LIMIT:
            continue
        return "takes " + dtype
    if instruction.dtype not in FLOATS + ("bool",) and known[position].limit is None:
        return "gives " + instruction.dtype
    if name in ("gather", "scatter_add") and index_bound(instruction, 1) >= EXACT_LIMIT:
        return "more rows than float32 can count"
    if any(len(shape) > MOST_AXES for shape in shapes):
        return "more than %d axes" % MOST_AXES
    merged = 0
    if name == "transpose":
        merged = merged_permutation(shapes[0], instruction.attrs["permutation"])
    elif name in ELEMENTWISE or name == "broadcast_to":
        merged = merged_rank(shapes)
    if merged > MOST_MERGED:
        return "too many axes broadcast or moved"
    if name in ("sum", "max", "min", "prod") and reduced_groups(shapes[0], instruction.attrs["axes"]) > MOST_REDUCED:
        return "too many separate axes reduced"
    return None
