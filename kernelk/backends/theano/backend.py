"""Theano 1.0.5, in a worker of its own: programs are compiled as a whole by theano.function, with C or without."""

import ctypes
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
import zlib

import numpy as np

from ..base import Backend, registrar
from ..choosing import chosen_device, positive_threads
from ..errors import CannotLower, OptionError
from ..lowering import InstructionError, lower, python_slices, resolve_dims
from ..segments import compile_in_segments
from . import windows
from .profiler import TheanoProfiler

# Set by the first TheanoBackend, since importing Theano freezes its settings.
T = None
theano = None
native = None
settings = None
with_c = False

OPS = {}
_enter = registrar(OPS)

# Constants up to this many elements are the optimizer's to fold; larger ones are loaded once as fixed inputs.
SMALL = 64

# Rewrites that change what a program with infinities, NaN, signed zeros or wrapping integers computes, or that
# replace an op by one that overflows elsewhere; numpy is the definition. Rewrites that only round otherwise stay.
UNSAFE = (
    # x - x, x / x, x * 0 and 0 / x become constants, x * a / a becomes x; x + 0 forgets a -0.0
    "local_add_canonizer",
    "local_mul_canonizer",
    "local_mul_zero",
    "local_mul_specialize",
    "local_zero_div",
    "local_0_dot_x",
    "local_elemwise_sub_zeros",
    "local_add_specialize",
    # a + (b + c) becomes (a + b) + c, which may overflow where the former doesn't
    "local_add_mul_fusion",
    # BLAS skips a product that is multiplied by 0, so that NaN and infinities in it are lost (a learning rate of 0);
    # and the search for such products takes a time quadratic in the length of a chain of sums
    "gemm_optimizer",
    "local_dot22_to_dot22scalar",
    # (a + b) * c becomes a * c + b * c: an infinity minus an infinity
    "local_greedy_distributor",
    # x == x becomes true, but this is how one asks for NaN
    "local_useless_elemwise",
    "local_useless_elemwise_comparison",
    # x * select(c, y, 0) becomes select(c, x * y, 0); 0 * infinity is NaN
    "local_mul_switch_sink",
    "local_div_switch_sink",
    # a factor taken out of a sum overflows elsewhere, or meets a sum that cancels
    "local_sum_prod_mul_by_scalar",
    "local_sum_prod_div_dimshuffle",
    "local_sumsqr2dot",
    "local_opt_alloc",
    # 1 / (1 / x) becomes x; 1 / x becomes a power
    "local_func_inv",
    "local_inv_canon",
    # an integer's abs and negative wrap
    "local_abs_lift",
    "local_abs_merge",
    "local_max_to_min",
    "local_neg_to_mul",
    # stabler formulas: finite where the definition says infinity or NaN
    "local_exp_over_1_plus_exp",
    "local_sigm_times_exp",
    "log1msigm_to_softplus",
    "logsigm_to_softplus",
    "log1p_neg_sigmoid,",
    "log1pexp_to_softplus",
    "local_log_add",
    "local_log_sum_exp",
    "local_logsoftmax",
    "local_logsoftmax_grad",
    "crossentropy_to_crossentropy_with_softmax",
    "crossentropy_to_crossentropy_with_softmax_with_bias",
    "graph_merge_softmax_with_crossentropy_softmax",
    "local_argmax_pushdown",
    # fails where the condition is a constant of type bool
    "local_useless_switch",
    # loses the accumulator's dtype, and then fails, where a sum of integers runs over an axis of length 1
    "local_reduce_broadcastable",
    # its check fails where there is no compiler
    "AbstractConvCheck",
)

# Without C, an op that numpy has no function for is a loop in Python, and working in place is one more copy.
SLOW_WITHOUT_C = ("elemwise_fusion", "local_inv_1_plus_exp", "inplace_elemwise_opt")
# From this many instructions on, working in place costs more in checks, quadratic in their number, than it saves.
DEEP = 1000
# Fusing more elementwise ops than this into one takes Theano, or the C compiler, minutes.
FUSED = 100
# Theano's own recursion overflows the process's stack at some 40,000 instructions.
MOST_INSTRUCTIONS = 10000


def op(*names):
    """Like registrar's, and holds the result to the promised dtype and to the promised dimensions of 1."""

    def enter(function):
        def call(instruction, *values, **attrs):
            result = T.as_tensor_variable(function(instruction, *values, **attrs))
            if result.dtype != instruction.dtype or result.ndim != len(instruction.shape):
                raise CannotLower(
                    "Theano gave %s of rank %d for %s of rank %d"
                    % (result.dtype, result.ndim, instruction.dtype, len(instruction.shape))
                )
            ones = [axis for axis, n in enumerate(instruction.shape) if n == 1 and not result.broadcastable[axis]]
            return T.addbroadcast(result, *ones) if ones else result

        _enter(*names)(call)
        return function

    return enter


def cast(x, dtype):
    if x.dtype == dtype:
        return x
    if dtype == "bool":
        return T.neq(wide(x), np.zeros((), wide(x).dtype))
    # Theano's own cast is compiled for all but float16; without C it calls Python for each element.
    if with_c and "float16" not in (x.dtype, dtype):
        return T.cast(x, dtype)
    return native.NumpyOp("cast", (dtype,), dtype, tuple(x.broadcastable))(x)


def wide(x):
    """float16 as float32: Theano compiles no arithmetic on float16, and numpy's own goes through float32 too."""
    return cast(x, "float32") if x.dtype == "float16" else x


def elementwise(function):
    """As numpy does, a float16 result is rounded after each op."""

    def call(instruction, *values):
        return cast(function(*[wide(value) for value in values]), instruction.dtype)

    return call


def is_integer(x):
    return x.dtype.startswith(("int", "uint"))


def _power(x, y):
    return native.power(x, y)


def _maximum(x, y):
    return native.maximum(x, y) if is_integer(x) else T.maximum(x, y)


def _minimum(x, y):
    return native.minimum(x, y) if is_integer(x) else T.minimum(x, y)


def _sign(x):
    return cast(T.neq(x, np.zeros((), x.dtype)), x.dtype) if x.dtype.startswith("uint") else T.sgn(x)


def _floor_divide(x, y):
    if with_c:
        return native.floor_divide(x, y)
    if is_integer(x):
        if x.dtype.startswith("uint"):
            return native.floor_divide(x, y)
        # numpy 1.19 gives 0 for the lowest integer over -1, which wraps everywhere else.
        minus_one, one = np.array(-1, x.dtype), np.array(1, x.dtype)
        return T.switch(T.eq(y, minus_one), -x, native.floor_divide(x, T.switch(T.eq(y, minus_one), one, y)))
    # numpy 1.19 gives NaN for x // 0; numpy 1.20 and later, and so the definition, x / 0.
    return T.switch(T.eq(y, np.zeros((), y.dtype)), T.true_div(x, y), native.floor_divide(x, y))


def _mod(x, y):
    if not with_c and x.dtype.startswith("int"):
        # numpy 1.19 ends the process at the lowest integer modulo -1; modulo 1 gives 0 as well.
        y = T.switch(T.eq(y, np.array(-1, y.dtype)), np.array(1, y.dtype), y)
    return native.mod(x, y)


# What Theano can fuse
ELEMENTWISE = {"cast"}


def _define_elementwise():
    for name, function in {
        "negative": lambda x: -x,
        "abs": lambda x: abs(x),
        "sign": _sign,
        "sqrt": lambda x: T.sqrt(x),
        "exp": lambda x: T.exp(x),
        "log": lambda x: T.log(x),
        "tanh": lambda x: T.tanh(x),
        "sin": lambda x: T.sin(x),
        "cos": lambda x: T.cos(x),
        "floor": lambda x: x if is_integer(x) else T.floor(x),
        "round": lambda x: x if is_integer(x) else native.round_to_even(x),
        "logical_not": lambda x: T.invert(x),
        "add": lambda x, y: T.add(x, y),
        "subtract": lambda x, y: T.sub(x, y),
        "multiply": lambda x, y: T.mul(x, y),
        "divide": lambda x, y: T.true_div(x, y),
        "floor_divide": _floor_divide,
        "mod": _mod,
        "power": _power,
        "maximum": _maximum,
        "minimum": _minimum,
        "logical_and": lambda x, y: T.and_(x, y),
        "logical_or": lambda x, y: T.or_(x, y),
        "equal": lambda x, y: T.eq(x, y),
        "not_equal": lambda x, y: T.neq(x, y),
        "less": lambda x, y: T.lt(x, y),
        "less_equal": lambda x, y: T.le(x, y),
        "select": lambda condition, x, y: T.switch(condition, x, y),
        "relu": lambda x: T.maximum(x, np.zeros((), x.dtype)),
        "sigmoid": lambda x: _sigmoid(x),
    }.items():
        op(name)(elementwise(function))
        ELEMENTWISE.add(name)


def _sigmoid(x):
    if with_c:
        return T.nnet.sigmoid(x)
    # Theano's sigmoid is one Python call per element without C. exp of what is never positive can't overflow.
    one = np.ones((), x.dtype)
    small = T.exp(-abs(x))
    return T.switch(T.lt(x, np.zeros((), x.dtype)), small, one) / (one + small)


_define_elementwise()


@op("cast")
def _cast(instruction, x, dtype):
    return cast(x, dtype)


@op("sum", "prod")
def _sum(instruction, x, axes, keepdims):
    if not axes:
        return x
    x = wide(x)
    reduce = T.sum if instruction.op == "sum" else T.prod
    return cast(reduce(x, axis=axes, keepdims=keepdims, dtype=x.dtype, acc_dtype=x.dtype), instruction.dtype)


def _extreme(name, integer_op, float_op):
    @op(name)
    def call(instruction, x, axes, keepdims):
        if not axes:
            return x
        if x.dtype in ("int64", "uint64"):
            # The C code of Theano's reduction passes through doubles.
            kept = [
                keepdims if axis in axes else bool(broadcastable)
                for axis, broadcastable in enumerate(x.broadcastable)
                if keepdims or axis not in axes
            ]
            return native.NumpyOp(name, (tuple(axes), keepdims), x.dtype, tuple(kept))(x)
        y = wide(x)
        reduced = T.elemwise.CAReduce(getattr(theano.scalar, float_op), axes)(y)
        if keepdims:
            reduced = T.basic.makeKeepDims(y, reduced, axes)
        return cast(reduced, instruction.dtype)


_extreme("max", "maximum", "maximum")
_extreme("min", "minimum", "minimum")


@op("argmax")
def _argmax(instruction, x, axis):
    return cast(T.argmax(wide(x), axis=axis), "int64")


@op("argmin")
def _argmin(instruction, x, axis):
    # Theano's own is the argmax of -x, which wraps for unsigned integers and for the lowest signed one.
    kept = x.broadcastable[:axis] + x.broadcastable[axis + 1 :]
    return native.NumpyOp("argmin", (axis,), "int64", kept)(x)


@op("cumsum", "cumprod")
def _cumulative(instruction, x, axis):
    return native.NumpyOp(instruction.op, (axis,), x.dtype, tuple(x.broadcastable))(x)


@op("size")
def _size(instruction, x, axes):
    size = T.constant(np.array(1, "int64"))
    for axis in axes:
        size = size * x.shape[axis]
    return cast(size, instruction.dtype)


@op("shape")
def _shape(instruction, x):
    return cast(T.shape(x), "int32") if x.ndim else T.constant(np.zeros((0,), "int32"))


def _length(value, axis):
    return T.constant(np.array(1, "int64")) if value.broadcastable[axis] else value.shape[axis]


@op("reshape")
def _reshape(instruction, x, *references, **attrs):
    dims = resolve_dims(attrs["dims"], (x,) + references, _length)
    if not dims:
        # A vector of no dimensions has no dtype of its own.
        dims = T.constant(np.zeros((0,), "int64"))
    return T.reshape(x, dims, ndim=len(attrs["dims"]))


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, **attrs):
    dims = resolve_dims(attrs["dims"], (x,) + references, _length)
    return T.alloc(x, *dims)


@op("transpose")
def _transpose(instruction, x, permutation):
    return x.dimshuffle(*permutation)


@op("concatenate")
def _concatenate(instruction, *values, **attrs):
    return T.join(attrs["axis"], *values) if len(values) > 1 else values[0]


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, **attrs):
    axis, part = attrs["axis"], attrs["part"]
    start = T.constant(np.array(0, "int64"))
    for value in parts[:part]:
        start = start + value.shape[axis]
    index = [slice(None)] * whole.ndim
    index[axis] = slice(start, start + parts[part].shape[axis])
    return whole[tuple(index)]


@op("slice")
def _slice(instruction, x, slices):
    return x[python_slices(slices)] if slices else x


@op("unslice")
def _unslice(instruction, piece, like, slices):
    if not slices:
        return piece
    return _within_zeros(piece, [like.shape[axis] for axis in range(like.ndim)], python_slices(slices))


def _within_zeros(piece, lengths, index):
    # In float16, Theano does without C and prints that it does.
    filling = wide(piece)
    hole = T.alloc(np.zeros((), filling.dtype), *lengths)[index]
    return cast(T.set_subtensor(hole, T.patternbroadcast(filling, hole.broadcastable)), piece.dtype)


@op("one_hot")
def _one_hot(instruction, indices, depth):
    # uint64 with int64 would be compared as doubles; the smaller types may not hold every class number.
    dtype = "uint64" if indices.dtype == "uint64" else "int64"
    classes = T.constant(np.arange(depth, dtype=dtype))
    spread = cast(indices, dtype).dimshuffle(*(list(range(indices.ndim)) + ["x"]))
    return cast(T.eq(spread, classes), instruction.dtype)


@op("pad")
def _pad(instruction, x, pads):
    if not any(before or after for before, after in pads):
        return x
    lengths = [_length(x, axis) + before + after for axis, (before, after) in enumerate(pads)]
    index = [slice(before, before + _length(x, axis)) for axis, (before, _) in enumerate(pads)]
    return _within_zeros(x, lengths, tuple(index))


@op("gather")
def _gather(instruction, x, indices):
    kept = tuple(indices.broadcastable) + tuple(x.broadcastable[1:])
    return native.NumpyOp("gather", (), x.dtype, kept)(x, indices)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    # Of `like` the length alone, so that it isn't computed for nothing; a length of 1 stays known.
    kept = (like.broadcastable[0],) + tuple(values.broadcastable[indices.ndim :])
    return native.NumpyOp("scatter_add", (), values.dtype, kept)(values, indices, _length(like, 0))


@op("batch_matmul")
def _batch_matmul(instruction, a, b, transpose_a, transpose_b):
    # Theano's own takes three axes alone, and without C a loop in Python.
    kept = tuple(x or y for x, y in zip(a.broadcastable[:-2], b.broadcastable[:-2]))
    kept += (a.broadcastable[-1 if transpose_a else -2], b.broadcastable[-2 if transpose_b else -1])
    return native.NumpyOp("batch_matmul", (transpose_a, transpose_b), a.dtype, kept)(a, b)


@op("matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    a, b = wide(a), wide(b)
    return cast(T.dot(a.T if transpose_a else a, b.T if transpose_b else b), instruction.dtype)


@op("softmax")
def _softmax(instruction, x, axis):
    y = wide(x)
    if with_c and x.ndim == 2 and axis == 1:
        return cast(T.nnet.softmax(y), instruction.dtype)
    small = T.exp(y - _extreme_kept(y, axis))
    return cast(small / T.sum(small, axis=axis, keepdims=True, dtype=y.dtype, acc_dtype=y.dtype), instruction.dtype)


@op("log_softmax")
def _log_softmax(instruction, x, axis):
    y = wide(x)
    shifted = y - _extreme_kept(y, axis)
    # Where one class takes nearly all, the total is barely above 1 and float32 would keep few digits of its log.
    total = T.sum(T.exp(shifted), axis=axis, keepdims=True, dtype="float64", acc_dtype="float64")
    return cast(shifted - cast(T.log(total), y.dtype), instruction.dtype)


def _extreme_kept(x, axis):
    return T.basic.makeKeepDims(x, T.elemwise.CAReduce(theano.scalar.maximum, [axis])(x), [axis])


MARK = "instruction"


def mark(variable, index, seen):
    """Tags what an instruction built with its index, which Theano carries through its rewrites.

    An error at run time then names the user's own op.
    """
    pending = [variable]
    while pending:
        variable = pending.pop()
        if variable.owner is not None and variable not in seen:
            seen.add(variable)
            variable.tag.trace = [[(MARK, index, "", "")]]
            pending.extend(variable.owner.inputs)


def marked(node):
    for output in node.outputs:
        for trace in getattr(output.tag, "trace", []):
            for entry in trace:
                if entry[0] == MARK:
                    return entry[1]
    return None


def quoted(value):
    """As THEANO_FLAGS, which shlex splits at commas, gives it back."""
    return re.sub(r"""([\\,'"#])""", r"\\\1", value)


def numpy_blas():
    """The OpenBLAS that numpy itself has loaded: (path, library), or (None, None)."""
    folder = os.path.dirname(np.__file__)
    paths = glob.glob(os.path.join(folder + ".libs", "*openblas*"))
    paths += glob.glob(os.path.join(folder, ".libs", "*openblas*"))
    if not paths and os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as file:
            paths = sorted(set(line.split(None, 5)[-1].strip() for line in file if "openblas" in line))
    for path in paths:
        try:
            library = ctypes.CDLL(path)
            # 64-bit integer builds have other names, and other arguments, than Theano's C code.
            for symbol in ("dgemm_", "openblas_get_num_threads"):
                getattr(library, symbol)
        except (OSError, AttributeError):
            continue
        return path, library
    return None, None


def find_compiler(wanted):
    """The compiler's path, or "" and the reason."""
    if wanted == "":
        return "", "no compiler"
    name = wanted or "g++"
    path = shutil.which(name)
    if path is None:
        if wanted:
            raise OptionError("compiler %r isn't found; allowed: a C++ compiler's name or path, \"\" or None" % wanted)
        return "", "no compiler: g++ isn't found"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "", "no compiler: this Python has no Python.h"
    version = subprocess.run(
        [path, "-dumpfullversion", "-dumpversion"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return path, "C, %s %s" % (os.path.basename(path), version.stdout.decode().split("\n")[0])


def writable(*folders):
    """The first of these folders that takes a file, made if need be: a home may be read-only; None if none does."""
    for folder in folders:
        if folder:
            try:
                os.makedirs(folder, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            except OSError:
                pass
    return None


def keep_cache_keys():
    """Makes the compile cache last: some of Theano's ops would be compiled again by every process."""
    # Theano 1.0.5 counts an op with no properties (softmax, dot22) as one of unknown version.
    pending = [theano.gof.op.PureOp]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind.__dict__.get("__props__") == ():
            # The methods made from it keep it.
            del kind.__props__

    # The version of an op with its C code in a file (dimshuffle) is Python's hash of that code, new in every process.
    def version(self):
        code = "\0".join(self.func_codes).encode("utf-8")
        version = (zlib.crc32(code),)
        if hasattr(self, "params_type"):
            version += (self.params_type.c_code_cache_version(),)
        return version

    theano.gof.op.COp.c_code_cache_version = version


def join(folder):
    """Removes the locks of workers that were ended while they compiled; what it returns is kept for this one's life.

    Theano overrides a lock whose owner is dead, but waits two minutes for one that was hardly begun, or whose process
    number is another process's by now. Each worker holds the system's own lock on the folder, shared, all its life: who
    has it alone knows that Theano's are nobody's.
    """
    try:
        import fcntl

        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, "workers"), "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(folder):
                shutil.rmtree(os.path.join(folder, name, "lock_dir"), ignore_errors=True)
        except OSError:
            pass  # There are others; or the file system has no such locks, and the next line says so.
        fcntl.flock(file, fcntl.LOCK_SH)
        return file
    except (ImportError, OSError):
        return None


def shorten_waits():
    """Two workers that share a cache take turns by a lock, which the waiting one would look at only once a second."""
    from theano.gof import compilelock

    lock = compilelock.lock

    def patient(folder, **settings):
        settings = dict({"min_wait": 0.02, "max_wait": 0.1, "verbosity": 0}, **settings)
        return lock(folder, **settings)

    compilelock.lock = patient
    # Its parts are found by underscores.
    compilelock.hostname = compilelock.hostname.replace("_", "-")


class TheanoBackend(Backend):
    """Native values are ndarrays; a variable's value is its shared-memory slot, read by the compiled code in place.

    Options: "compiler" (None: g++ where there is one; "": none; else a name or path) beside the common ones.
    The user's own THEANO_FLAGS and .theanorc stay in force for whatever isn't set here.
    """

    name = "theano"
    ops = OPS
    # run takes `into`, the updated variables' inactive slots, and writes new values there where it can
    writes_in_place = True

    def __init__(self, options):
        Backend.__init__(self, options)
        chosen_device("Theano", self.name, options, ["cpu"], "cpu")
        self.blas_path, self.blas = numpy_blas()
        compiler, self.mode = find_compiler(options.get("compiler"))
        flags = self._flags(compiler)
        global settings
        if settings is None:
            self._import(flags, compiler)
            settings = flags
        elif settings != flags:
            raise ValueError("Theano takes its settings once per process; other settings need a new worker")
        threads = positive_threads(options)
        if threads is not None and self.blas is not None:
            self.blas.openblas_set_num_threads(threads)
        self.optimizers = {}
        # Where a TheanoProfiler is to find the functions that are compiled.
        self.watched = None

    def _flags(self, compiler):
        options = self.options
        flags = {
            "device": "cpu",
            "cxx": compiler,
            # A rewrite that fails is an error, not a line on stderr.
            "on_opt_error": "raise",
            # The traces of Theano's own calls would cost most of the time that building a graph takes.
            "traceback.limit": "0",
            "compile.wait": "1",
            "compile.timeout": "120",
            "openmp": "False",
            # What would be asserted is known, and asking for the shapes fails where one has been rewritten.
            "experimental.local_alloc_elemwise_assert": "False",
        }
        cache = writable(options.get("cache"), options.get("scratch"))
        if cache:
            # Compiled modules hold the names of the BLAS that they were linked with.
            flags["base_compiledir"] = os.path.join(os.path.abspath(cache), "numpy-" + np.__version__)
        if self.blas_path:
            flags["blas.ldflags"] = "-lopenblas"
        elif not compiler:
            flags["blas.ldflags"] = ""
        return flags

    def _import(self, flags, compiler):
        global T, native, theano, with_c
        if "theano" in sys.modules:
            raise RuntimeError("theano was imported before kernelk could choose its settings; use a new worker")
        scratch = self.options.get("scratch")
        if scratch:
            # Failed compiles and the compiler's own temporaries go there, not to the system's folder.
            os.environ["TMPDIR"] = tempfile.tempdir = os.path.abspath(scratch)
        threads = self.options.get("threads")
        if threads:
            os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
        if compiler and self.blas_path:
            self._link(flags.get("base_compiledir"))
        if compiler and "base_compiledir" in flags:
            self.joined = join(flags["base_compiledir"])
        ours = ",".join("%s=%s" % (key, quoted(value)) for key, value in sorted(flags.items()))
        theirs = os.environ.get("THEANO_FLAGS")
        # Of two values of one flag the later counts.
        os.environ["THEANO_FLAGS"] = theirs + "," + ours if theirs else ours
        # Theano's optimizer and its pickled cache keys recurse along a graph.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 100000))
        with warnings.catch_warnings():
            # That there is no compiler is known: facts() says so.
            warnings.simplefilter("ignore")
            import theano
            import theano.tensor as T
            import theano.tensor.nnet  # noqa: F401

            from . import ops as native
            from . import window_ops

        with_c = bool(compiler)
        windows.enter(op, _length, native, window_ops if with_c else None)
        if compiler:
            shorten_waits()
            keep_cache_keys()

    def _link(self, folder):
        """Lets `-lopenblas` mean numpy's library, by a folder in LIBRARY_PATH: flags can hold no path with spaces.

        At run time nothing is searched: the library of that name is in the process already.
        """
        folder = os.path.join(folder or tempfile.mkdtemp(), "blas")
        link = os.path.join(folder, "libopenblas.so")
        os.makedirs(folder, exist_ok=True)
        if not os.path.exists(link) or not os.path.samefile(link, self.blas_path):
            # Another worker may do the same at this moment.
            new = "%s.%d" % (link, os.getpid())
            os.symlink(self.blas_path, new)
            os.replace(new, link)
        paths = [folder] + [path for path in os.environ.get("LIBRARY_PATH", "").split(os.pathsep) if path]
        os.environ["LIBRARY_PATH"] = os.pathsep.join(paths)

    def _optimizers(self, program):
        exclude = UNSAFE if with_c else UNSAFE + SLOW_WITHOUT_C
        if len(program.instructions) > DEEP:
            exclude += ("inplace_elemwise_opt",)
        if with_c and largest_fusion(program) > FUSED:
            exclude += ("elemwise_fusion",)
        if exclude not in self.optimizers:
            query = theano.gof.Query(include=["fast_run"], exclude=list(exclude))
            self.optimizers[exclude] = list(theano.compile.mode.optdb.query(query))
        optimizers = theano.gof.opt.SeqOptimizer(self.optimizers[exclude])
        if with_c and program.updates:
            optimizers.append(native.WriteIntoDestination(len(program.outputs)))
        return optimizers

    def facts(self):
        threads, blas = None, "Theano's own search" if with_c else "numpy's"
        if self.blas is not None:
            threads = self.blas.openblas_get_num_threads()
            self.blas.openblas_get_config.restype = ctypes.c_char_p
            blas = self.blas.openblas_get_config().decode() + " (numpy's own)"
        return {
            "version": theano.__version__,
            "device": "cpu",
            "devices": ["cpu"],
            "threads": threads,
            "interpreter": "Python " + sys.version.split()[0],
            "mode": self.mode,
            "blas": blas,
            "while_compiling": self._hints() if with_c else [],
        }

    def _hints(self):
        """What there is to know while the C compiler runs."""
        cache = self.options.get("cache")
        lasts = cache and settings.get("base_compiledir", "").startswith(os.path.abspath(cache) + os.sep)
        return (["kept for the next time"] if lasts else []) + ["%kbackend theano --no-compiler: at once, but slower"]

    def load(self, array):
        return array

    def to_numpy(self, value):
        return np.asarray(value)

    def commit(self, value, destination):
        if value is not destination:
            destination[...] = value
        return destination

    def profiler(self):
        return TheanoProfiler(self)

    def compile(self, program, constants):
        if len(program.instructions) > MOST_INSTRUCTIONS:
            run = compile_in_segments(self._compile, program, constants, MOST_INSTRUCTIONS)
            return lambda feeds, state, draws, into=None: run(feeds, state, draws)
        return self._compile(program, constants)

    def _compile(self, program, constants):
        inputs, leaves, fixed = [], [], []
        first = len(program.leaves) - len(program.constants)
        for number, (dtype, shape) in enumerate(program.leaves):
            kind = T.TensorType(dtype, [n == 1 for n in shape])
            constant = np.array(constants[number - first]) if number >= first else None
            if constant is not None and constant.size <= SMALL and not has_negative_zero(constant):
                leaves.append(T.TensorConstant(kind, constant))
                continue
            leaves.append(kind())
            inputs.append(leaves[-1])
            if constant is not None:
                fixed.append(constant)
        seen = set()

        def marking(function):
            def call(instruction, *values, **attrs):
                result = function(instruction, *values, **attrs)
                mark(result, instruction.index, seen)
                return result

            return call

        used = set(instruction.op for instruction in program.instructions)
        values = lower(program, leaves, {name: marking(OPS[name]) for name in used if name in OPS})
        results = [values[number] for number in program.results()]
        linker = theano.gof.vm.VM_Linker(allow_gc=True, use_cloop=with_c)
        with np.errstate(all="ignore"):
            compiled = theano.function(
                [theano.In(value, borrow=True) for value in inputs],
                # Borrowed: an output keeps the array it finds in its storage, and none is copied on the way out.
                [theano.Out(value, borrow=True) for value in results],
                mode=theano.compile.Mode(linker, self._optimizers(program)),
                on_unused_input="ignore",
                profile=self._stats(),
            )
        if self.watched is not None:
            self.watched.append((marked, compiled))
        return self._runner(program, compiled, fixed)

    def _stats(self):
        if self.watched is None:
            return False
        return theano.compile.profiling.ProfileStats(atexit_print=False, flag_time_thunks=True)

    def _runner(self, program, compiled, fixed):
        vm = compiled.fn
        cells = [container.storage for container in compiled.input_storage]
        kept = cells[len(cells) - len(fixed) :]
        cells = cells[: len(cells) - len(fixed)]
        for cell, constant in zip(kept, fixed):
            cell[0] = constant
        results = [container.storage for container in compiled.output_storage]
        output_cells, update_cells = results[: len(program.outputs)], results[len(program.outputs) :]
        used = cells + results

        def clear():
            """Forgets every array of an interrupted call: it may be shared memory."""
            for variable, cell in vm.storage_map.items():
                if not isinstance(variable, theano.gof.Constant) and not any(cell is other for other in kept):
                    cell[0] = None

        def fail(error):
            position = getattr(vm, "position_of_error", -1)
            if position >= 0:
                node = vm.nodes[position]
            else:
                # Without C, Theano raises a copy with pages of advice in its message.
                error = error.__context__ or error
                node = getattr(error, "__op_instance__", None)
            index = None if node is None else marked(node)
            clear()
            if index is None:
                raise error
            raise InstructionError(program.instructions[index], first_line(error)) from error

        # The arrays go straight into Theano's storage: its own call checks and counts them, as long as a small step.
        def run(feeds, state, draws, into=None):
            for cell, value in zip(cells, feeds + state + draws):
                cell[0] = value
            if into is not None:
                for cell, value in zip(update_cells, into):
                    cell[0] = value
            try:
                vm()
            except Exception as error:
                fail(error)
            except BaseException:
                clear()
                raise
            outputs = [cell[0] for cell in output_cells]
            new_state = [cell[0] for cell in update_cells]
            # Nothing may hold a slot or a destination after the call, nor write into these results in the next one.
            for cell in used:
                cell[0] = None
            return outputs, new_state

        def run_without_c(feeds, state, draws, into=None):
            # Theano's Python ops let numpy allocate their results, so destinations are of no use.
            with np.errstate(all="ignore"):
                return run(feeds, state, draws)

        chosen = run if with_c else run_without_c
        chosen.compiled, chosen.constants = compiled, kept
        return chosen

    def describe(self, program, run, names):
        graph = run.compiled.maker.fgraph
        for variable, name in zip(graph.inputs, self._given(program, run, names)):
            variable.name = name
        lines = theano.printing.debugprint(graph.outputs, file="str").rstrip().splitlines()
        return {
            "kind": "the optimised graph of a theano.function",
            "ops": len(graph.apply_nodes),
            # At a line's end stand the names of what is computed, which has none.
            "text": "\n".join(line[:-3] if line.endswith(" ''") else line.rstrip() for line in lines),
        }

    def _given(self, program, run, names):
        """The names of the function's inputs: all leaves but the constants that are part of it."""
        first = len(program.leaves) - len(program.constants)
        kept = len(run.constants)
        return names[:first] + ["constant"] * kept

    def synchronize(self):
        pass


def largest_fusion(program):
    """The number of elementwise instructions that Theano would fuse into one op."""
    uses = [0] * len(program.values)
    for instruction in program.instructions:
        for number in instruction.inputs:
            uses[number] += 1
    for number in program.results():
        uses[number] += 1
    sizes = [0] * len(program.leaves)
    for instruction in program.instructions:
        size = 0
        if instruction.op in ELEMENTWISE:
            size = 1 + sum(sizes[number] for number in instruction.inputs if uses[number] == 1)
        sizes.append(size)
    return max(sizes) if sizes else 0


def has_negative_zero(array):
    """Theano takes constants that compare as equal for one."""
    return array.dtype.kind == "f" and bool(np.any((array == 0) & np.signbit(array)))


def first_line(error):
    """The error without Theano's advice, which names things that the user never sees."""
    text = str(error.args[0] if error.args else error).strip().split("\n")[0]
    try:
        return type(error)(text)
    except Exception:
        return RuntimeError("%s: %s" % (type(error).__name__, text))
