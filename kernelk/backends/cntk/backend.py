"""The CNTK 2.7 backend: a program becomes CNTK Functions on static shapes, and numpy's definitions for all else.

A stage is one CNTK Function (float32, float64 and booleans) or a run of numpy's definitions (integers, float16,
tensors without elements, the few ops that CNTK can't do exactly); `run.stages` of a compiled program tells which.
"""

import ctypes
import importlib.util
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from ..base import PRIMITIVES, Backend
from ..choosing import FLOAT32, chosen_device, chosen_precision, positive_threads
from ..errors import CannotLower, OptionError
from ..lowering import InstructionError
from .known import learn, needed
from .memory import Held, Lent
from .ops import OPS
from .profiler import CNTKProfiler
from .stages import HOST_OPS, HostStage, NativeStage, Refused, engine_error, partition
from .updating import UpdateStage

# Distributed training alone uses MPI, but the libraries are linked with it.
MPI = ("libmpi.so.12", "libmpi_cxx.so.1")
# What AMD's processors, and those made to its design, say they are.
AMD = ("AuthenticAMD", "HygonGenuine")


def _load_mpi():
    """Loads the MPI libraries that lie beside CNTK's own, so that no other ones on the system's path are found."""
    spec = importlib.util.find_spec("cntk")
    if spec is None or spec.origin is None:
        return
    for name in MPI:
        path = os.path.join(os.path.dirname(spec.origin), "libs", name)
        if os.path.exists(path):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


def is_taken_for_old(processors):
    """Whether MKL uses no AVX2 though the processor has it, which is AMD's, by the text of /proc/cpuinfo."""
    first = dict(line.partition(":")[::2] for line in processors.split("\n\n")[0].replace("\t", "").splitlines())
    flags = first.get("flags", "").split()
    return first.get("vendor_id", "").strip() in AMD and "avx2" in flags and "fma" in flags


def tell_mkl():
    """Has CNTK's MKL multiply with AVX2 on AMD's processors, too, which it takes for old ones.

    It reads the variable when it is loaded; a value that the user has chosen stays.
    """
    with suppress(OSError, ValueError), open("/proc/cpuinfo") as file:
        if is_taken_for_old(file.read()):
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


class Core(object):
    """CNTK's modules and its C++ layer, called directly: `Function.eval` costs more than a small step itself."""

    def __init__(self, engine, layer, device):
        self.engine = engine
        self.layer = layer
        self.device = device
        self.cpu = engine.device.cpu()
        self._forward = layer._cntk_py.Function__forward
        self._set_value = layer._cntk_py.Parameter_set_value
        self.contents = layer._cntk_py.Parameter_value
        self.touch = layer._cntk_py.Parameter_record_value_update
        # CNTK computes nothing again while no parameter has changed, unless each is said to have.
        self.recompute = False
        self._helpers = None
        self._memory = {}

    def threads(self):
        """How many threads compute."""
        return int(self.layer.get_max_num_cputhreads())

    def helpers(self):
        """The threads besides this one, for numpy."""
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(self.threads() - 1)
        return self._helpers

    def memory(self, name, count, dtype):
        """An array that everybody has who asks for this name, number of elements and dtype: only for the moment."""
        key = name, count, dtype
        if key not in self._memory:
            self._memory[key] = np.empty(count, dtype)
        return self._memory[key]

    def borrow(self, array):
        """CNTK's view of an array's memory; the caller keeps the array alive."""
        return self.layer.NDArrayView(array, self.cpu, False, True)

    def assign(self, parameter, view):
        """Copies a view's elements into a parameter."""
        try:
            self._set_value(parameter, view)
        except RuntimeError as error:
            raise engine_error(error) from None

    def forward(self, function, outputs):
        try:
            self._forward(function, {}, outputs, self.device, set())
        except RuntimeError as error:
            raise engine_error(error) from None


def _device_name(device):
    return "cpu" if device.type() == 0 else "gpu:%d" % device.id()


class CNTKBackend(Backend):
    """CNTK in this process; one for a process, since CNTK's default device and threads belong to it.

    Its own option: "dynamic_threads" lets fewer threads work while the machine is busy. Threads that wait for one
    another by spinning cost small steps three to eight times their time there; but results may then differ in their
    last bits from run to run, as they do between numbers of threads, so it is off unless asked for.
    """

    name = "cntk"
    # A composite that CNTK lacks is better written out than left to numpy, and a loop's body compiled by staged.py;
    # but for one whose last step numpy computes.
    ops = {
        name: call
        for name, call in dict(HOST_OPS, **OPS).items()
        if name in PRIMITIVES or name in OPS or name == "saturating_cast"
    }
    specialises = "all"
    # In CNTK's own memory, which is copied before CNTK uses it again, or in arrays that nobody writes to
    keeps_updates = True
    joins_results = True
    # Its threads meet at the end of each row's piece.
    slow_columns = True

    def __init__(self, options):
        Backend.__init__(self, options)
        self._dynamic = bool(options.get("dynamic_threads"))
        if self._dynamic:
            # Read once, when the library of the threads is loaded.
            os.environ["OMP_DYNAMIC"] = "true"
        _load_mpi()
        tell_mkl()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cntk
            from cntk import cntk_py
        devices = {_device_name(device): device for device in cntk.device.all_devices()}
        self._devices = sorted(devices)
        self._device = chosen_device("CNTK", self.name, options, self._devices, "cpu")
        chosen_precision("CNTK", self.name, options, self._device, FLOAT32)
        device = devices[self._device]
        if not cntk.device.try_set_default_device(device):
            raise OptionError("CNTK can't use %s as this process's device" % self._device)
        # Said aloud, once: here, where it goes to the log, and not in the user's first call.
        cntk.device.use_default_device()
        threads = positive_threads(options)
        if threads is not None:
            cntk_py.set_max_num_cputhreads(threads)
        self._core = Core(cntk, cntk_py, device)
        self.layer = cntk_py
        # Where a CNTKProfiler is to find the functions that are made.
        self.watched = None

    def facts(self):
        return {
            "version": self._core.engine.__version__,
            "device": self._device,
            "devices": self._devices,
            "dynamic_threads": self._dynamic,
            "threads": self._core.threads(),
            "precision": FLOAT32[0],
            "precisions": list(FLOAT32),
            "interpreter": "Python " + sys.version.split()[0],
        }

    def load(self, array):
        return Held(array)

    def to_numpy(self, value):
        return value.array

    def recompute(self, wanted):
        self._core.recompute = wanted

    def commit(self, value, destination):
        value.write(self._core, destination)
        return value

    def _stages(self, program, known):
        """Stages that can all be built: what CNTK turns down on the way becomes numpy's."""
        first = len(program.leaves)
        refused = {}
        while True:
            plan, reasons = partition(program, known, refused)
            where = {}
            for i, (_, instructions) in enumerate(plan):
                for instruction in instructions:
                    where[first + instruction.index] = i
            inner = set()
            for i, (_, instructions) in enumerate(plan):
                for instruction in instructions:
                    inner.update(n for n in needed(instruction) if where.get(n, i) != i)
            wanted = inner.union(program.results())
            stages = []
            try:
                for kind, instructions in plan:
                    if kind == "native":
                        stages.append(NativeStage(self._core, program, instructions, known, wanted, inner))
                    elif kind == "updates":
                        stages.append(UpdateStage(self._core, program, instructions))
                    else:
                        stages.append(HostStage(program, instructions, reasons))
                return stages
            except Refused as refusal:
                refused[refusal.instruction.index] = refusal.reason

    def profiler(self):
        return CNTKProfiler(self)

    def describe(self, program, run, names):
        lines, ops, kinds = [], 0, []
        labels = list(names) + ["%%%d" % i.index for i in program.instructions]
        for stage in run.built:
            if isinstance(stage, NativeStage):
                nodes, results = stage.describe(labels)
                kinds.append("a CNTK Function")
                lines.append("a CNTK Function of %s:" % ", ".join(labels[entry.number] for entry in stage.entries))
            elif isinstance(stage, UpdateStage):
                nodes = [
                    "%%%d = %s(%s)" % (i.index, i.op, ", ".join(labels[n] for n in i.inputs))
                    for i in stage.instructions
                ]
                results = []
                kinds.append("numpy for new values")
                lines.append("new values, computed by numpy, which is exact and faster here:")
            else:
                nodes = [
                    "%s = numpy's %s (CNTK: %s)" % (labels[len(program.leaves) + i.index], i.op, why[1])
                    for i, why in zip(stage.instructions, stage.facts["host"])
                ]
                results = []
                kinds.append("numpy")
                lines.append("computed by numpy, because CNTK can't do it exactly:")
            lines.extend("    " + line for line in nodes + results)
            ops += len(nodes)
        if run.folded:
            lines.append("computed in advance: " + ", ".join(run.folded))
        return {"kind": ", then ".join(kinds) or "nothing to compute", "ops": ops, "text": "\n".join(lines)}

    def compile(self, program, constants):
        for instruction in program.instructions:
            if instruction.op not in self.ops:
                raise InstructionError(instruction, CannotLower("this backend doesn't define %r" % instruction.op))
        known = learn(program, [np.array(constant) for constant in constants])
        stages = self._stages(program, known)
        total = len(program.values)
        first_slot = len(program.inputs)
        last_slot = first_slot + len(program.slots)
        first_instruction = len(program.leaves)
        fixed = [(n, fact.array) for n, fact in enumerate(known) if fact.array is not None]
        native = [stage for stage in stages if isinstance(stage, NativeStage)]
        if self.watched is not None:
            self.watched.extend(stage.function for stage in native)
        # Arrays that nobody else has: what CNTK wrote, or a copy.
        private = set(leaving.number for stage in native for leaving in stage.exits)

        def keep(number, values, state):
            if first_slot <= number < last_slot:
                return state[number - first_slot].again()
            array = values[number]
            if isinstance(array, Lent):
                return Held(None, array)
            if number not in private and (number < first_instruction or array.base is not None):
                array = np.array(array)
            return Held(array)

        def run(feeds, state, draws):
            values = list(feeds) + list(state) + list(draws)
            values += [None] * (total - len(values))
            for number, array in fixed:
                values[number] = array
            written = {}
            for stage in stages:
                written.update(stage.run(values, state))
            outputs = [keep(number, values, state) for number in program.outputs]
            new_state = []
            for slot, number in program.updates:
                if first_slot <= number < last_slot:
                    # Another variable's value may be in its slot, which is written to again.
                    held = Held(np.array(state[number - first_slot].array))
                else:
                    held = keep(number, values, state)
                new_state.append(held)
                if number in written:
                    for stage in native:
                        stage.follow(slot, held.token, written[number])
            return outputs, new_state

        run.built = stages
        run.stages = [stage.facts for stage in stages]
        run.folded = [i.op for i in program.instructions if known[first_instruction + i.index].array is not None]
        return run
