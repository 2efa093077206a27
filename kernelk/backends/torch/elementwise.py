"""PyTorch's elementwise ops, each with numpy's edge values: part of its table of makers (see ops.py)."""

import numpy as np

from ..base import registrar
from ..errors import CannotLower
from ..gemm import usable

# Set by `hand_over` when the first backend starts: makers are only called after that.
torch = None

MAKERS = {}
maker = registrar(MAKERS)

FLOATS = ("float16", "float32", "float64")
# PyTorch holds these, and has next to no arithmetic for them: it is done on signed twins of the same bits.
TWINS = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}

# One kernel, which also takes `out`, for all dtypes but those of TWINS (and but for what is handled below).
KERNELS = {
    "negative": "neg",
    "sqrt": "sqrt",
    "exp": "exp",
    "log": "log",
    "tanh": "tanh",
    "sin": "sin",
    "cos": "cos",
    "logical_not": "logical_not",
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "power": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "select": "where",
    "sigmoid": "sigmoid",
    "log1p": "log1p",
    "expm1": "expm1",
}


def kernel(instruction):
    """PyTorch's own function for the instruction, which also takes `out`; None where there is more to do."""
    name = KERNELS.get(instruction.op)
    if name is None or any(dtype in TWINS for dtype in instruction.input_dtypes):
        return None
    if instruction.op == "power" and instruction.dtype not in FLOATS:
        return None
    return getattr(torch, name)


def scaled(op, factor):
    """`op` ("add" or "subtract") of x and c * y as a kernel of (x, y, c), or of (x, y) where c is known.

    It rounds once where two kernels would round twice.
    """
    function = {"add": torch.add, "subtract": torch.sub}[op]
    if factor is not None:
        constant = factor.item()
        return lambda x, y, out=None: function(x, y, alpha=constant, out=out)
    return lambda x, y, factor, out=None: function(x, y, alpha=factor.item(), out=out)


def product_added(variable, product, factors, matmul):
    """c times a variable plus d times a product, both `gemm.Scaled`, as a kernel of (variable, a, b, *unknown factors).

    `factors`: those of c and d, None where it is to come with the call. A product that BLAS would leave out is added
    by kernels of its own.
    """
    signs = variable.sign, product.sign
    constants = [None if x is None else sign * x for x, sign in zip(factors, signs)]
    transposed = matmul.attrs["transpose_a"], matmul.attrs["transpose_b"]

    def kernel(x, a, b, *unknown, out=None):
        a, b = a.T if transposed[0] else a, b.T if transposed[1] else b
        if unknown:
            rest = iter(unknown)
            beta, alpha = [
                sign * next(rest).item() if known is None else known for known, sign in zip(constants, signs)
            ]
            if not (usable(beta) and usable(alpha)):
                return _added_separately(x, a, b, beta, alpha, out)
        else:
            beta, alpha = constants
        return torch.addmm(x, a, b, beta=beta, alpha=alpha, out=out)

    return kernel


def _added_separately(x, a, b, beta, alpha, out):
    return torch.add(torch.mul(x, beta), torch.mul(torch.mm(a, b), alpha), out=out)


def twin(x):
    """Unsigned integers as signed ones of the same bits; others as they are."""
    name = TWINS.get(str(x.dtype)[6:])
    return x if name is None else x.view(getattr(torch, name))


def dtype_of(name):
    """PyTorch's dtype of this name."""
    return getattr(torch, name)


def length_of(value, axis):
    return value.shape[axis]


def widened(x):
    """float16 as float32, where it would be rounded at each step."""
    return x.to(torch.float32) if x.dtype is torch.float16 else x


@maker(*sorted(KERNELS))
def _kernel(instruction):
    return getattr(torch, KERNELS[instruction.op])


def same(x, *others):
    return x


@maker("abs")
def _abs(instruction):
    return same if instruction.dtype == "bool" or instruction.dtype in TWINS else torch.abs


@maker("sign")
def _sign(instruction):
    if instruction.dtype in FLOATS:
        # PyTorch's sign of NaN is 0.
        return lambda x: torch.where(torch.eq(x, x), torch.sign(x), x)
    if instruction.dtype in TWINS:
        dtype = dtype_of(instruction.dtype)
        return lambda x: torch.ne(twin(x), 0).to(dtype)
    return torch.sign


@maker("floor")
def _floor(instruction):
    return torch.floor if instruction.dtype in FLOATS else same


@maker("round")
def _round(instruction):
    return torch.round if instruction.dtype in FLOATS else same


@maker("relu")
def _relu(instruction):
    return torch.relu


@maker("elu")
def _elu(instruction):
    return torch.ops.aten.elu


@maker("softplus")
def _softplus(instruction):
    # From 40 on, x itself is nearest in every dtype.
    return lambda x: torch.ops.aten.softplus(x, 1, 40)


@maker("softplus_grad")
def _softplus_grad(instruction):
    return lambda g, x: torch.ops.aten.softplus_backward(g, x, 1, 40)


@maker("sigmoid_slope")
def _sigmoid_slope(instruction):
    # The slope of softplus(-x) is sigmoid(-x), 1 - y without its rounding.
    return lambda x, y: torch.ops.aten.softplus_backward(y, x, -1, 40)


@maker("tanh_slope")
def _tanh_slope(instruction):
    # The square of cosh(x) would be infinite where its reciprocal isn't 0.
    return lambda x: torch.square(torch.reciprocal(torch.cosh(x)))


@maker("relu_grad")
def _relu_grad(instruction):
    def call(y, g):
        # PyTorch's own kernel is a fifth of the time, and gives a NaN a gradient. To look for one costs less than the
        # difference; on a GPU it would be waited for.
        if y.is_cuda or bool(torch.isnan(torch.sum(y))):
            return torch.where(torch.gt(y, 0), g, torch.zeros((), dtype=g.dtype, device=g.device))
        return torch.ops.aten.threshold_backward(g, y, 0)

    return call


def _shifted(x):
    """int64 moved right by one bit as if it were unsigned."""
    return (x >> 1) & (2**63 - 1)


def _unsigned_less(x, y):
    return torch.lt(x ^ -(2**63), y ^ -(2**63))


def _quotient_of_uint64(x, y):
    """x // y of twins, y nowhere 0: one step of long division where y's highest bit isn't set."""
    safe = torch.where(torch.lt(y, 1), torch.ones_like(y), y)
    quotient = torch.floor_divide(_shifted(x), safe) << 1
    quotient = quotient + torch.logical_not(_unsigned_less(x - quotient * y, y)).to(torch.int64)
    # A divisor of 2**63 or more fits once or not at all.
    return torch.where(torch.lt(y, 0), torch.logical_not(_unsigned_less(x, y)).to(torch.int64), quotient)


def _divided(x, y, quotient):
    """x // y or x % y of signed integers; 0 where y is 0."""
    zero = torch.eq(y, 0)
    # Dividing by 0 is an error in PyTorch, and the least integer by -1 ends the process.
    unsafe = torch.logical_or(zero, torch.eq(y, -1))
    divisor = torch.where(unsafe, torch.ones_like(y), y)
    if not quotient:
        return torch.remainder(x, divisor)
    result = torch.where(unsafe, torch.neg(x), torch.floor_divide(x, divisor))
    return torch.where(zero, torch.zeros_like(x), result)


@maker("floor_divide", "mod")
def _floor_divide(instruction):
    dtype, quotient = instruction.dtype, instruction.op == "floor_divide"
    if dtype == "bool":
        raise CannotLower("booleans can't be divided")
    if dtype in FLOATS:
        return torch.floor_divide if quotient else _float_mod
    if dtype == "uint64":

        def of_uint64(x, y):
            x, y = torch.broadcast_tensors(twin(x), twin(y))
            zero = torch.eq(y, 0)
            result = _quotient_of_uint64(x, torch.where(zero, torch.ones_like(y), y))
            result = result if quotient else x - result * y
            return torch.where(zero, torch.zeros_like(result), result).view(torch.uint64)

        return of_uint64
    if dtype.startswith("u"):
        native = dtype_of(dtype)
        return lambda x, y: _divided(x.to(torch.int64), y.to(torch.int64), quotient).to(native)
    return lambda x, y: _divided(x, y, quotient)


def _float_mod(x, y):
    result = torch.remainder(x, y)
    if not x.is_cuda:
        # On a CPU x % y is NaN where x / y overflows.
        lost = torch.logical_and(torch.ne(result, result), torch.logical_and(torch.isfinite(x), torch.isfinite(y)))
        if bool(torch.logical_and(lost, torch.ne(y, 0)).any()):
            with np.errstate(all="ignore"):
                # Of two 0-d arrays numpy makes a scalar.
                result = torch.from_numpy(np.asarray(np.mod(x.numpy(), y.numpy())))
    # A remainder of 0 has the sign of the divisor.
    return torch.where(torch.eq(result, 0), torch.copysign(result, y), result)


@maker("power")
def _power(instruction):
    dtype, signed = dtype_of(instruction.dtype), not instruction.dtype.startswith("u")

    def power(x, y):
        x, y = twin(x), twin(y)
        if instruction.dtype == "uint64":
            return _power_of_uint64(x, y).view(dtype)
        if signed and x.numel() and bool(torch.lt(y, 0).any()):
            raise ValueError("Integers to negative integer powers are not allowed.")
        if dtype is torch.uint16 or dtype is torch.uint32:
            x, y = x.to(torch.int64), y.view(dtype).to(torch.int64)
        return torch.pow(x, y).to(dtype)

    return power


def _power_of_uint64(x, y):
    result, x = torch.ones_like(x * y), x + torch.zeros_like(y)
    while bool(torch.ne(y, 0).any()):
        result = torch.where(torch.ne(y & 1, 0), result * x, result)
        x, y = x * x, _shifted(y)
    return result


@maker("cast")
def _cast(instruction, dtype):
    (source,) = instruction.input_dtypes
    target = dtype_of(dtype)
    if source == dtype:
        return same
    if dtype == "bool":
        return lambda x: torch.ne(twin(x), 0)
    if source == "float64" and dtype == "float16":
        return _half
    if source == "uint64" and dtype not in FLOATS:
        return lambda x: twin(x).to(target)
    if source in ("uint16", "uint32"):
        return lambda x: x.to(torch.int64).to(target)
    return lambda x: x.to(target)


def _half(x):
    """float64 to float16, which PyTorch rounds twice: to float32 first, whose last bit here marks what was lost."""
    single = x.to(torch.float32)
    back = single.to(torch.float64)
    even = torch.eq(single.view(torch.int32) & 1, 0)
    towards = torch.where(torch.lt(back, x), float("inf"), float("-inf")).to(torch.float32)
    odd = torch.nextafter(single, towards)
    return torch.where(torch.logical_and(torch.ne(back, x), even), odd, single).to(torch.float16)
