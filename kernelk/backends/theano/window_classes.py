"""Classes of Theano ops with C code, for convolutions and pooling: the backend alone imports this, with a compiler.

Channels stay last: windows are laid out as rows of a matrix, a few lines of windows at a time, and multiplied by BLAS.
The windows' geometry is a parameter of the compiled code, so that one compilation serves all layers of a dtype.
"""

import os
import zlib

import numpy as np
import theano
from theano.tensor import blas, blas_headers

from .op_classes import NumpyOp

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "windows.cpp"), encoding="utf-8") as _file:
    CODE = _file.read()

# For each op: the lengths of the array that windows cover, those of a window, channels, filters, whether the operands
# fit, the result's lengths, and the arguments. a and b are the operands, of lengths da and db; the last of an operand's
# is at `last`. What no operand tells is given: `sizes` as an attribute, `lengths` as the last operand.
CASES = {
    "conv": (
        "da + 1",
        "db",
        "db[last - 1]",
        "db[last]",
        "da[last] == w.channels",
        "batch made filters",
        "A, B, filters",
    ),
    "conv_input": (
        "lengths",
        "db",
        "db[last - 1]",
        "db[last]",
        "w.made_as(a, spatial) && da[last] == filters",
        "batch n channels",
        "A, B, filters",
    ),
    "conv_kernel": (
        "da + 1",
        "sizes",
        "da[last]",
        "db[last]",
        "w.made_as(b, spatial)",
        "size channels filters",
        "A, B, filters",
    ),
    "max_pool": ("da + 1", "sizes", "da[last]", "0", "true", "batch made channels", "A"),
    "max_pool_grad": (
        "da + 1",
        "sizes",
        "da[last]",
        "0",
        "w.made_as(b, spatial) && db[last] == w.channels",
        "batch n channels",
        "A, B",
    ),
    "avg_pool": ("da + 1", "sizes", "da[last]", "0", "true", "batch made channels", "A"),
    "avg_pool_grad": ("lengths", "sizes", "da[last]", "0", "w.made_as(a, spatial)", "batch n channels", "A"),
}
LENGTHS = {
    "batch": "shape.push_back(w.batch);",
    "made": "shape.insert(shape.end(), w.made + 3 - spatial, w.made + 3);",
    "n": "shape.insert(shape.end(), w.n + 3 - spatial, w.n + 3);",
    "size": "shape.insert(shape.end(), w.size + 3 - spatial, w.size + 3);",
    "channels": "shape.push_back(w.channels);",
    "filters": "shape.push_back(filters);",
}
BODY = """
{
    typedef %(type)s T;
    const npy_int64* geometry = (const npy_int64*)PyArray_DATA(%(geometry)s);
    const int spatial = PyArray_DIMS(%(geometry)s)[0] / 5, last = spatial + 1;
    npy_intp lengths[3] = {1, 1, 1}, sizes[3] = {1, 1, 1};
    for (int i = 0; i < spatial; i++) sizes[i] = geometry[4 * spatial + i];
    %(read_lengths)s
    PyArrayObject* a = (PyArrayObject*)PyArray_FROM_OF((PyObject*)%(a)s, NPY_ARRAY_CARRAY_RO);
    PyArrayObject* b = (PyArrayObject*)PyArray_FROM_OF((PyObject*)%(b)s, NPY_ARRAY_CARRAY_RO);
    bool done = false;
    if (a && b) {
        const npy_intp *da = PyArray_DIMS(a), *db = PyArray_DIMS(b);
        const T *A = (const T*)PyArray_DATA(a), *B = (const T*)PyArray_DATA(b);
        npy_intp filters = %(filters)s;
        Windows w(geometry, spatial, da[0], %(lengths)s, %(sizes)s, %(channels)s);
        std::vector<npy_intp> shape;
        %(shape)s
        if (!(%(fits)s)) PyErr_SetString(PyExc_ValueError, "the operands' lengths don't fit together");
        else if ((%(z)s = room(%(z)s, shape, %(number)s))) {
            %(function)s<T>(w, %(arguments)s, (T*)PyArray_DATA(%(z)s));
            done = true;
        }
    }
    Py_XDECREF(a);
    Py_XDECREF(b);
    if (!done) {
        %(fail)s
    }
}
"""
READ_LENGTHS = "for (int i = 0; i < spatial; i++) lengths[i] = *(npy_int64*)PyArray_GETPTR1(%s, i);"


class WindowOp(NumpyOp):
    """A function of numpy's windows.py in C, for float32 and float64; "depthwise" ones are numpy's alone."""

    params_type = theano.gof.ParamsType(geometry=theano.tensor.lvector)

    @property
    def geometry(self):
        strides, pads, dilation, sizes = GEOMETRIES[self.function](*self.attrs)
        ends = [before for before, _ in pads], [after for _, after in pads]
        return np.array(list(strides) + ends[0] + ends[1] + list(dilation) + list(sizes), "int64")

    def perform(self, node, inputs, output_storage, params):
        NumpyOp.perform(self, node, inputs, output_storage)

    def c_support_code(self):
        return blas_headers.blas_header_text() + CODE

    def c_headers(self):
        return ["<string.h>"]

    def c_libraries(self):
        return blas.ldflags()

    def c_compile_args(self):
        return blas.ldflags(libs=False, flags=True)

    def c_lib_dirs(self):
        return blas.ldflags(libs=False, libs_dir=True)

    def c_header_dirs(self):
        return blas.ldflags(libs=False, include_dir=True)

    def c_code_cache_version(self):
        return (zlib.crc32((CODE + BODY + READ_LENGTHS).encode()), blas_headers.blas_header_version())

    def c_code(self, node, name, inputs, outputs, sub):
        lengths, sizes, channels, filters, fits, shape, arguments = CASES[self.function]
        with_lengths = lengths == "lengths"
        arrays = inputs[:-1] if with_lengths else inputs
        return BODY % {
            "type": "npy_" + self.dtype,
            "number": "NPY_" + self.dtype.upper(),
            "function": self.function,
            "geometry": sub["params"] + "->geometry",
            "fail": sub["fail"],
            "a": arrays[0],
            "b": arrays[-1],
            "z": outputs[0],
            "read_lengths": READ_LENGTHS % inputs[-1] if with_lengths else "",
            "lengths": lengths,
            "sizes": sizes,
            "channels": channels,
            "filters": filters,
            "fits": fits,
            "shape": " ".join(LENGTHS[part] for part in shape.split()),
            "arguments": arguments,
        }


# From the attributes of a function: strides, pads, dilation, and a window's lengths (0: those of an operand).
GEOMETRIES = {
    "conv": lambda strides, pads, dilation, depthwise: (strides, pads, dilation, [0] * len(strides)),
    "conv_input": lambda strides, pads, dilation, depthwise: (strides, pads, dilation, [0] * len(strides)),
    "conv_kernel": lambda size, strides, pads, dilation, depthwise: (strides, pads, dilation, size),
}
for _name in ("max_pool", "max_pool_grad", "avg_pool", "avg_pool_grad"):
    GEOMETRIES[_name] = lambda window, strides, pads: (strides, pads, [1] * len(strides), window)


def has_code(function, attrs, dtype):
    """Whether a function of numpy's windows.py with these attributes has C code."""
    return function in CASES and dtype in ("float32", "float64") and attrs[-1] is not True
