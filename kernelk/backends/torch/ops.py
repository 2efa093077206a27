"""PyTorch's table of ops: reductions, arrangement, products and loops; joined with elementwise.py and windows.py."""

import numpy as np

from ..base import registrar
from ..errors import CannotLower
from ..lowering import Instruction, Steps, last_neighbours, python_slices, resolve_dims
from . import elementwise, windows
from .elementwise import FLOATS, TWINS, dtype_of, kernel, length_of, same, twin, widened

# Set by `hand_over` when the first backend starts: makers are only called after that.
torch = None

# op name -> maker: `maker(instruction, **attrs)` returns the function of tensors that the op is. What can be decided
# from dtypes and attributes is decided here, once, since a small step's time is the calls between its kernels.
MAKERS = dict(elementwise.MAKERS, **windows.MAKERS)
maker = registrar(MAKERS)

SIGN_BITS = {"uint16": -(2**15), "uint32": -(2**31), "uint64": -(2**63)}
# Whose bits come out alike from signed and from unsigned operands.
WRAPPING = {
    *("negative", "add", "subtract", "multiply", "equal", "not_equal", "select", "sum", "prod", "cumsum", "cumprod"),
    *("reshape", "broadcast_to", "transpose", "concatenate", "unconcatenate", "slice", "unslice", "pad"),
    *("gather", "scatter_add", "matmul", "batch_matmul"),
}
# Which ask for the order: with the sign bit turned over, signed numbers have that of the unsigned ones.
ORDERED = {"maximum", "minimum", "less", "less_equal", "max", "min", "argmax", "argmin"}
# Which may hand their operand's memory on; the results of all others are memory of their own.
VIEWS = {
    *("abs", "sign", "floor", "round", "cast", "size", "shape", "reshape", "broadcast_to", "transpose"),
    *("concatenate", "unconcatenate", "slice", "unslice", "pad", "gather", "scatter_add"),
    # of a 0-d value
    "prod",
    # A state may be handed on as it is, step by step.
    *("scan", "item"),
}


def make(instruction):
    """The instruction as a function of tensors. Raises CannotLower."""
    direct = kernel(instruction)
    if direct is not None:
        return direct
    name = instruction.op
    if name not in MAKERS:
        raise CannotLower("this backend doesn't define %r" % name)
    operands = instruction.input_dtypes
    if name == "select" or name in ("gather", "scatter_add"):
        # Neither a condition nor an index has a part in the arithmetic.
        operands = (instruction.dtype,)
    if any(dtype in TWINS for dtype in operands):
        if name in WRAPPING:
            return _on_twins(instruction)
        if name in ORDERED:
            return _on_twins(instruction, SIGN_BITS[operands[0]])
    made = MAKERS[name](instruction, **instruction.attrs)
    return _of_rounded(made) if instruction.rounded else made


def _of_rounded(product):
    """The function of two factors, and of what else it takes, with the factors rounded to bfloat16 first."""

    def call(a, b, *rest):
        return product(*[x.to(torch.bfloat16).to(torch.float32) for x in (a, b)] + list(rest))

    return call


def _on_twins(instruction, sign_bit=None):
    like = Instruction(
        instruction.index,
        instruction.op,
        instruction.inputs,
        instruction.attrs,
        TWINS.get(instruction.dtype, instruction.dtype),
        instruction.shape,
    )
    like.input_dtypes = tuple(TWINS.get(dtype, dtype) for dtype in instruction.input_dtypes)
    like.input_shapes = instruction.input_shapes
    call, back = make(like), TWINS.get(instruction.dtype) and getattr(torch, instruction.dtype)

    def wrapped(*values):
        values = [twin(x) for x in values]
        if sign_bit is not None:
            values = [x ^ sign_bit for x in values]
        result = call(*values)
        if back is None:
            return result
        return (result if sign_bit is None else result ^ sign_bit).view(back)

    return wrapped


# Reductions -----------------------------------------------------------------------------------------------


@maker("sum")
def _sum(instruction, axes, keepdims):
    axes, dtype = tuple(axes), dtype_of(instruction.dtype)
    if instruction.dtype == "bool":
        return lambda x: torch.ne(torch.sum(x, axes, keepdims), 0)
    if instruction.dtype == "float16":
        return lambda x: torch.sum(x, axes, keepdims, dtype=torch.float32).to(dtype)
    if instruction.dtype == "float32":
        return lambda x: _added(x, axes, keepdims)
    if instruction.dtype in FLOATS:
        return lambda x: torch.sum(x, axes, keepdims)
    return lambda x: torch.sum(x, axes, keepdims, dtype=dtype)


def _count(x, axes):
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


def _added(x, axes, keepdims):
    """The sum of float32. PyTorch adds pairwise along axes that it takes for one, along others one after the other."""
    others, neighbours = last_neighbours(x.shape, axes) if x.is_contiguous() else (axes[:-1], axes[-1:])
    total = torch.sum(x, neighbours, keepdims)
    return _added(total, others, keepdims) if others else total


@maker("max", "min")
def _extreme(instruction, axes, keepdims):
    function = torch.amax if instruction.op == "max" else torch.amin
    return lambda x: function(x, axes, keepdims)


def _in_turn(function, axes):
    def call(x):
        for axis in axes:
            x = function(x, axis)
        return x

    return call


@maker("prod")
def _prod(instruction, axes, keepdims):
    dtype = dtype_of(instruction.dtype)
    if instruction.dtype == "bool":
        return _in_turn(lambda x, axis: torch.all(x, axis, keepdims), axes[::-1])
    accumulator = torch.float64 if instruction.dtype in FLOATS else dtype
    reduce = _in_turn(lambda x, axis: torch.prod(x, axis, keepdims), axes[::-1])
    if instruction.dtype not in FLOATS:
        reduce = _in_turn(lambda x, axis: torch.prod(x, axis, keepdims, dtype=dtype), axes[::-1])
    return lambda x: reduce(x.to(accumulator)).to(dtype)


@maker("argmax", "argmin")
def _argmax(instruction, axis):
    function = torch.argmax if instruction.op == "argmax" else torch.argmin
    if instruction.input_dtypes[0] == "bool":
        return lambda x: function(x.to(torch.uint8), axis)
    return lambda x: function(x, axis)


@maker("cumsum", "cumprod")
def _cumulated(instruction, axis):
    function, dtype = getattr(torch, instruction.op), dtype_of(instruction.dtype)
    if instruction.dtype == "bool":
        # The product of bits that are each 0 or 1 stays one; their sum needs room.
        return lambda x: torch.ne(function(x, axis, dtype=torch.int64), 0)
    if instruction.dtype in FLOATS:
        return lambda x: function(x, axis, dtype=torch.float64).to(dtype)
    return lambda x: function(x, axis, dtype=dtype)


@maker("size")
def _size(instruction, axes):
    made = {}

    def size(x):
        lengths = tuple([x.shape[axis] for axis in axes])
        if lengths not in made:
            made.clear()
            made[lengths] = torch.from_numpy(np.asarray(np.prod(lengths)).astype(instruction.dtype)).to(x.device)
        return made[lengths]

    return size


@maker("shape")
def _shape(instruction):
    return lambda x: torch.tensor(tuple(x.shape), dtype=torch.int32, device=x.device)


# Arrangement ----------------------------------------------------------------------------------------------


def _arranged(instruction, dims, method):
    if not any(isinstance(dim, list) for dim in dims):
        dims = tuple(dims)
        return lambda x, *references: method(x, dims)
    if len(instruction.inputs) > 1 and dims == [[1, axis] for axis in range(len(instruction.input_shapes[1]))]:
        return lambda x, like, *references: method(x, like.shape)
    return lambda *values: method(values[0], resolve_dims(dims, values, length_of))


@maker("reshape")
def _reshape(instruction, dims):
    return _arranged(instruction, dims, torch.reshape)


@maker("broadcast_to")
def _broadcast_to(instruction, dims):
    return _arranged(instruction, dims, torch.Tensor.expand)


@maker("transpose")
def _transpose(instruction, permutation):
    permutation = tuple(permutation)
    return lambda x: x.permute(permutation)


@maker("concatenate")
def _concatenate(instruction, axis):
    return lambda *values: torch.cat(values, axis)


@maker("unconcatenate")
def _unconcatenate(instruction, axis, part):
    def unconcatenate(whole, *parts):
        start = sum([value.shape[axis] for value in parts[:part]])
        return whole.narrow(axis, start, parts[part].shape[axis])

    return unconcatenate


def _forwards(slices, shape):
    """The slices with those of negative step turned over, and the axes that must be turned back: PyTorch has none."""
    index, turned = [], []
    for axis, (entry, length) in enumerate(zip(slices, shape)):
        if (1 if entry.step is None else entry.step) < 0:
            chosen = range(*entry.indices(length))
            # Of nothing, the first and the last are of no use as bounds.
            entry = slice(chosen[-1], chosen[0] + 1, -entry.step) if len(chosen) else slice(0, 0)
            turned.append(axis)
        index.append(entry)
    return tuple(index), turned


@maker("slice")
def _slice(instruction, slices):
    index = python_slices(slices)
    if not index:
        return same
    if all(entry.step is None or entry.step > 0 for entry in index):
        return lambda x: x[index]

    def call(x):
        forwards, turned = _forwards(index, x.shape)
        return x[forwards].flip(turned)

    return call


@maker("unslice")
def _unslice(instruction, slices):
    index = python_slices(slices)

    def unslice(piece, like):
        whole = torch.zeros(like.shape, dtype=piece.dtype, device=piece.device)
        forwards, turned = _forwards(index, like.shape)
        whole[forwards] = piece.flip(turned) if turned else piece
        return whole

    return unslice


@maker("one_hot")
def _one_hot(instruction, depth):
    dtype = dtype_of(instruction.dtype)

    def one_hot(indices):
        # Of uint64, what is beyond int64 becomes negative: no class's number either way.
        indices = (twin(indices) if indices.dtype is torch.uint64 else indices).to(torch.int64)
        return torch.eq(indices.unsqueeze(-1), torch.arange(depth, device=indices.device)).to(dtype)

    return one_hot


@maker("pad")
def _pad(instruction, pads):
    if not pads:
        return same
    # PyTorch begins with the last axis.
    flat = [count for pair in reversed(pads) for count in pair]
    return lambda x: torch.constant_pad_nd(x, flat)


def _rows(indices):
    if indices.dtype is torch.uint64:
        # What is beyond int64 becomes negative, and so stays outside.
        indices = twin(indices)
    return indices.to(torch.int64).reshape(-1)


@maker("gather")
def _gather(instruction):
    missing = float("nan") if instruction.dtype in FLOATS else 0

    def gather(x, indices):
        rows, length = _rows(indices), x.shape[0]
        shape = indices.shape + x.shape[1:]
        if x.is_cuda:
            # Looking whether any is outside would wait for the device.
            outside = torch.logical_or(torch.lt(rows, 0), torch.ge(rows, length))
        elif not rows.numel():
            outside = None
        else:
            low, high = torch.aminmax(rows)
            outside = None
            if int(low) < 0 or int(high) >= length:
                outside = torch.logical_or(torch.lt(rows, 0), torch.ge(rows, length))
        if outside is None:
            return torch.index_select(x, 0, rows).reshape(shape)
        if not length:
            return torch.full(shape, missing, dtype=x.dtype, device=x.device)
        chosen = torch.index_select(x, 0, torch.where(outside, torch.zeros_like(rows), rows))
        outside = outside.reshape((-1,) + (1,) * (x.dim() - 1))
        return chosen.masked_fill(outside, missing).reshape(shape)

    return gather


@maker("scatter_add")
def _scatter_add(instruction):
    dtype = dtype_of(instruction.dtype)

    def scatter_add(values, indices, like):
        rows, length, rest = _rows(indices), like.shape[0], like.shape[1:]
        outside = torch.logical_or(torch.lt(rows, 0), torch.ge(rows, length))
        # One more row takes what belongs nowhere.
        rows = torch.where(outside, torch.full_like(rows, length), rows)
        values = widened(values).reshape(rows.shape + rest)
        if values.dtype is torch.bool:
            values = values.to(torch.int64)
        total = torch.zeros((length + 1,) + rest, dtype=values.dtype, device=values.device)
        total.index_add_(0, rows, values)
        return total[:length].to(dtype)

    return scatter_add


def _product(instruction, function):
    """`function` of two tensors as a product in the instruction's dtype."""
    dtype = instruction.dtype
    native = dtype_of(dtype)
    if dtype == "float16":
        return lambda a, b: function(a.to(torch.float32), b.to(torch.float32)).to(native)
    if dtype in FLOATS:
        return function

    def integers(a, b):
        if dtype == "bool":
            a, b = a.to(torch.int64), b.to(torch.int64)
        # CUDA multiplies no matrices of integers.
        product = function(a.cpu(), b.cpu()).to(a.device)
        return torch.ne(product, 0) if dtype == "bool" else product

    return integers


@maker("matmul")
def _matmul(instruction, transpose_a, transpose_b):
    product = _product(instruction, torch.mm)
    if not (transpose_a or transpose_b):
        return product
    if not transpose_b:
        return lambda a, b: product(a.t(), b)
    if not transpose_a:
        return lambda a, b: product(a, b.t())
    return lambda a, b: product(a.t(), b.t())


@maker("batch_matmul")
def _batch_matmul(instruction, transpose_a, transpose_b):
    product = _product(instruction, torch.matmul)

    def batch_matmul(a, b):
        return product(a.transpose(-1, -2) if transpose_a else a, b.transpose(-1, -2) if transpose_b else b)

    return batch_matmul


# Composites that PyTorch has kernels for ------------------------------------------------------------------


@maker("mean")
def _mean(instruction, axes, keepdims):
    axes, dtype = tuple(axes), dtype_of(instruction.dtype)
    if instruction.dtype == "float32":
        return lambda x: _added(x, axes, keepdims) / _count(x, axes)
    if instruction.dtype == "float64":
        return lambda x: torch.mean(x, axes, keepdims)
    wider = torch.float32 if instruction.dtype == "float16" else torch.float64
    return lambda x: torch.mean(x.to(wider), axes, keepdims).to(dtype)


@maker("softmax")
def _softmax(instruction, axis):
    if instruction.dtype == "float16":
        return lambda x: torch.softmax(x, axis, dtype=torch.float32).to(torch.float16)
    return lambda x: torch.softmax(x, axis)


# Loops ----------------------------------------------------------------------------------------------------


def _element(x, t):
    return x[t]


class Elements(list):
    """A scan's result of all steps, not stacked: another scan takes it element by element."""


@maker("scan")
def _scan(instruction, sequences, states, reverse, body):
    calls = [(make(inner), inner.inputs) for inner in body.instructions]
    kinds = [body.values[number] for number in body.outputs[states:]]

    def call(*operands):
        length = len(operands[0])
        # All elements at once: to index for each takes longer.
        elements = [x if isinstance(x, Elements) else x.unbind(0) for x in operands[:sequences]]
        steps = Steps(instruction, elements + list(operands[sequences:]), length, _element)
        stacked = [Elements([None] * length) for _ in kinds]
        for t, values in steps:
            for function, inputs in calls:
                values.append(function(*[values[number] for number in inputs]))
            results = [values[number] for number in body.outputs]
            steps.states = results[:states]
            for whole, x in zip(stacked, results[states:]):
                # A view would keep all that it is of.
                whole[t] = x.clone() if x._is_view() else x
        if not length:
            device = operands[0].device
            stacked = [torch.zeros((0,) + shape, dtype=dtype_of(dtype), device=device) for dtype, shape in kinds]
        return steps.states + stacked

    return call


@maker("item")
def _item(instruction, index):
    def item(values):
        value = values[index]
        return torch.stack(value) if isinstance(value, Elements) else value

    return item


def item_in_elements(instruction):
    """The function of an item that nothing but scans takes, as sequences."""
    return lambda values: values[instruction.attrs["index"]]


def _by_contract(name):
    def call(instruction, *values, **attrs):
        return make(instruction)(*values)

    call.__name__ = name
    return call


# As the contract has them: called with the values at once.
OPS = {_name: _by_contract(_name) for _name in MAKERS}
