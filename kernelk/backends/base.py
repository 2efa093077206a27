"""The contract between a backend class and the executor that drives it, and the primitives that it must define."""

import numpy as np

from .bits import same_bits

# Third parties import these from here.
from .choosing import (  # noqa: F401
    FLUSHES,
    SHARED_THREADS,
    chosen_device,
    chosen_precision,
    listed_device,
    positive_threads,
    settled_threads,
)
from .errors import CannotLower, OptionError  # noqa: F401

# Every primitive, with its attributes. An op function is called as `fn(instruction, *values, **attrs)` with the
# engine's own values and returns one; `instruction` (lowering.Instruction) knows the dtypes and shapes promised
# by the graph. Operands of one op have one dtype already (the graph inserts casts) unless said otherwise.
#
# "dims" are lists whose entries are an int, -1 (at most one, reshape only), or [k, axis]: the length of that axis
# of operand k. Operands beyond the first of reshape and broadcast_to serve only such references.
# "slices" has one [start, stop, step] per axis, each an int or None, with the meaning of a Python slice.
PRIMITIVES = {
    # elementwise, one operand; results have the operand's dtype
    "negative": (),
    "abs": (),
    "sign": (),  # sign(0) = 0, sign(NaN) = NaN
    "sqrt": (),
    "exp": (),
    "log": (),  # log(0) = -inf, log(x < 0) = NaN
    "tanh": (),
    "sin": (),
    "cos": (),
    "floor": (),
    "round": (),  # halves to the even neighbour; integers stay
    "logical_not": (),
    # elementwise, two operands that broadcast as in numpy
    "add": (),
    "subtract": (),
    "multiply": (),
    "divide": (),  # floats only; x / 0 is inf or NaN
    "floor_divide": (),  # rounds down; an integer divided by 0 gives 0
    "mod": (),  # sign of the divisor; an integer modulo 0 gives 0
    "power": (),
    "maximum": (),  # NaN wins
    "minimum": (),
    "logical_and": (),
    "logical_or": (),
    "equal": (),  # comparisons give bool
    "not_equal": (),
    "less": (),
    "less_equal": (),
    # condition (bool), then two operands of one dtype; all three broadcast
    "select": (),
    # float to integer truncates, of what the integer's range holds: the graph clips first; integer to integer is
    # modulo 2^n; anything to bool is x != 0
    "cast": ("dtype",),
    # reductions; axes is a sorted list of non-negative axes, never empty for a tensor of rank > 0
    "sum": ("axes", "keepdims"),  # integers wrap; floats are added pairwise, or in a wider dtype
    "max": ("axes", "keepdims"),  # NaN wins
    "min": ("axes", "keepdims"),
    "prod": ("axes", "keepdims"),  # integers wrap; float16 is accumulated in float32
    "argmax": ("axis",),  # first of equals, and of NaNs where there are any; int64; the axis is dropped
    "argmin": ("axis",),  # likewise
    "cumsum": ("axis",),  # integers wrap; float16 is accumulated in float32
    "cumprod": ("axis",),  # likewise
    "size": ("axes",),  # how many elements these axes hold: a 0-d value of the instruction's dtype
    "shape": (),  # int32 vector
    # arrangement
    "reshape": ("dims",),
    "broadcast_to": ("dims",),
    "transpose": ("permutation",),
    "concatenate": ("axis",),
    "unconcatenate": ("axis", "part"),  # (whole, *parts): the piece of `whole` that belongs to parts[part]
    "slice": ("slices",),
    "unslice": ("slices",),  # (piece, like): zeros shaped as `like` with `piece` at the slices
    "one_hot": ("depth",),  # integer indices; out of range gives a row of zeros; the instruction's dtype
    "pad": ("pads",),  # zeros (False) around: one [before, after] per axis
    # rows of the first operand (rank >= 1) by integer indices of any rank: shape(indices) + shape(x)[1:]; an index
    # outside [0, length) gives NaN (0 for integers, False for bool), a negative one isn't counted from the end
    "gather": (),
    # (values, indices, like): zeros shaped as `like`, to whose rows the values are added; outside indices add nothing
    "scatter_add": (),
    # operands of equal rank >= 3 whose leading axes are equal; the last two are multiplied as in matmul
    "batch_matmul": ("transpose_a", "transpose_b"),
    # rank-2 operands of one dtype; each may be transposed first; float16 is accumulated in float32
    "matmul": ("transpose_a", "transpose_b"),
}

# What a backend may leave out: staged.py then compiles what is between, and carries these out in Python and numpy.
STAGED = {
    # A loop. Operands: the body's leaves in order (lowering.Program.leaves): sequences, states at first, captures,
    # draws, constants. Sequences and draws have a first axis more, along which the loop goes, from its end if
    # `reverse`; they are equally long. At each step the body is given the elements there, the states, and the rest as
    # it is; its first outputs (as many as `states`) are the new states. Its value is a list of the final states, then
    # of the body's other outputs stacked along a first axis, each where its elements were. A loop of length 0 comes
    # with all shapes known.
    "scan": ("sequences", "states", "reverse", "body"),
    # one of a scan's values
    "item": ("index",),
    # (logs of shape batch, time, classes; int32 steps of shape batch, 1): see ctc_search.py, which does it in numpy
    "ctc_beam_search": ("beam_width", "top_paths", "merge_repeated"),
}

# Functions that decompose into primitives; a backend may define any of them where its engine has a better one.
COMPOSITES = {
    # any float to an integer: NaN gives 0, what is beyond an end gives that end, all else is truncated
    "saturating_cast": ("dtype",),
    "mean": ("axes", "keepdims"),
    "softmax": ("axis",),
    "log_softmax": ("axis",),
    "sigmoid": (),
    "elu": (),  # x above 0, exp(x) - 1 to the last digits below
    "softsign": (),  # x / (1 + abs(x))
    "softplus": (),  # log(1 + exp(x))
    "softplus_grad": (),  # (g, x): g times the sigmoid of x, which is the slope of softplus there
    "log1p": (),  # log(1 + x), to the last digits near 0
    "expm1": (),  # exp(x) - 1, likewise
    "relu": (),
    # (x, y), y the sigmoid of x, and (x): the slope at x, to the last digits far out, where y rounds to 1
    "sigmoid_slope": (),
    "tanh_slope": (),
    # (y, gradient of y, the relu of some x): that with respect to x; of NaN it is 0
    "relu_grad": (),
    # Windows: operands have a batch axis, two or three spatial axes, and channels last. A window has one length,
    # stride and dilation for each spatial axis; "pads" are [before, after], ints that are known when it is lowered.
    # (x, kernel): the kernel's lengths, then channels, then filters
    "conv": ("strides", "pads", "dilation"),
    # (gradient of a conv, kernel, *references): that with respect to x, whose spatial lengths are "dims"
    "conv_input": ("dims", "strides", "pads", "dilation"),
    # (x, gradient of a conv): that with respect to the kernel, whose spatial lengths are "size"
    "conv_kernel": ("size", "strides", "pads", "dilation"),
    # the same of each channel by itself, two spatial axes: the kernel's lengths, channels, how many come of each
    "depthwise_conv": ("strides", "pads", "dilation"),
    "depthwise_conv_input": ("dims", "strides", "pads", "dilation"),
    "depthwise_conv_kernel": ("size", "strides", "pads", "dilation"),
    # the same where some dilation isn't 1, as it is in all of the above
    "dilated_conv": ("strides", "pads", "dilation"),
    "dilated_conv_input": ("dims", "strides", "pads", "dilation"),
    "dilated_conv_kernel": ("size", "strides", "pads", "dilation"),
    "dilated_depthwise_conv": ("strides", "pads", "dilation"),
    "dilated_depthwise_conv_input": ("dims", "strides", "pads", "dilation"),
    "dilated_depthwise_conv_kernel": ("size", "strides", "pads", "dilation"),
    # two spatial axes
    "max_pool": ("window", "strides", "pads"),  # padding isn't an element; NaN wins
    # (x, gradient of its max_pool): that with respect to x; all to the first of equals in a window
    "max_pool_grad": ("window", "strides", "pads"),
    # (x, h): the elements of h where the windows of x have their maxima
    "max_pool_pick": ("window", "strides", "pads"),
    "avg_pool": ("window", "strides", "pads"),  # padding doesn't count
    "avg_pool_grad": ("window", "strides", "pads"),  # (gradient of an avg_pool, like x): that with respect to x
}

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)


def registrar(table):
    """Returns a decorator that registers an op function in `table` under the given op names."""

    def op(*names):
        def enter(function):
            for name in names:
                table[name] = function
            return function

        return enter

    return op


def window_ops(name):
    """The composites that are one function of windows: those of `name` ("conv"), dilated, and of each channel alone."""
    return [prefix + name for prefix in ("", "dilated_", "depthwise_", "dilated_depthwise_")]


def hand_over(modules, **engine):
    """Gives the island's modules the engine's, by name: `hand_over([ops, windows], torch=torch)`.

    An engine is imported when its backend starts, later than the modules that use it: each has its name as a global,
    None until then.
    """
    for module in modules:
        vars(module).update(engine)


def unlike(dtype, shape, destination):
    """The error for a value that isn't what the graph promises, an array like `destination`."""
    promised = destination.dtype, tuple(destination.shape)
    return RuntimeError("the engine returned %s%s, but the graph promises %s%s" % ((dtype, tuple(shape)) + promised))


class Backend(object):
    """One engine in one process. Subclasses import their engine in `__init__`, never at module level.

    `options` is a dict with string keys: "device" (as the engine lists it, or None), "threads" (int or None),
    "precision" (how float32 is multiplied: one of choosing.PRECISIONS, or None for float32 itself),
    "cache" (a lasting folder for compiled code), "scratch" (a folder of this process alone, or None), "in_kernel" (True
    in the notebook's own process, where the engine's library is its user's as well: no setting of the library or the
    process may change then, and none of theirs may change a result), and options of the engine's own.
    """

    name = ""
    # op name -> function, the primitives and any composite that the engine does better itself
    ops = {}
    # dtypes of variables, feeds and results that the backend takes, exactly or not at all
    dtypes = DTYPES
    # Which feed shapes join the key of what is compiled: "ones" (only which unknown lengths are 1, so that what is
    # broadcast is known) or "all" (programs come with every length known).
    specialises = "ones"
    # Whether `run` takes a fourth argument, `into`: for each update the ndarray that its new value belongs in. A
    # backend may write there at once and return that very array; it is never an operand of the same run.
    writes_in_place = False
    # Whether new values may stay with the engine alone until somebody asks for them, or they are copied out at a
    # checkpoint. Those that `run` returns are then in memory of their own, which nothing else writes to; together with
    # `writes_in_place` they are copied by `own`. Without it each call's new values are committed at once.
    keeps_updates = False
    # Whether such calls are made by `run.overwrite`, where the program has it.
    can_overwrite = False
    # Whether the program that is compiled next is most often run by it.
    overwrites = False
    # Whether each small result of a program takes longer than to copy it into a larger one: where a loop is Python's,
    # those of a step then leave it together.
    joins_results = False
    # Whether cutting columns out of a matrix, or joining them, takes longer than the products that need them: such a
    # loop's steps then multiply them apart.
    slow_columns = False
    # Whether `load` and `load_all` put values into memory that nothing else holds, such as a GPU's.
    loads_copies = False
    # A `page_locks.PageLocks`, where a device copies faster from and to memory whose pages are locked.
    page_locks = None
    # Whether `compile` waits for what takes long, such as a C compiler. Otherwise the engine may answer at once, by a
    # slower program, and have the other one built beside the calls: `take_over` then replaces it.
    waits = True
    # How many programs, or parts of them, are being built beside the calls.
    building = 0

    def __init__(self, options):
        self.options = options

    def facts(self):
        """A JSON-able dict: version (the engine's own words), device, devices (list), threads (int).

        "precision", and "precisions" (those that the device has), where float32 is multiplied as the option says.
        "notes": lines that the user is told once at the start.
        """
        raise NotImplementedError

    def load(self, array):
        """A native value equal to `array` bit for bit.

        It may share memory with `array`, a committed slot aligned to 64 bytes: nobody writes there while this value
        is current.
        """
        raise NotImplementedError

    def to_numpy(self, value):
        """The native value as an ndarray of the promised dtype, exact.

        It may share memory with anything, a feed or a slot included: the executor copies it at once.
        """
        raise NotImplementedError

    def commit(self, value, destination):
        """Writes a variable's new value into the ndarray `destination`, exactly; returns the native value to keep.

        What is kept may share memory with `destination`, but with no other array: feeds are overwritten.
        """
        destination[...] = self.to_numpy(value)
        return value

    # Those of several values at once: a device has all copies under way together, and waits once.

    def load_all(self, arrays):
        """`load` of each array."""
        return [self.load(array) for array in arrays]

    def read_all(self, values, destinations):
        """Writes native values into these ndarrays, exactly. Raises RuntimeError where dtypes or shapes differ."""
        for value, destination in zip(values, destinations):
            array = self.to_numpy(value)
            if array.shape != destination.shape or array.dtype != destination.dtype:
                raise unlike(array.dtype, array.shape, destination)
            destination[...] = array

    def copy_all(self, values, likes):
        """Copies of native values as ndarrays of the dtypes and shapes of these. Raises RuntimeError as `read_all`."""
        copies = []
        for value, like in zip(values, likes):
            array = self.to_numpy(value)
            if array.shape != like.shape or array.dtype != like.dtype:
                raise unlike(array.dtype, array.shape, like)
            copies.append(np.array(array, order="C"))
        return copies

    def commit_all(self, values, destinations):
        """`commit` of each value that `run` has not written there itself."""
        kept = []
        for value, destination in zip(values, destinations):
            kept.append(value if value is destination else self.commit(value, destination))
        return kept

    def differing(self, values, arrays):
        """The positions of those values that aren't read back as these arrays, bit for bit."""
        pairs = zip(values, arrays)
        return [i for i, (value, array) in enumerate(pairs) if not same_bits(self.to_numpy(value), array)]

    def lock_pages(self, memory):
        """Told of an `mmap` through which arrays come and go: a device may have its pages locked, and copy faster."""
        if self.page_locks is not None:
            self.page_locks.add(memory)

    def unlock_pages(self, memory):
        """Told before that `mmap` goes."""
        if self.page_locks is not None:
            self.page_locks.remove(memory)

    def own(self, value):
        """A copy of a variable's value that nothing else holds and that `run.overwrite` may write to."""
        return self.load(np.array(self.to_numpy(value)))

    def compile(self, program, constants):
        """Lowers a `lowering.Program` as a whole; `constants` are ndarrays.

        Returns `run(feeds, state, draws)` -> (outputs, new_state): lists of ndarrays or of what `borrow` returns
        (feeds), of what `draw` returns (draws) and native values (state, one for each slot) in; native outputs, and
        the native new value of each of `program.updates`, out. `run` doesn't change `state`. Where constants are
        large, they are loaded once.
        `run.fresh`, if it is there, has the positions of outputs in memory that nothing else will hold.
        `run.overwrite(feeds, state, draws, begin)`, if it is there, does the same, but new values may lie in the memory
        of `state`, where `own` has made all that is updated; it calls `begin()` before it first writes there.
        Raises CannotLower.

        As it stands here, each run calls the op functions one by one.
        """
        from .lowering import lower

        loaded = [self.load(array) for array in constants]

        def run(feeds, state, draws):
            # Copies: an update may keep what was fed, and a feed's memory is used again.
            given = [self.load(array.copy()) for array in list(feeds) + list(draws)]
            values = given[: len(feeds)] + list(state) + given[len(feeds) :] + loaded
            values = lower(program, values, self.ops)
            return [values[number] for number in program.outputs], [values[number] for _, number in program.updates]

        return run

    def borrow(self, tensor):
        """Another library's tensor as a native value that shares its memory, or None where it can't be had so.

        It comes among a run's feeds, in place of an ndarray; no result of that run shares memory with it.
        """

    def native(self, value, fresh):
        """A native result as the user gets it, to keep and to write to; it shares memory with nothing else.

        `fresh`: nothing else holds the value, and it can be handed out as it is.
        """
        return self.load(np.array(self.to_numpy(value)))

    def close(self):
        """Releases what the library holds for the backend, which is no longer used."""

    def describe(self, program, run, names):
        """A readable form of the compiled program: {"kind": what it is, "ops": how many, "text": a listing}.

        `run` is what `compile` returned, `names` are those of the program's leaves. As it stands here: the program.
        """
        from .describing import listing, ops_in

        return {
            "kind": "the program's ops, called one by one",
            "ops": ops_in(program),
            "text": "\n".join(listing(program, names)),
        }

    def compile_anew(self):
        """Makes the next compilation take as long as a first one, even if the program is known already."""

    def recompute(self, wanted):
        """Sets whether a run computes everything even if nothing that it reads has changed, as timing requires."""

    def maps(self):
        """The memory maps that this process has, where compiled programs take many of these; elsewhere 0."""
        return 0

    def draw(self, kind, dtype, shape, seed, counter):
        """What `run` takes among its draws: see `backends.random_draws`. A device may make the same by itself."""
        from .random_draws import draw

        return draw(kind, dtype, shape, seed, counter)

    def take_over(self, wait):
        """Called between two calls: has what was built beside them run from here on; `wait`: when all of it is built.

        Returns how many programs, or parts of them, now run otherwise, and the reasons of builds that have failed.
        """
        return 0, []

    def synchronize(self):
        """Returns when all work handed to the device is done."""

    def usable(self):
        """Whether the device still computes; asked after an error, which may leave a GPU and all on it unusable."""
        return True

    def profiler(self):
        """A `watching.Profiler` of the engine's own for one call; None if it has none that reports single ops."""
        return None
