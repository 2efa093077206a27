"""Classes of Theano ops whose meaning is numpy's: the backend alone imports this, after setting Theano's flags.

They stand in a module of their own since Theano pickles them into the keys of its compile cache by module and name.
"""

import numpy as np
import theano
from theano import scalar

from ..numpy import windows
from ..numpy.elementwise import widened


class NumpyOp(theano.Op):
    """A numpy function as an op, for what Theano's C code lacks or does otherwise; the same in every mode."""

    __props__ = ("function", "attrs", "dtype", "broadcastable")
    # Keeps Theano from trying, and announcing that it gave up, C code for float16.
    _f16_ok = True

    def __init__(self, function, attrs, dtype, broadcastable):
        self.function = function
        self.attrs = attrs
        self.dtype = dtype
        self.broadcastable = broadcastable

    def make_node(self, *values):
        output = theano.tensor.TensorType(self.dtype, self.broadcastable)()
        return theano.Apply(self, [theano.tensor.as_tensor_variable(value) for value in values], [output])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.asarray(FUNCTIONS[self.function](*(tuple(inputs) + self.attrs)))

    def infer_shape(self, node, shapes):
        if self.function in ("cast", "cumsum", "cumprod"):
            return shapes
        if self.function == "sum":
            (shape,), (axes, keepdims) = shapes, self.attrs
            one = theano.tensor.constant(np.array(1, "int64"))
            kept = [one if axis in axes else n for axis, n in enumerate(shape) if keepdims or axis not in axes]
            return [tuple(kept)]
        raise theano.tensor.ShapeError("known after the op alone")


def accumulate(function):
    def call(x, axis):
        wide = np.dtype("longdouble") if x.dtype.kind == "f" else x.dtype
        return function(x, axis=axis, dtype=wide).astype(x.dtype, copy=False)

    return call


def gather(x, indices):
    """numpy's `take`, but for the rows that there aren't."""
    inside = np.asarray((indices >= 0) & (indices < len(x)))
    if inside.all() and len(x):
        return x.take(indices.astype(np.intp), axis=0, mode="clip")
    rows = np.full(indices.shape + x.shape[1:], np.nan if x.dtype.kind == "f" else 0, x.dtype)
    if inside.any():
        rows[inside] = x.take(indices[inside].astype(np.intp), axis=0, mode="clip")
    return rows


# From this many elements in a row on, one call of numpy for each different index beats `reduceat`.
LONG_ROWS = 16


def scatter_add(values, indices, length):
    """np.add.at on zeros, some ten times as fast: rows of one index are brought together, then added."""
    wide = widened(values)
    total = np.zeros((length,) + values.shape[indices.ndim :], wide.dtype)
    inside = np.asarray((indices >= 0) & (indices < length))
    rows, positions = wide[inside], indices[inside].astype(np.intp)
    if rows.size:
        order = np.argsort(positions, kind="stable")
        rows, positions = rows[order], positions[order]
        starts = np.flatnonzero(np.concatenate([[True], positions[1:] != positions[:-1]]))
        if rows.size < LONG_ROWS * len(rows):
            total[positions[starts]] += np.add.reduceat(rows, starts, axis=0, dtype=total.dtype)
        else:
            for start, stop in zip(starts, list(starts[1:]) + [len(rows)]):
                total[positions[start]] += np.sum(rows[start:stop], axis=0, dtype=total.dtype)
    return total.astype(values.dtype, copy=False)


def batch_matmul(a, b, transpose_a, transpose_b):
    left = np.swapaxes(a, -1, -2) if transpose_a else a
    right = np.swapaxes(b, -1, -2) if transpose_b else b
    return np.matmul(widened(left), widened(right)).astype(a.dtype, copy=False)


# None of them may return a view of an operand: Theano would not know, and overwrite the one for the other.
FUNCTIONS = {
    "argmin": lambda x, axis: np.argmin(x, axis=axis).astype(np.int64),
    "avg_pool": windows.avg_pool,
    "avg_pool_grad": windows.avg_pool_grad,
    "batch_matmul": batch_matmul,
    "cast": lambda x, dtype: x.astype(dtype),
    "conv": windows.conv,
    "conv_input": windows.conv_input,
    "conv_kernel": windows.conv_kernel,
    "cumprod": accumulate(np.cumprod),
    "cumsum": accumulate(np.cumsum),
    "gather": gather,
    "max": lambda x, axes, keepdims: np.max(x, axis=axes, keepdims=keepdims),
    "max_pool": windows.max_pool,
    "max_pool_grad": windows.max_pool_grad,
    "max_pool_pick": windows.max_pool_pick,
    "min": lambda x, axes, keepdims: np.min(x, axis=axes, keepdims=keepdims),
    "power": np.power,
    "scatter_add": scatter_add,
    "sum": lambda x, axes, keepdims: np.add.reduce(x, axis=axes, dtype=np.float64, keepdims=keepdims).astype(x.dtype),
}


class Round(scalar.UnaryScalarOp):
    """numpy's rint: halves to the even neighbour. The C code of Theano's own makes 0.0 of -0.5."""

    nfunc_spec = ("rint", 1, 1)

    def c_code_cache_version(self):
        return (1,)

    def c_code(self, node, name, inputs, outputs, sub):
        return "%s = rint(%s);" % (outputs[0], inputs[0])

    def impl(self, x):
        return np.rint(x)


class _Binary(scalar.BinaryScalarOp):
    def c_code_cache_version(self):
        return (1,)

    def c_code(self, node, name, inputs, outputs, sub):
        dtype = node.outputs[0].type.dtype
        code = self.float_code if dtype.startswith("float") else self.integer_code
        names = {"x": inputs[0], "y": inputs[1], "z": outputs[0], "fail": sub["fail"], "T": "npy_" + dtype}
        names["U"] = names["T"] if dtype.startswith("u") else "npy_u" + dtype
        return "{ %s }" % (code % names)


class FloorDivide(_Binary):
    """numpy's floor_divide. No remainder operator in the C code: Theano formats the text once more."""

    nfunc_spec = ("floor_divide", 2, 1)
    # Dividing the lowest integer by -1 traps, so -1 is a negation, which wraps.
    integer_code = """
        %(T)s x_ = %(x)s, y_ = %(y)s;
        if (y_ == 0) %(z)s = 0;
        else if (y_ == (%(T)s)-1 && (%(T)s)-1 < (%(T)s)1) %(z)s = (%(T)s)((%(U)s)0 - (%(U)s)x_);
        else {
            %(T)s q_ = x_ / y_;
            %(T)s r_ = x_ - q_ * y_;
            %(z)s = q_ - (r_ != 0 && ((x_ < 0) != (y_ < 0)));
        }"""
    float_code = """
        %(T)s x_ = %(x)s, y_ = %(y)s;
        if (y_ == 0) %(z)s = x_ / y_;
        else {
            %(T)s m_ = fmod(x_, y_);
            %(T)s d_ = (x_ - m_) / y_;
            if (m_ != 0 && (y_ < 0) != (m_ < 0)) d_ -= 1;
            if (d_ != 0) {
                %(T)s f_ = floor(d_);
                %(z)s = d_ - f_ > (%(T)s)0.5 ? f_ + 1 : f_;
            }
            else %(z)s = copysign((%(T)s)0, x_ / y_);
        }"""

    def impl(self, x, y):
        return np.floor_divide(x, y)


class Mod(_Binary):
    """numpy's mod: the divisor's sign."""

    nfunc_spec = ("mod", 2, 1)
    integer_code = """
        %(T)s x_ = %(x)s, y_ = %(y)s;
        if (y_ == 0 || (y_ == (%(T)s)-1 && (%(T)s)-1 < (%(T)s)1)) %(z)s = 0;
        else {
            %(T)s r_ = x_ - (x_ / y_) * y_;
            %(z)s = (r_ != 0 && ((r_ < 0) != (y_ < 0))) ? r_ + y_ : r_;
        }"""
    float_code = """
        %(T)s y_ = %(y)s;
        %(T)s m_ = fmod((%(T)s)%(x)s, y_);
        if (y_ == 0) %(z)s = m_;
        else if (m_ != 0) %(z)s = ((y_ < 0) != (m_ < 0)) ? m_ + y_ : m_;
        else %(z)s = copysign((%(T)s)0, y_);"""

    def impl(self, x, y):
        return np.mod(x, y)


class Power(_Binary):
    """Theano's own power counts in doubles for integers and is rewritten to sqrt and inv where they differ."""

    nfunc_spec = ("power", 2, 1)
    integer_code = """
        npy_uint64 b_ = %(x)s, r_ = 1;
        %(T)s e_ = %(y)s;
        if (e_ < 0) {
            PyErr_SetString(PyExc_ValueError, "Integers to negative integer powers are not allowed.");
            %(fail)s
        }
        while (e_) {
            if (e_ & 1) r_ *= b_;
            b_ *= b_;
            e_ >>= 1;
        }
        %(z)s = (%(T)s)r_;"""
    float_code = "%(z)s = pow((%(T)s)%(x)s, (%(T)s)%(y)s);"

    def impl(self, x, y):
        return np.power(x, y)


class Maximum(_Binary):
    """The larger of two. Not Theano's own for integers: its C code mentions NaN, which makes the result a double."""

    nfunc_spec = ("maximum", 2, 1)
    integer_code = "%(z)s = (%(y)s) > (%(x)s) ? (%(y)s) : (%(x)s);"

    def impl(self, x, y):
        return np.maximum(x, y)


class Minimum(_Binary):
    nfunc_spec = ("minimum", 2, 1)
    integer_code = "%(z)s = (%(y)s) < (%(x)s) ? (%(y)s) : (%(x)s);"

    def impl(self, x, y):
        return np.minimum(x, y)


def elementwise(scalar_class, name):
    output_types = scalar.same_out if issubclass(scalar_class, scalar.UnaryScalarOp) else scalar.upcast_out
    return theano.tensor.Elemwise(scalar_class(output_types, name=name), nfunc_spec=scalar_class.nfunc_spec)


round_to_even = elementwise(Round, "round_to_even")
floor_divide = elementwise(FloorDivide, "floor_divide")
mod = elementwise(Mod, "mod")
power = elementwise(Power, "power")
maximum = elementwise(Maximum, "integer_maximum")
minimum = elementwise(Minimum, "integer_minimum")


class WriteIntoDestination(theano.gof.opt.Optimizer):
    """The last step: what computes a variable's new value allocates its result instead of reusing a temporary.

    An op that allocates writes into the array it finds in its output's storage, so the new value is born in
    the variable's inactive slot; an op that works inside a temporary would leave it there, to be copied.
    """

    def __init__(self, first):
        self.first = first

    def add_requirements(self, fgraph):
        pass

    def apply(self, fgraph):
        for output in fgraph.outputs[self.first :]:
            node = output.owner
            if node is None or type(node.op) is not theano.tensor.Elemwise or not node.op.inplace_pattern:
                continue
            if len(node.outputs) != 1:
                continue
            op = theano.tensor.Elemwise(node.op.scalar_op, nfunc_spec=node.op.nfunc_spec)
            new = op(*node.inputs)
            theano.gof.opt.copy_stack_trace(output, new)
            fgraph.replace_all_validate([(output, new)], reason="write_into_destination")
