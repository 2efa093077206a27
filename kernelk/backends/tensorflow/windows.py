"""TensorFlow's kernels for convolutions and pooling: part of its table of ops.

What its kernels on a CPU can't do is left to the decompositions, as dilation, or done by others.
"""

from contextlib import contextmanager

import numpy as np

from ..lowering import resolve_dims, with_elements
from .elementwise import widened

# Set by `hand_over` when the first backend starts: op functions are only called after that.
tf = None

OPS = {}

# What tells an error of `refusal` from all others; TensorFlow would escape an apostrophe.
REFUSAL = "kernelk: values that go into a pool are not finite"

# Within `unguarded`: its program's instructions, each with whether its operands have elements, and the sums.
_instructions, _sums = {}, []


@contextmanager
def unguarded(program):
    """What is lowered of a program has nothing to keep kernels from empty batches and NaN, where that can be.

    These guards take more nodes than all the rest. The caller runs it where all feeds and draws have elements, and its
    results count where all that the yielded list has in the end are finite. Loops' bodies stay guarded.
    """
    global _instructions, _sums
    before, numbers = (_instructions, _sums), with_elements(program)
    _instructions = {x: numbers.issuperset(x.inputs) for x in program.instructions if x.op in OPS}
    _sums = []
    try:
        yield _sums
    finally:
        _instructions, _sums = before


def refusal():
    """The ops after which a graph without guards may write: they fail if its results don't count."""
    if not _sums:
        return []
    return [tf.raw_ops.Assert(condition=all_finite(_sums), data=[tf.constant(REFUSAL)])]


def refused(error):
    """Whether an error is that of `refusal`."""
    return REFUSAL in str(error)


def all_finite(sums):
    """Whether all of these scalars are finite."""
    result = tf.constant(True)
    for total in sums:
        result = tf.raw_ops.LogicalAnd(x=result, y=tf.raw_ops.IsFinite(x=total))
    return result


def _entries(strides):
    return [1] + list(strides) + [1]


def _padding(pads):
    return [[0, 0]] + [list(pair) for pair in pads] + [[0, 0]]


def _placed(pads):
    """The arguments of TensorFlow's kernels for images, for any padding."""
    flat = [count for pair in _padding(pads) for count in pair]
    return {"padding": "EXPLICIT", "explicit_paddings": flat} if any(flat) else {"padding": "VALID"}


def _framed(x, pads, fill=0):
    if not any(before or after for before, after in pads):
        return x
    value = tf.constant(np.asarray(fill, x.dtype.as_numpy_dtype))
    return tf.raw_ops.PadV2(input=x, paddings=tf.constant(_padding(pads), tf.int32), constant_values=value)


def _unframed(x, pads, lengths):
    if not any(before or after for before, after in pads):
        return x
    begin = [0] + [before for before, _ in pads] + [0]
    return tf.slice(x, begin, tf.stack([-1] + list(lengths) + [-1]))


def _lengths(x, axes):
    """The lengths of these axes, ints where known."""
    known = x.shape.as_list()
    shape = tf.shape(x) if None in known else None
    return [shape[axis] if known[axis] is None else known[axis] for axis in axes]


def _spatial(x):
    return _lengths(x, range(1, len(x.shape) - 1))


def _around(lengths, pads):
    return [n + before + after for n, (before, after) in zip(lengths, pads)]


def _thinned(strides):
    """The equal strides that a depthwise kernel takes, and those that are left to a slice."""
    equal = len(set(strides)) == 1
    return _entries(strides if equal else [1] * len(strides)), None if equal else _entries(strides)


def _every(x, strides):
    """The places of rows and columns that these strides leave."""
    rank = len(strides)
    return tf.raw_ops.StridedSlice(
        input=x, begin=[0] * rank, end=[0] * rank, strides=strides, begin_mask=15, end_mask=15
    )


def _conv(instruction, x, kernel, strides, pads, dilation):
    values, weights, entries = widened(x), widened(kernel), _entries(strides)
    if len(strides) == 2:
        left = None
        if strides[0] == 1 and x.shape[-1] in (1, None) and instruction.shape[2] in (1, None):
            # Of one channel, where rows have one place, oneDNN computes other rows than those asked for.
            entries, left = _thinned(strides)
        y = tf.raw_ops.Conv2D(input=values, filter=weights, strides=entries, **_placed(pads))
        if left is not None:
            y = _every(y, left)
    else:
        y = tf.raw_ops.Conv3D(input=_framed(values, pads), filter=weights, strides=entries, padding="VALID")
    return tf.cast(y, x.dtype)


def _conv_input(instruction, g, kernel, dims, strides, pads):
    values, weights, entries = widened(g), widened(kernel), _entries(strides)
    ends = _lengths(g, [0]), _lengths(kernel, [-2])
    if len(strides) == 2:
        sizes = tf.stack(ends[0] + list(dims) + ends[1])
        kernel = tf.raw_ops.Conv2DBackpropInput
        result = kernel(input_sizes=sizes, filter=weights, out_backprop=values, strides=entries, **_placed(pads))
    else:
        sizes = tf.stack(ends[0] + _around(dims, pads) + ends[1])
        kernel = tf.raw_ops.Conv3DBackpropInputV2
        result = kernel(input_sizes=sizes, filter=weights, out_backprop=values, strides=entries, padding="VALID")
        result = _unframed(result, pads, dims)
    return tf.cast(result, g.dtype)


def _what_counts(x, size, strides, pads):
    """`x`, strides and padding of a kernel's gradient; of a kernel of one element, the part of `x` that it meets.

    oneDNN's own way to that one's gradient isn't sound where it has strides.
    """
    if set(size) == {1} and set(strides) != {1}:
        return _every(_framed(x, pads), _entries(strides)), [1, 1], [(0, 0)] * 2
    return x, strides, pads


def _conv_kernel(instruction, x, g, size, strides, pads, dilation):
    values, given = widened(x), widened(g)
    sizes = tf.stack(list(size) + _lengths(x, [-1]) + _lengths(g, [-1]))
    if len(strides) == 2:
        values, strides, pads = _what_counts(values, size, strides, pads)
        kernel, placed = tf.raw_ops.Conv2DBackpropFilter, _placed(pads)
    else:
        values = _framed(values, pads)
        kernel, placed = tf.raw_ops.Conv3DBackpropFilterV2, {"padding": "VALID"}
    result = kernel(input=values, filter_sizes=sizes, out_backprop=given, strides=_entries(strides), **placed)
    return tf.cast(result, x.dtype)


def _with_zeros_between(g, strides, lengths):
    """`g` with zeros between, as if every stride were 1."""
    shape = tf.stack(_lengths(g, [0]) + list(lengths) + _lengths(g, [-1]))
    rank = len(strides)
    return tf.raw_ops.StridedSliceGrad(
        shape=shape, begin=[0] * rank, end=[0] * rank, strides=strides, dy=g, begin_mask=15, end_mask=15
    )


def _depthwise_conv(instruction, x, kernel, strides, pads, dilation):
    taken, left = _thinned(strides)
    y = tf.raw_ops.DepthwiseConv2dNative(input=widened(x), filter=widened(kernel), strides=taken, **_placed(pads))
    if left is not None:
        y = _every(y, left)
    return tf.cast(y, x.dtype)


def _unit_lengths(lengths, size, pads):
    """The number of windows along each axis where every stride is 1."""
    return [n - (k - 1) for n, k in zip(_around(lengths, pads), size)]


def _depthwise_conv_input(instruction, g, kernel, dims, strides, pads):
    taken, left = _thinned(strides)
    given, weights = widened(g), widened(kernel)
    if left is not None:
        given = _with_zeros_between(given, left, _unit_lengths(dims, _lengths(kernel, [0, 1]), pads))
    result = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=tf.stack(_lengths(g, [0]) + list(dims) + _lengths(kernel, [-2])),
        filter=weights,
        out_backprop=given,
        strides=taken,
        **_placed(pads),
    )
    return tf.cast(result, g.dtype)


def _depthwise_conv_kernel(instruction, x, g, size, strides, pads, dilation):
    values, strides, pads = _what_counts(widened(x), size, strides, pads)
    taken, left = _thinned(strides)
    given = widened(g)
    (channels,), (filters,) = _lengths(x, [-1]), _lengths(g, [-1])
    if left is not None:
        given = _with_zeros_between(given, left, _unit_lengths(_spatial(x), size, pads))
    result = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=values,
        filter_sizes=tf.stack(list(size) + [channels, filters // channels]),
        out_backprop=given,
        strides=taken,
        **_placed(pads),
    )
    return tf.cast(result, x.dtype)


def _pools(window, strides):
    return {"ksize": _entries(window), "strides": _entries(strides)}


def _max_pool(instruction, x, window, strides, pads):
    values = widened(x)
    # TensorFlow's kernel passes over NaN, and has the least float for a maximum of -inf. Neither leaves a sum finite.
    total = tf.raw_ops.Sum(input=values, axis=list(range(len(x.shape))))
    settings = dict(_pools(window, strides), **_placed(pads))
    if instruction in _instructions:
        _sums.append(total)
        result = tf.raw_ops.MaxPool(input=values, **settings)
    else:
        result = tf.cond(
            tf.raw_ops.IsFinite(x=total),
            lambda: tf.raw_ops.MaxPool(input=values, **settings),
            lambda: _max_of_slices(_framed(values, pads, -np.inf), window, strides),
        )
    return tf.cast(result, x.dtype)


def _max_of_slices(x, window, strides):
    """The maximum over the places in a window, one axis after the other; NaN wins."""
    for axis, (size, stride) in enumerate(zip(window, strides), 1):
        best = None
        for offset in range(size):
            left = size - 1 - offset
            entry = slice(offset, -left if left else None, stride)
            piece = x[(slice(None),) * axis + (entry,)]
            if best is None:
                best = piece
            else:
                first = tf.logical_or(tf.greater_equal(best, piece), tf.math.is_nan(best))
                best = tf.where(first, best, piece)
        x = best
    return x


def _max_pool_grad(instruction, x, g, window, strides, pads):
    values, settings = widened(x), dict(_pools(window, strides), **_placed(pads))
    best = tf.raw_ops.MaxPool(input=values, **settings)
    result = tf.raw_ops.MaxPoolGrad(orig_input=values, orig_output=best, grad=widened(g), **settings)
    return tf.cast(result, x.dtype)


def _share(lengths, dtype, window, strides, pads):
    """The part of each window that isn't padding; 1 without padding."""
    if not any(before or after for before, after in pads):
        return tf.constant(1, dtype)
    ones = tf.ones(tf.stack([1] + list(lengths) + [1]), dtype)
    return tf.raw_ops.AvgPool(value=_framed(ones, pads), padding="VALID", **_pools(window, strides))


def _avg_pool(instruction, x, window, strides, pads):
    values = widened(x)
    y = tf.raw_ops.AvgPool(value=_framed(values, pads), padding="VALID", **_pools(window, strides))
    y = tf.raw_ops.RealDiv(x=y, y=_share(_spatial(x), y.dtype, window, strides, pads))
    return tf.cast(y, x.dtype)


def _avg_pool_grad(instruction, g, like, window, strides, pads):
    given, lengths = widened(g), _spatial(like)
    given = tf.raw_ops.RealDiv(x=given, y=_share(lengths, given.dtype, window, strides, pads))
    shape = tf.stack(_lengths(g, [0]) + _around(lengths, pads) + _lengths(like, [-1]))
    result = tf.raw_ops.AvgPoolGrad(orig_input_shape=shape, grad=given, padding="VALID", **_pools(window, strides))
    return tf.cast(_unframed(result, pads, lengths), g.dtype)


def _never_empty(function, batches):
    """`function`, whose first `batches` operands have a batch axis, with one sample of zeros where there is none.

    On a CPU TensorFlow's kernels give a wrong shape there, or end the process.
    """

    def call(instruction, *values, **attrs):
        if values[0].shape[0] or _instructions.get(instruction):
            return function(instruction, *values, **attrs)
        count = tf.raw_ops.Slice(input=tf.shape(values[0]), begin=[0], size=[1])
        missing = tf.cast(tf.raw_ops.Equal(x=count, y=tf.constant([0])), tf.int32)
        filled = list(values)
        for i in range(batches):
            rows = np.zeros((len(values[i].shape), 2), np.int32)
            rows[0, 1] = 1
            # Padding by nothing copies nothing.
            paddings = tf.raw_ops.Mul(x=tf.constant(rows), y=missing)
            # PadV2: TensorFlow fuses a Pad with the convolution behind it, as if it could frame only images.
            zero = tf.constant(0, values[i].dtype)
            filled[i] = tf.raw_ops.PadV2(input=values[i], paddings=paddings, constant_values=zero)
            filled[i].set_shape([None] + values[i].shape.as_list()[1:])
        result = function(instruction, *filled, **attrs)
        if "_kernel" in instruction.op:
            return result
        return tf.raw_ops.StridedSlice(input=result, begin=[0], end=count, strides=[1])

    return call


def _resolving(function):
    """`function` of the lengths themselves, in place of what refers to them."""

    def call(instruction, g, kernel, *references, **attrs):
        def length(value, axis):
            return _lengths(value, [axis])[0]

        dims = resolve_dims(attrs["dims"], (g, kernel) + references, length)
        return function(instruction, g, kernel, dims, attrs["strides"], attrs["pads"])

    return call


for _name, _function, _batches in (
    ("conv", _conv, 1),
    ("conv_input", _resolving(_conv_input), 1),
    ("conv_kernel", _conv_kernel, 2),
    ("depthwise_conv", _depthwise_conv, 1),
    ("depthwise_conv_input", _resolving(_depthwise_conv_input), 1),
    ("depthwise_conv_kernel", _depthwise_conv_kernel, 2),
    ("max_pool", _max_pool, 1),
    ("max_pool_grad", _max_pool_grad, 2),
    ("avg_pool", _avg_pool, 1),
    # Of the second operand only the lengths of rows and columns count.
    ("avg_pool_grad", _avg_pool_grad, 1),
):
    OPS[_name] = _never_empty(_function, _batches)
