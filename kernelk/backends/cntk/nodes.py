"""Values inside a CNTK Function and the graph that is built of them, for its op functions."""

import numpy as np

from .known import FLOATS


class Val(object):
    """A CNTK node that stands for a value of `shape`; `real` is the node's own shape, which may still broadcast."""

    __slots__ = ("dtype", "known", "node", "real", "shape")

    def __init__(self, node, dtype, real, shape, known=None):
        self.node = node
        self.dtype = dtype
        self.real = tuple(real)
        self.shape = tuple(shape)
        self.known = known


def broadcast_shape(shapes):
    """The shape that operands of these shapes have together."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(column) for column in zip(*padded)) if rank else ()


class Builder(object):
    """The nodes of one native stage; passed to every op function in place of the engine."""

    def __init__(self, engine):
        self.engine = engine
        self.flags = []
        # id of a node: (the same with channels first, as a batch; the node itself)
        self.batches = {}
        self._constants = {}

    def constant(self, array, dtype=None):
        """A node for a small constant, made once; `array` may be a plain number."""
        array = np.asarray(array, dtype=dtype, order="C")
        key = (str(array.dtype), array.shape, array.tobytes()) if array.nbytes <= 4096 else id(array)
        if key not in self._constants:
            # The array is kept beside the node so that its id stays its own.
            node = self.engine.Constant(value=array, shape=array.shape, dtype=array.dtype.type)
            self._constants[key] = (node, array)
        return self._constants[key][0]

    def value(self, array, known=None):
        """A Val of a constant array, booleans and integers as float32."""
        if str(array.dtype) not in FLOATS:
            array = array.astype(np.float32)
        return Val(self.constant(array), str(array.dtype), array.shape, array.shape, known)

    def typed(self, value, dtype):
        if value.dtype == dtype:
            return value
        node = self.engine.cast(value.node, np.dtype(dtype).type)
        return Val(node, dtype, value.real, value.shape, value.known)

    def whole(self, value):
        """The node with all its elements: a pending broadcast is done here, by a product that is exact."""
        if value.real == value.shape:
            return value.node
        node = value.node
        if np.prod(value.real) == np.prod(value.shape):
            node = self.engine.reshape(node, value.shape)
        else:
            node = self.engine.element_times(node, self.constant(np.ones(value.shape), value.dtype))
        value.node, value.real = node, value.shape
        return node

    def flag(self, condition, dtype):
        """Asks for numpy's definition whenever an element of `condition` isn't 0."""
        worst = condition
        if condition.shape != ():
            worst = self.engine.reshape(self.engine.reduce_max(condition, axis=None), ())
        self.flags.append(worst if dtype == "float32" else self.engine.cast(worst, np.float32))


def common_dtype(values):
    """The common dtype of values of different float types in a stage (booleans have no type of their own)."""
    return "float64" if any(value.dtype == "float64" for value in values) else "float32"


def result(instruction, node, values):
    """An elementwise result: it is as much broadcast as its operands, and no more."""
    return Val(node, values[0].dtype, broadcast_shape([value.real for value in values]), instruction.shape)


def reshaped(b, node, shape):
    return b.engine.reshape(node, tuple(shape))


def ranges(slices, shape):
    """For each axis: lowest index, count, distance, and whether it runs backwards."""
    axes = []
    for entry, length in zip(slices, shape):
        start, stop, step = slice(*entry).indices(length)
        count = len(range(start, stop, step))
        lowest = start if step > 0 else start + (count - 1) * step
        axes.append((lowest, count, abs(step), step < 0 and count > 1))
    return axes


def among_zeros(b, piece, shape, slices):
    """Zeros of this shape, with `piece` at the slices."""
    engine, node, dims = b.engine, b.whole(piece), list(piece.shape)

    def zeros(shape):
        return b.constant(np.zeros(shape), piece.dtype)

    for axis, (lowest, count, distance, backwards) in enumerate(ranges(slices, shape)):
        length = shape[axis]
        if count == length and not backwards:
            continue
        before, after = int(np.prod(dims[:axis])), int(np.prod(dims[axis + 1 :]))
        node = reshaped(b, node, (before, count, after))
        if backwards:
            node = engine.slice(node, [1], [0], [count], [-1])
        reach = count
        if distance > 1 and count > 1:
            node = reshaped(b, node, (before, count, 1, after))
            node = engine.splice(node, zeros((before, count, distance - 1, after)), axis=2)
            node = reshaped(b, node, (before, count * distance, after))
            reach = (count - 1) * distance + 1
            node = engine.slice(node, [1], [0], [reach])
        parts = [node]
        if lowest:
            parts.insert(0, zeros((before, lowest, after)))
        if lowest + reach < length:
            parts.append(zeros((before, length - lowest - reach, after)))
        node = engine.splice(*parts, axis=1) if len(parts) > 1 else node
        dims[axis] = length
        node = reshaped(b, node, dims)
    return Val(node, piece.dtype, shape, shape)
