"""XLA's convolutions: part of JAX's table of ops.

Pooling is left to the decompositions: XLA fuses their slices, and its own gradient of a maximum passes over NaN.
"""

from ..base import registrar, window_ops
from .elementwise import factors

# Set by `hand_over` when the first backend starts: op functions are only called after that.
jax = None
lax = None

OPS = {}
op = registrar(OPS)


def _conv(x, kernel, strides, pads, dilation, depthwise):
    spatial = "DHW"[-len(strides) :]
    groups = 1
    if depthwise:
        channels, made = kernel.shape[-2:]
        kernel, groups = lax.reshape(kernel, kernel.shape[:-2] + (1, channels * made)), channels
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=[tuple(pair) for pair in pads],
        rhs_dilation=dilation,
        dimension_numbers=("N%sC" % spatial, "%sIO" % spatial, "N%sC" % spatial),
        feature_group_count=groups,
    )


def _adjoint(function, shape, g):
    """The adjoint of a linear function of an array of this shape, at `g`."""
    (result,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, g.dtype))(g)
    return result


@op(*window_ops("conv"))
def conv(instruction, x, kernel, strides, pads, dilation):
    x, kernel = factors(instruction, x, kernel)
    y = _conv(x, kernel, strides, pads, dilation, "depthwise" in instruction.op)
    return lax.convert_element_type(y, instruction.dtype)


@op(*window_ops("conv_input"))
def conv_input(instruction, g, kernel, *references, **attrs):
    geometry = attrs["strides"], attrs["pads"], attrs["dilation"], "depthwise" in instruction.op
    g, weights = factors(instruction, g, kernel)
    result = _adjoint(lambda x: _conv(x, weights, *geometry), instruction.shape, g)
    return lax.convert_element_type(result, instruction.dtype)


@op(*window_ops("conv_kernel"))
def conv_kernel(instruction, x, g, size, strides, pads, dilation):
    geometry = strides, pads, dilation, "depthwise" in instruction.op
    values, g = factors(instruction, x, g)
    result = _adjoint(lambda kernel: _conv(values, kernel, *geometry), instruction.shape, g)
    return lax.convert_element_type(result, instruction.dtype)
