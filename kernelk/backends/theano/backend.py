"""Theano 1.0.5, in a worker of its own: programs are compiled as a whole by theano.function, with C or without."""

import contextlib
import ctypes
import os
import sys
import tempfile
import warnings

import numpy as np

from ..base import Backend, hand_over
from ..choosing import FLOAT32, chosen_device, chosen_precision, positive_threads
from ..errors import OptionError
from ..gemm import merged, usable
from ..lowering import InstructionError, lower_into
from ..segments import compile_in_segments
from . import elementwise, ops, windows
from .building import Builds, Guard, NotBuilt, Switching
from .profiler import TheanoProfiler
from .rewrites import excluded
from .starting import find_compiler, join, keep_cache_keys, numpy_blas, quoted, shorten_waits, writable

# Set by the first TheanoBackend, since importing Theano freezes its settings.
T = None
theano = None
op_classes = None
settings = None
with_c = False
guard = None

# Constants up to this many elements are the optimizer's to fold; larger ones are loaded once as fixed inputs.
SMALL = 64
# Theano's own recursion overflows the process's stack at some 40,000 instructions.
MOST_INSTRUCTIONS = 10000


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


class TheanoBackend(Backend):
    """Native values are ndarrays; a variable's value is its shared-memory slot, read by the compiled code in place.

    Options: "compiler" (None: g++ where there is one; "": none; else a name or path) beside the common ones.
    The user's own THEANO_FLAGS and .theanorc stay in force for whatever isn't set here.
    """

    name = "theano"
    ops = ops.OPS
    # run takes `into`, the updated variables' inactive slots, and writes new values there where it can
    writes_in_place = True
    keeps_updates = True
    can_overwrite = True

    def __init__(self, options):
        Backend.__init__(self, options)
        chosen_device("Theano", self.name, options, ["cpu"], "cpu")
        chosen_precision("Theano", self.name, options, "cpu", FLOAT32)
        self.blas_path, self.blas = numpy_blas()
        compiler, self.mode = find_compiler(options.get("compiler"))
        flags = self._flags(compiler)
        global settings
        if settings is None:
            self._import(flags, compiler)
            settings = flags
        elif settings != flags:
            raise OptionError(
                "Theano reads its settings once per process, and this process has others already",
                next_step="%kbackend --stop theano, then %kbackend theano",
            )
        threads = positive_threads(options)
        if threads is not None and self.blas is not None:
            self.blas.openblas_set_num_threads(threads)
        self.optimizers = {}
        # Where a TheanoProfiler is to find the functions that are compiled.
        self.watched = None
        self.builds = Builds(guard, options.get("scratch")) if with_c and options.get("scratch") else None

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
        global T, guard, op_classes, theano, with_c
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
        given = os.environ.get("THEANO_FLAGS")
        # Of two values of one flag the later counts.
        os.environ["THEANO_FLAGS"] = given + "," + ours if given else ours
        # Theano's optimizer and its pickled cache keys recurse along a graph.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 100000))
        with warnings.catch_warnings():
            # That there is no compiler is known: facts() says so.
            warnings.simplefilter("ignore")
            import theano
            import theano.tensor as T
            import theano.tensor.nnet  # noqa: F401

            from . import op_classes, window_classes

        # The compiler would have a product and a sum rounded once, where the processor can; the user's own flags stay.
        theano.config.gcc.cxxflags = (theano.config.gcc.cxxflags + " -ffp-contract=off").strip()
        with_c = bool(compiler)
        hand_over([elementwise, ops, windows], T=T, theano=theano, op_classes=op_classes, with_c=with_c)
        hand_over([windows], window_classes=window_classes if with_c else None)
        if compiler:
            shorten_waits()
            keep_cache_keys(theano)
            guard = Guard(theano)

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

    @contextlib.contextmanager
    def _without_c(self):
        """A context in which functions are compiled without C, as if there were no compiler."""
        global with_c
        compiler, classes, before = theano.config.cxx, windows.window_classes, with_c
        try:
            theano.config.cxx, with_c = "", False
            hand_over([elementwise, ops, windows], with_c=False)
            hand_over([windows], window_classes=None)
            yield
        finally:
            theano.config.cxx, with_c = compiler, before
            hand_over([elementwise, ops, windows], with_c=before)
            hand_over([windows], window_classes=classes)

    def _optimizers(self, program):
        exclude = excluded(program, with_c)
        if exclude not in self.optimizers:
            query = theano.gof.Query(include=["fast_run"], exclude=list(exclude))
            self.optimizers[exclude] = list(theano.compile.mode.optdb.query(query))
        optimizers = theano.gof.opt.SeqOptimizer(self.optimizers[exclude])
        if with_c and program.updates and not self.overwrites:
            optimizers.append(op_classes.WriteIntoDestination(len(program.outputs)))
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
            "precision": FLOAT32[0],
            "precisions": list(FLOAT32),
            "interpreter": "Python " + sys.version.split()[0],
            "mode": self.mode,
            "blas": blas,
            "while_compiling": self._hints() if with_c else [],
        }

    def _hints(self):
        """Hints to show while the C compiler runs."""
        cache = self.options.get("cache")
        lasts = cache and settings.get("base_compiledir", "").startswith(os.path.abspath(cache) + os.sep)
        return (["kept for next time"] if lasts else []) + ["%kbackend theano --no-compiler: no wait, but slower"]

    def load(self, array):
        return array

    def to_numpy(self, value):
        return np.asarray(value)

    def own(self, value):
        return np.array(value)

    def commit(self, value, destination):
        if value is not destination:
            destination[...] = value
        return destination

    def profiler(self):
        return TheanoProfiler(self)

    def compile(self, program, constants):
        if len(program.instructions) > MOST_INSTRUCTIONS:
            self.overwrites = False
            run = compile_in_segments(self._compile, program, constants, MOST_INSTRUCTIONS)
            return lambda feeds, state, draws, into=None: run(feeds, state, draws)
        return self._compile(program, constants)

    def _compile(self, program, constants):
        if self.waits or self.builds is None:
            return self._runner(program, *self._function(program, constants))
        makers, overwrites = [], self.overwrites
        try:
            with guard.closed():
                return self._runner(program, *self._function(program, constants, makers))
        except NotBuilt:
            pass
        with self._without_c():
            run = Switching(self._runner(program, *self._function(program, constants)))

        def make():
            if makers:
                # Its graph is optimised already.
                return makers[0].create([None] * len(makers[0].inputs)), fixed_of(constants), overwrites
            self.overwrites = overwrites
            try:
                return self._function(program, constants)
            finally:
                self.overwrites = False

        self.builds.add(make, lambda made: self._runner(program, *made), run)
        return run

    def _function(self, program, constants, makers=None):
        """(the compiled function, the constants that are its last inputs, whether it overwrites the updated variables).

        Its maker is added to `makers`.
        """
        inputs, leaves = [], []
        first = len(program.leaves) - len(program.constants)
        # Theano sees to it that whatever reads the old value comes first.
        mutable = {len(program.inputs) + slot for slot, _ in program.updates} if self.overwrites else ()
        for number, (dtype, shape) in enumerate(program.leaves):
            kind = T.TensorType(dtype, [n == 1 for n in shape])
            if number >= first and is_folded(constants[number - first]):
                leaves.append(T.TensorConstant(kind, np.array(constants[number - first])))
                continue
            leaves.append(kind())
            inputs.append(leaves[-1])
        seen = set()

        def marking(function):
            def call(instruction, *values, **attrs):
                result = function(instruction, *values, **attrs)
                mark(result, instruction.index, seen)
                return result

            return call

        used = set(instruction.op for instruction in program.instructions)
        table = {name: self.ops[name] for name in used if name in self.ops}
        values, known = list(leaves), len(program.leaves) - len(constants)

        def is_factor(number):
            return number >= known and number - known < len(constants) and usable(constants[number - known])

        gemms = merged(program, is_factor) if with_c else {}
        for name in set(program.instructions[index].op for index in gemms):
            table[name] = _or_gemm(table[name], gemms, program, constants, values)
        lower_into(values, program, {name: marking(function) for name, function in table.items()})
        results = [values[number] for number in program.results()]
        linker = theano.gof.vm.VM_Linker(allow_gc=True, use_cloop=with_c, c_thunks=with_c)
        mode = theano.compile.Mode(linker, self._optimizers(program))
        if makers is not None:

            def maker(*args, **kwargs):
                makers.append(theano.compile.function_module.FunctionMaker(*args, **kwargs))
                return makers[0]

            mode.function_maker = maker
        with np.errstate(all="ignore"):
            compiled = theano.function(
                [theano.In(value, borrow=True, mutable=number in mutable) for number, value in enumerate(inputs)],
                # Borrowed: an output keeps the array it finds in its storage, and none is copied on the way out.
                [theano.Out(value, borrow=True) for value in results],
                mode=mode,
                on_unused_input="ignore",
                profile=self._stats(),
            )
        if self.watched is not None:
            self.watched.append((marked, compiled))
        return compiled, fixed_of(constants), self.overwrites

    def _stats(self):
        if self.watched is None:
            return False
        return theano.compile.profiling.ProfileStats(atexit_print=False, flag_time_thunks=True)

    def _runner(self, program, compiled, fixed, overwrites):
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
        if overwrites:
            chosen = overwriting(chosen, compiled, program)
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

    @property
    def building(self):
        return len(self.builds.pending) if self.builds is not None else 0

    def take_over(self, wait):
        return self.builds.take_over(wait) if self.builds is not None else (0, [])


def overwriting(function, compiled, program):
    """`run` and `run.overwrite` of a function that may overwrite the variables that it updates."""
    updated = sorted(set(slot for slot, _ in program.updates))
    graph = compiled.maker.fgraph
    variables = {graph.inputs[len(program.inputs) + slot] for slot in updated}
    # The memory of each new value: what is copied is a view of something else, or lies where another one does.
    memory = [memory_of(output) for output in graph.outputs[len(program.outputs) :]]
    copied = [
        position
        for position, root in enumerate(memory)
        if root in memory[:position] or (root.owner is None and root not in variables)
    ]

    def run(feeds, state, draws, into=None):
        state = list(state)
        for slot in updated:
            state[slot] = np.array(state[slot])
        return function(feeds, state, draws)

    def overwrite(feeds, state, draws, begin):
        try:
            outputs, new_state = function(feeds, state, draws)
        except Exception:
            # Theano doesn't run its nodes in the order in which it lists them: nobody knows how far it came.
            begin()
            raise
        begin()
        for position in copied:
            new_state[position] = np.array(new_state[position])
        return outputs, new_state

    run.overwrite = overwrite
    return run


def memory_of(variable):
    """The variable of a compiled graph that this one shares its memory with, as far back as ops hand it on."""
    while variable.owner is not None:
        op, position = variable.owner.op, variable.owner.outputs.index(variable)
        numbers = getattr(op, "destroy_map", {}).get(position) or getattr(op, "view_map", {}).get(position)
        if not numbers:
            return variable
        variable = variable.owner.inputs[numbers[0]]
    return variable


def _or_gemm(function, gemms, program, constants, values):
    """An op's function, which computes some instructions by BLAS; `values`: those of all value numbers so far."""
    first, known = len(program.leaves), len(program.leaves) - len(program.constants)

    def factor(scaled, dtype):
        constant = 1.0 if scaled.factor is None else constants[scaled.factor - known]
        return T.constant(np.asarray(scaled.sign * constant, dtype))

    def call(instruction, *operands, **attrs):
        if instruction.index not in gemms:
            return function(instruction, *operands, **attrs)
        variable, product = gemms[instruction.index]
        matmul = program.instructions[product.number - first]
        a, b = (values[number] for number in matmul.inputs)
        a, b = a.T if matmul.attrs["transpose_a"] else a, b.T if matmul.attrs["transpose_b"] else b
        alpha, beta = factor(product, instruction.dtype), factor(variable, instruction.dtype)
        return T.blas.gemm_no_inplace(values[variable.number], alpha, a, b, beta)

    return call


def is_folded(constant):
    """Whether a constant is part of the graph; others are fixed inputs."""
    return constant.size <= SMALL and not has_negative_zero(constant)


def fixed_of(constants):
    """Copies of the constants that are inputs of a function, in order."""
    return [np.array(constant) for constant in constants if not is_folded(constant)]


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
