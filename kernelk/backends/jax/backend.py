"""The JAX backend: a program is one function that XLA compiles ahead of time."""

import os
import sys
import weakref
from contextlib import ExitStack, contextmanager, suppress

import numpy as np

from ..base import Backend, hand_over
from ..choosing import (
    FLOAT32,
    SHARED_THREADS,
    check_environment,
    chosen_device,
    chosen_precision,
    positive_threads,
    precisions,
    settled_denormals,
    settled_threads,
    wanted_denormals,
)
from ..lowering import InstructionError
from ..products import round_factors
from ..segments import compile_in_segments
from . import draws, elementwise, gpu, ops, tracing, windows
from .denormals import keep_denormals
from .draws import DeviceDraws
from .gpu import Gpu
from .profiler import JaxProfiler

# Imported when the first JaxBackend is made.
jax = None
lax = None

# XLA's time for a chain of 8,000 instructions and its gradient is minutes, that of pieces of this size seconds.
MOST_INSTRUCTIONS = 1000

# Constants up to this many bytes are part of the compiled program; larger ones are arguments, held once.
EMBEDDED_BYTES = 1024

# What XLA does by default, but the definition doesn't: flush denormals, let NaN lose a maximum, leave out the
# rounding of float16 between two ops, and rewrite algebraically. "algsimp" makes x of (x + 1e30) - 1e30, 1 of
# exp(x) * exp(-x) where either overflows, and x * inf of a division by a small constant. YNNPACK's maximum
# leaves NaN out; its matrix products are sound.
STRICT = {
    "xla_allow_excess_precision": False,
    "xla_cpu_enable_fast_math": False,
    "xla_cpu_enable_fast_min_max": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_ftz": False,
    "xla_disable_hlo_passes": "algsimp,reshape-mover",
    "xla_gpu_enable_fast_min_max": False,
    "xla_gpu_ftz": False,
}


@contextmanager
def _environment(values):
    """These environment variables inside; afterwards as before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class JaxBackend(Backend):
    """JAX: native values are its arrays, a program is one executable for the shapes at hand.

    An option of its own: "denormals", "keep" or "flush" (what JAX does by default). Without it they are kept if
    that can be had, and facts() tells which it is. The precision of products and wide dtypes are chosen where
    kernelk's arrays and programs are made, and nowhere else.
    """

    name = "jax"
    ops = ops.OPS
    specialises = "all"
    # A compiled program's results lie in memory of their own.
    keeps_updates = True

    def __init__(self, options):
        global jax, lax
        Backend.__init__(self, options)
        denormals = wanted_denormals(options)
        threads = positive_threads(options)
        import jax
        from jax import lax

        hand_over([draws, elementwise, gpu, ops, tracing, windows], jax=jax, lax=lax)
        started = _started()
        self._in_kernel = bool(options.get("in_kernel"))
        if denormals != "flush" and not started and not self._in_kernel:
            keep_denormals(options.get("scratch"))
        if not started and not self._in_kernel and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
            # A run waits for its results at once: to have another thread compute them costs a small one a third more.
            # A version without the setting does without.
            with suppress(AttributeError):
                jax.config.update("jax_cpu_enable_async_dispatch", False)
        settings = {}
        if "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ and not self._in_kernel:
            # Without it a process takes most of a GPU's memory, and other engines' workers get none.
            settings["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if threads:
            # What XLA takes for the number of processors.
            settings["NPROC"] = str(int(threads))
        self._notes = []
        if threads and self._in_kernel and not started:
            self._notes.append(SHARED_THREADS % ("JAX", int(threads), "JAX"))
        self.load, self.to_numpy = self._alone(self.load), self._alone(self.to_numpy)
        with _environment(settings):
            self._devices = _devices()
        self._threads = _pool()
        if threads and started and self._threads not in (None, int(threads)):
            # It has started already, and takes no other number in this process.
            raise settled_threads("JAX", self.name, self._threads, threads)
        default = list(self._devices)[0]
        self._device = chosen_device("JAX", self.name, options, sorted(self._devices), default)
        self._native_device = self._devices[self._device]
        # In the kernel's process nothing could compute again what a call that fails has overwritten.
        self.can_overwrite = not self._in_kernel
        self._precisions = precisions(_has_tf32(self._native_device))
        self._precision = chosen_precision("JAX", self.name, options, self._device, self._precisions)
        if self._in_kernel and not self._device.startswith("cpu"):
            check_environment("JAX", self.name, self._precision, self._device)
        self._sharding = jax.sharding.SingleDeviceSharding(self._native_device)
        self._compiled = weakref.WeakValueDictionary()
        self._options = dict(STRICT)
        with self._own_settings():
            self._take_shortcuts()
            self._zero = self._make(np.asarray(0, np.int32))
            self._half, self._probe = self._first_executable(), self._make(np.full(3, 1e-40, np.float32))
            kept = self.to_numpy(self._half(self._probe)[0])[0] > 0
        self._use(None if self._device.startswith("cpu") else Gpu(self._native_device, self._make, self._block))
        # On a processor, numpy makes them in less time than XLA.
        self._device_draws = None if self._device.startswith("cpu") else DeviceDraws(self._executable, self._make)
        self._denormals = settled_denormals("JAX", denormals, kept, self._in_kernel, self._notes, "started")

    def _use(self, gpu):
        """Makes values lie on a GPU; None: in the host's memory."""
        self._gpu = gpu
        self.page_locks = None if gpu is None else gpu.locks
        self.loads_copies = gpu is not None

    def _take_shortcuts(self):
        """Finds JAX's inner entries for making and reading an array, 5-50 times as fast.

        Where a version lacks one of them, the public ones serve.
        """
        self._make, self._block = self._make_publicly, jax.block_until_ready
        try:
            from jax._src.lib import _jax

            put, avals, sharding, devices = _jax.batched_device_put, {}, self._sharding, [self._native_device]
            shaped, block = jax.core.ShapedArray, _jax.batched_block_until_ready
            # The last argument keeps 64 bits, whatever the process has chosen.
            rest = True, False, _jax.HostBufferSemantics.ZERO_COPY, True

            def make(array):
                kind = array.dtype, array.shape
                aval = avals.get(kind)
                if aval is None:
                    if len(avals) > 10000:
                        avals.clear()
                    with jax.enable_x64(True):
                        aval = avals[kind] = shaped(array.shape, array.dtype)
                return put(aval, sharding, [array], devices, *rest)

            for probe in (np.arange(3, dtype=np.float64), np.array(2**40 + 1)):
                made = make(probe)
                block([made])
                if made.dtype != probe.dtype or not np.array_equal(np.asarray(made), probe):
                    raise ValueError("a shortcut gave a wrong value")
        except (ImportError, AttributeError, TypeError, ValueError):
            pass
        else:
            self._make, self._block = make, block

    def _make_publicly(self, array):
        with jax.enable_x64(True):
            return jax.device_put(array, self._native_device)

    def _first_executable(self):
        """A program that halves three float32; on the way the options that this version doesn't have are dropped."""
        while True:
            try:
                return self._executable(lambda x: [lax.mul(x, np.full(3, 0.5, np.float32))], [("float32", (3,))])
            except Exception as error:
                # JAX names an option that it doesn't know nowhere but in its message.
                unknown = [name for name in self._options if name in str(error)]
                if not unknown:
                    raise
                for name in unknown:
                    del self._options[name]

    def _executable(self, body, leaves, donated=()):
        """The list-valued `body` compiled for arguments of these dtypes and shapes.

        A call takes the memory of the `donated` ones, positions, for its results.
        """
        with jax.enable_x64(True), self._own_settings():
            specs = [jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding) for dtype, shape in leaves]

            def program(*arguments):
                return body(*arguments)

            return jax.jit(program, donate_argnums=donated).lower(*specs).compile(compiler_options=self._options)

    def _own_settings(self):
        """A context without those of the user's settings by which a program fails, rounds more or isn't compiled."""
        stack = ExitStack()
        # What is rounded to bfloat16 has exact products in TensorFloat-32.
        exact = self._precision == FLOAT32[0]
        stack.enter_context(jax.default_matmul_precision("float32" if exact else "tensorfloat32"))
        stack.enter_context(jax.disable_jit(False))
        if self._in_kernel:
            stack.enter_context(jax.debug_nans(False))
            stack.enter_context(jax.debug_infs(False))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.transfer_guard("allow"))
        return stack

    def _alone(self, function):
        """`function` without the user's settings, which is quick where there are none."""
        disturbing, own_settings = self._disturbing, self._own_settings

        def call(*arguments):
            if not disturbing():
                return function(*arguments)
            with own_settings():
                return function(*arguments)

        return call

    def _disturbing(self):
        """Whether the user has a setting by which a compiled program would fail at its call."""
        config = jax.config
        return config.jax_disable_jit or (
            self._in_kernel
            and (
                config.jax_debug_nans
                or config.jax_debug_infs
                or config.jax_transfer_guard_host_to_device not in (None, "allow")
                or config.jax_transfer_guard_device_to_host not in (None, "allow")
            )
        )

    def facts(self):
        return {
            "version": jax.__version__,
            "device": self._device,
            "devices": sorted(self._devices),
            "threads": self._threads,
            "precision": self._precision,
            "precisions": self._precisions,
            "interpreter": "Python " + sys.version.split()[0],
            "denormals": self._denormals,
            "notes": self._notes,
        }

    def load(self, array):
        # Memory aligned to 64 bytes is shared, other memory copied.
        value = self._make(np.asarray(array))
        value.block_until_ready()
        return value

    def load_all(self, arrays):
        return Backend.load_all(self, arrays) if self._gpu is None else self._alone(self._gpu.load)(arrays)

    def to_numpy(self, value):
        return np.asarray(value)

    def read_all(self, values, destinations):
        if self._gpu is None:
            Backend.read_all(self, values, destinations)
        else:
            self._alone(self._gpu.read)(values, destinations)

    def copy_all(self, values, likes):
        if self._gpu is None:
            return Backend.copy_all(self, values, likes)
        copies = [np.empty(like.shape, like.dtype) for like in likes]
        self.read_all(values, copies)
        return copies

    def commit_all(self, values, destinations):
        if self._gpu is None:
            return Backend.commit_all(self, values, destinations)
        self.read_all(values, destinations)
        return values

    def differing(self, values, arrays):
        if self._gpu is None:
            return Backend.differing(self, values, arrays)
        return self._alone(self._gpu.differing)(values, arrays)

    def own(self, value):
        return Backend.own(self, value) if self._gpu is None else self._alone(self._gpu.copy)(value)

    def close(self):
        if self._gpu is not None:
            self._gpu.locks.clear()

    def draw(self, kind, dtype, shape, seed, counter):
        if self._device_draws is None:
            return Backend.draw(self, kind, dtype, shape, seed, counter)
        return self._device_draws.draw(kind, dtype, shape, seed, counter)

    def borrow(self, tensor):
        try:
            if not isinstance(tensor, jax.Array):
                tensor = self._alone(self._imported)(tensor)
            here = tensor.sharding.is_equivalent_to(self._sharding, tensor.ndim)
            order = tensor.format.layout.major_to_minor
            return tensor if here and order == tuple(range(tensor.ndim)) else None
        except Exception:
            return None

    def _imported(self, tensor):
        with jax.enable_x64(True):
            return jax.dlpack.from_dlpack(tensor)

    def native(self, value, fresh):
        # Its arrays can't be written to; but one that is held here would be gone if the user donated it.
        return value if fresh else self.load(np.array(value))

    def maps(self):
        # XLA maps the code of each fused piece of a program by itself.
        try:
            with open("/proc/self/maps") as maps:
                return sum(1 for _ in maps)
        except OSError:
            return 0

    def synchronize(self):
        # Work on one device is done in order, and run() waits for its own.
        self._alone(self._half)(self._probe)[0].block_until_ready()

    def usable(self):
        if self._device.startswith("cpu"):
            return True
        try:
            # After such an error, each use of the GPU reports it again.
            self.synchronize()
        except Exception:
            return False
        return True

    def profiler(self):
        return JaxProfiler(self)

    def describe(self, program, run, names):
        if not hasattr(run, "traced"):
            return Backend.describe(self, program, run, names)
        body, specs, arguments, shared = run.traced
        with jax.enable_x64(True), self._own_settings():
            jaxpr = jax.make_jaxpr(body)(*[jax.ShapeDtypeStruct(shape, dtype) for dtype, shape in specs])
        given = [names[number] for number in arguments] + ["a zero that XLA can't see"] * (len(specs) - len(arguments))
        lines = ["its arguments a, b, c, ... are: " + ", ".join(given), str(jaxpr)]
        optimised = shared.executable.as_text()
        entry = optimised[optimised.rfind("\nENTRY ") :].split("\n}")[0].strip().splitlines()
        steps = [line.strip() for line in entry[1:] if " parameter(" not in line and " tuple(" not in line]
        counted = "%d step%s" % (len(steps), "" if len(steps) == 1 else "s")
        lines += ["", "after XLA's optimisation (%s of the module's entry):" % counted]
        lines += [line.split(", metadata=")[0] for line in steps]
        kind = "the jaxpr, and %s after XLA's optimisation" % counted
        return {"kind": kind, "ops": _equations(jaxpr.jaxpr), "text": "\n".join(lines)}

    def compile_anew(self):
        self._compiled = weakref.WeakValueDictionary()

    def compile(self, program, constants):
        if len(program.instructions) > MOST_INSTRUCTIONS:
            return compile_in_segments(self._compile, program, constants, MOST_INSTRUCTIONS)
        return self._compile(program, constants)

    def _compile(self, program, constants):
        if self._precision == "bfloat16":
            round_factors(program)
        leaves, first = program.leaves, len(program.leaves)
        results = program.results()
        if not results:
            return lambda feeds, state, draws: ([], [])
        used = set(results).union(*[instruction.inputs for instruction in program.instructions])
        known = first - len(constants)
        embedded = {
            number: array
            for number, array in enumerate(constants, known)
            if array.nbytes <= EMBEDDED_BYTES and number in used
        }
        arguments = [number for number in range(first) if number in used and number not in embedded]
        floats = any(array.dtype.kind == "f" and array.size for array in embedded.values())
        opaque = floats or tracing.has_products_in_sums(program)
        specs = [leaves[number] for number in arguments] + ([("int32", ())] if opaque else [])
        # Indices of instructions that the call alone can refuse: so many truths come after the results.
        refusable = []

        def body(*given):
            values = [None] * first
            for number, value in zip(arguments, given):
                values[number] = value
            zero = given[-1] if opaque else None
            for number, array in embedded.items():
                # Of a constant that it sees, a pass that has no name makes x of x + 0, whose -0.0 is another.
                floating = array.dtype.kind == "f" and array.size
                values[number] = tracing.opaque(array, zero) if floating else array

            values, refusals = tracing.lowered(program, values, embedded, zero)
            refusable[:] = [instruction.index for instruction, _ in refusals]
            values = [lax.convert_element_type(values[number], program.values[number][0]) for number in results]
            return values + [refused for _, refused in refusals]

        # Whether a value is fed or held makes no difference to XLA, and that takes most of a compilation's time.
        key = repr((leaves[:known], specs, results, [(n, leaves[n], a.tobytes()) for n, a in embedded.items()]))
        key += repr([(i.op, i.inputs, i.attrs, i.dtype, i.shape) for i in program.instructions])
        feeds_end = len(program.inputs)
        updated = set(feeds_end + slot for slot, _ in program.updates)
        replaceable = tuple(at for at, number in enumerate(arguments) if number in updated)

        def compiled(donated):
            shared = self._compiled.get((key, donated))
            if shared is None:
                shared = self._compiled[key, donated] = _Compiled(self._executable(body, specs, donated), refusable[:])
            return shared

        make, block = self._make, self._block
        large = [number for number in arguments if number >= known]
        kept = dict(zip(large, self.load_all([np.array(constants[number - known]) for number in large])))
        slots_end = feeds_end + len(program.slots)
        fed = [number for number in arguments if number < feeds_end]
        held = [number - feeds_end for number in arguments if feeds_end <= number < slots_end]
        drawn = [number - slots_end for number in arguments if slots_end <= number < known]
        tail = [kept[number] for number in arguments if number >= known] + ([self._zero] if opaque else [])
        outputs, count = len(program.outputs), len(results)

        def call(shared, feeds, state, draws, begin=None):
            values = []
            for number in fed:
                x = feeds[number]
                values.append(make(x) if type(x) is np.ndarray else x)
            values += [state[slot] for slot in held]
            if drawn:
                values += [x if type(x) is not np.ndarray else make(x) for x in (draws[number] for number in drawn)]
            if tail:
                values += tail
            if begin is not None:
                begin()
            results = shared.executable(*values)
            # The feeds' memory is read until then, and soon overwritten.
            block(results)
            if shared.refusable:
                for index, refused in zip(shared.refusable, results[count:]):
                    if refused:
                        raise InstructionError(program.instructions[index], ValueError(elementwise.NEGATIVE_POWER))
            return results[:outputs], results[outputs:count]

        call = self._alone(call)
        # Donated arguments or none -> the program for them; what isn't asked for isn't compiled.
        ready = {}

        def program_for(donated):
            if donated not in ready:
                ready[donated] = compiled(donated)
            return ready[donated]

        def run(feeds, state, draws):
            return call(program_for(()), feeds, state, draws)

        def overwrite(feeds, state, draws, begin):
            return call(program_for(replaceable), feeds, state, draws, begin)

        if self.can_overwrite and replaceable:
            run.overwrite = overwrite
        likely = program_for(replaceable if self.overwrites else ())
        run.fresh = program.computed()
        run.traced = body, specs, arguments, likely
        return run


class _Compiled(object):
    """A program as XLA compiled it, and the indices of the instructions that a call may have to refuse."""

    def __init__(self, executable, refusable):
        self.executable = executable
        self.refusable = refusable


def _equations(jaxpr):
    """The number of a jaxpr's ops, including those of its loops' bodies."""
    count = 0
    for equation in jaxpr.eqns:
        inner = [x for x in equation.params.values() if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        count += sum(_equations(getattr(x, "jaxpr", x)) for x in inner) if inner else 1
    return count


def _started():
    """Whether JAX has started its engine in this process: then threads and denormals are settled."""
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):
        return False


def _devices():
    """JAX's devices in this process by name, such as cpu:0; those that it prefers come first."""
    devices = list(jax.local_devices())
    # JAX_PLATFORMS may leave the processor out.
    with suppress(RuntimeError):
        devices += jax.local_devices(backend="cpu")
    names = {}
    for device in devices:
        names.setdefault(str(device).lower(), device)
    return names


def _has_tf32(device):
    """Whether it is a GPU of NVIDIA's that multiplies in TensorFloat-32."""
    try:
        return float(device.compute_capability) >= 8.0
    except (AttributeError, TypeError, ValueError):
        return False


def _pool():
    """The number of threads that XLA has for a computation on the processor; None where the system doesn't tell."""
    count = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open("/proc/self/task/%s/comm" % task) as name:
                count += "Eigen" in name.read()
    except OSError:
        pass
    if count:
        return count
