"""The PyTorch backend: a program is one Python function of PyTorch's kernels."""

import itertools
import re
import sys
from collections import Counter
from contextlib import suppress

import numpy as np

from ..base import Backend, hand_over
from ..choosing import (
    FLOAT32,
    check_environment,
    chosen_device,
    chosen_precision,
    positive_threads,
    precisions,
)
from ..describing import ops_in
from ..gemm import merged, usable
from ..lowering import InstructionError, Overwriting
from ..products import round_factors
from . import draws, elementwise, gpu, ops, precision, windows
from .gpu import Gpu
from .profiler import TorchProfiler

# Imported when the first TorchBackend is made.
torch = None

# Results of constants alone up to this many bytes are computed once, at the compilation.
FOLDED_BYTES = 1 << 16

_serial = itertools.count(1)


class _Writable(object):
    """A read-only array's memory under a description that doesn't say so: PyTorch warns of what it can't forbid."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = dict(array.__array_interface__, data=(array.__array_interface__["data"][0], False))


def shared(array):
    """A tensor of the array's own memory, or of a copy's where PyTorch can't describe it; it is only read."""
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        return torch.from_numpy(array)
    except ValueError:
        # Negative strides, or strides that aren't a multiple of an element.
        return torch.from_numpy(np.array(array, order="C"))


class TorchBackend(Backend):
    """PyTorch: on a CPU a variable's value is a tensor of its shared-memory slot, on a GPU the device's own.

    Programs run eagerly under inference mode. In the kernel the number of threads and the precision of products hold
    for kernelk's own programs alone; all else that decides on rounding is left as PyTorch's user has it.
    """

    name = "torch"
    ops = ops.OPS
    # On a CPU the last elementwise op of an update writes where `run` is told to.
    writes_in_place = True

    def __init__(self, options):
        global torch
        Backend.__init__(self, options)
        import torch

        hand_over([draws, elementwise, gpu, ops, precision, windows], torch=torch)
        self._devices = ["cpu:0"] + ["cuda:%d" % number for number in range(torch.cuda.device_count())]
        default = "cuda:0" if len(self._devices) > 1 else "cpu:0"
        self._device = chosen_device("PyTorch", self.name, options, self._devices, default)
        on_cpu = self._device == "cpu:0"
        self._in_kernel = bool(options.get("in_kernel"))
        self._native_device = torch.device("cpu" if on_cpu else self._device)
        self._use(None if on_cpu else Gpu(self._native_device, shared))
        self._threads = threads = positive_threads(options)
        self._precisions = precisions(self._has_tf32())
        self._precision = chosen_precision("PyTorch", self.name, options, self._device, self._precisions)
        # What is rounded to bfloat16 has exact products in TensorFloat-32.
        narrow = self._precision != FLOAT32[0] and "tf32" in self._precisions
        self._settings = precision.settings(on_cpu, narrow)
        if self._in_kernel:
            check_environment("PyTorch", self.name, self._precision, self._device)
        else:
            for setting in self._settings:
                setting.set(setting.wanted)
        if threads is not None and not self._in_kernel:
            torch.set_num_threads(threads)

    def _use(self, gpu):
        """Makes values lie on a GPU; None: in the host's memory."""
        self._gpu = gpu
        self.page_locks = None if gpu is None else gpu.locks
        self._on_device = shared if gpu is None else gpu.put
        self.loads_copies = gpu is not None
        self.writes_in_place = gpu is None
        # In the kernel a call that fails has to leave the old values, since nothing could compute them again; on a
        # processor nothing is saved there, since a value is written where it is committed.
        self.can_overwrite = not self._in_kernel
        self.keeps_updates = gpu is not None or not self._in_kernel

    def _has_tf32(self):
        """Whether the device is a GPU of NVIDIA's that multiplies in TensorFloat-32."""
        if self._gpu is None or torch.version.cuda is None:
            return False
        return torch.cuda.get_device_capability(self._native_device) >= (8, 0)

    def _inside(self, function):
        """`function` under inference mode, and in the kernel without what the user has set up for their own code."""
        # Contexts in C: no Ctrl-C comes between one and the `with` that leaves it again.
        inference = getattr(torch._C, "_InferenceMode", torch.inference_mode)
        if not self._in_kernel:

            def call(*arguments):
                with inference(True):
                    return function(*arguments)

            return call
        kind, wanted, settings = self._native_device.type, self._threads, self._settings

        def call_alone(*arguments):
            # A user's modes, their default device among them, go by PyTorch's "function" protocol.
            with torch._C.DisableTorchFunction(), inference(True):
                casts, threads = torch.is_autocast_enabled(kind), torch.get_num_threads()
                others = [setting for setting in settings if not setting.holds()]
                if not (casts or others) and wanted in (None, threads):
                    return function(*arguments)
                own = [setting.own() for setting in others]
                try:
                    for setting in others:
                        setting.set(setting.wanted)
                    torch.set_autocast_enabled(kind, False)
                    torch.set_num_threads(wanted or threads)
                    return function(*arguments)
                finally:
                    torch.set_autocast_enabled(kind, casts)
                    torch.set_num_threads(threads)
                    for setting, value in zip(others, own):
                        setting.set(value)

        return call_alone

    def facts(self):
        return {
            "version": torch.__version__,
            "device": self._device,
            "devices": list(self._devices),
            "precision": self._precision,
            "precisions": self._precisions,
            "threads": (self._in_kernel and self._threads) or torch.get_num_threads(),
            "interpreter": "Python " + sys.version.split()[0],
        }

    def load(self, array):
        return self.load_all([array])[0]

    def load_all(self, arrays):
        if self._gpu is None:
            return [shared(np.asarray(array)) for array in arrays]
        return self._gpu.load(arrays)

    def to_numpy(self, value):
        return value.numpy() if self._gpu is None else value.cpu().numpy()

    def read_all(self, values, destinations):
        if self._gpu is None:
            Backend.read_all(self, values, destinations)
        else:
            self._gpu.read(values, destinations)

    def copy_all(self, values, likes):
        if self._gpu is None:
            return Backend.copy_all(self, values, likes)
        copies = [np.empty(like.shape, like.dtype) for like in likes]
        self._gpu.read(values, copies)
        return copies

    def differing(self, values, arrays):
        if self._gpu is None:
            return Backend.differing(self, values, arrays)
        return self._gpu.differing(values, arrays)

    def draw(self, kind, dtype, shape, seed, counter):
        count = int(np.prod(shape, dtype=np.int64))
        # On a processor, numpy makes them in less time than so many kernels.
        if self._gpu is None or count < draws.WORTH:
            return Backend.draw(self, kind, dtype, shape, seed, counter)
        make = self._inside(draws.KINDS[kind])
        return make(count, dtype, seed, counter, self._native_device).reshape(shape)

    def commit(self, value, destination):
        # Made by `run` from this very array: the value is there.
        if getattr(value, "kernelk_destination", None) is destination:
            return value
        if self._gpu is not None:
            return self.commit_all([value], [destination])[0]
        # The value itself may be a view of a feed or of another variable's slot.
        return torch.from_numpy(destination).copy_(value)

    def commit_all(self, values, destinations):
        if self._gpu is None:
            return Backend.commit_all(self, values, destinations)
        self._gpu.read(values, destinations)
        return values

    def own(self, value):
        return value.clone()

    def borrow(self, tensor):
        try:
            value = tensor if isinstance(tensor, torch.Tensor) else torch.from_dlpack(tensor)
            return value.contiguous() if value.device == self._native_device else None
        except Exception:
            return None

    def native(self, value, fresh):
        # What is made under inference mode takes no part in the user's gradients; the memory's new owner does.
        if self._gpu is None:
            value = value.numpy()
            return torch.from_numpy(value if fresh else np.array(value))
        return torch.from_dlpack(value if fresh else value.clone())

    def close(self):
        if self._gpu is not None:
            self._gpu.locks.clear()
            torch.cuda.empty_cache()

    def synchronize(self):
        if self._gpu is not None:
            self._gpu.wait()

    def usable(self):
        if self._gpu is None:
            return True
        try:
            # After such an error, each use of the GPU reports it again.
            return int(torch.ones(2, device=self._native_device).sum()) == 2
        except Exception:
            return False

    def profiler(self):
        return TorchProfiler(self)

    def describe(self, program, run, names):
        text, count = run.code.described(names)
        kind = "eager: no graph, this function calls PyTorch's kernels one after the other"
        return {"kind": kind, "ops": count, "text": text}

    def compile(self, program, constants):
        if self._precision == "bfloat16":
            round_factors(program)
        leaves = self.load_all([np.array(array) for array in constants])
        code = self._inside(_Code)(program, leaves, self._native_device, self.overwrites)
        on_device, inside, synchronize = self._on_device, self._inside, self.synchronize
        on_gpu = self._gpu is not None
        written = [] if on_gpu else code.written
        # Where updates are written -> the function that writes them there; more than one is rarely asked for.
        compiled = {}

        def function(where):
            if where not in compiled:
                compiled[where] = inside(code.function(where))
            return compiled[where]

        def call(where, feeds, state, draws, destinations, begin=None):
            try:
                arrays = [x if type(x) is not np.ndarray else on_device(x) for x in feeds]
                drawn = [x if type(x) is not np.ndarray else on_device(x) for x in draws]
                results = function(where)(arrays, state, drawn, destinations, begin)
                # A GPU computes beside Python: its error is this call's, and so is its time.
                synchronize()
                # A new value may be a view of a feed, of a variable's value, or of something large.
                return results if where or not on_gpu else (results[0], code.own(results[1]))
            except Exception as error:
                # The feeds' memory is read until then, and soon overwritten.
                with suppress(Exception):
                    synchronize()
                instruction = code.blamed(error)
                if instruction is None:
                    raise
                raise InstructionError(instruction, error) from error

        def run(feeds, state, draws, into=None):
            destinations = {}
            if into is not None:
                for position in written:
                    tensor = torch.from_numpy(into[position])
                    tensor.kernelk_destination = into[position]
                    destinations[position] = tensor
            return call("into" if destinations else "", feeds, state, draws, destinations)

        def overwrite(feeds, state, draws, begin):
            return call("over", feeds, state, draws, {}, begin)

        function("over" if self.overwrites else "into" if written else "")
        if self.can_overwrite:
            run.overwrite = overwrite
        run.fresh = code.fresh()
        run.code = code
        return run


def _used(call, depth=4):
    """The names of PyTorch's functions that a Python function calls, as far as its code tells."""
    code = getattr(call, "__code__", None)
    if code is None:
        name = getattr(call, "__name__", None)
        return [] if name is None else ["%s.%s" % ("Tensor" if hasattr(call, "__objclass__") else "torch", name)]
    known = [(name, getattr(torch, name, None)) for name in code.co_names]
    names = ["torch." + name for name, value in known if callable(value) and not isinstance(value, type)]
    for cell in call.__closure__ or ():
        if depth and callable(cell.cell_contents):
            names += _used(cell.cell_contents, depth - 1)
    return names


def _called(instruction, call):
    """An instruction's function in PyTorch's words; one that uses more than two of PyTorch's has its op's name."""
    used = list(dict.fromkeys(_used(call)))
    return "+".join(used) if 1 <= len(used) <= 2 else instruction.op


def _steps(body, leaves, indent="  "):
    """The calls of a loop's body, a line for each; `leaves` are the names of its leaves."""
    first, lines = len(body.leaves), []
    names = list(leaves) + ["s%d" % (first + i.index) for i in body.instructions]
    for instruction in body.instructions:
        operands = ", ".join(names[n] for n in instruction.inputs)
        call = _called(instruction, ops.make(instruction))
        lines.append("%s%s = %s(%s)" % (indent, names[first + instruction.index], call, operands))
        if instruction.op == "scan":
            inner = ["%s[t]" % names[n] for n in instruction.inputs]
            lines += _steps(instruction.attrs["body"], inner, indent + "  ")
    return lines


class _Code(object):
    """A program as the text of a Python function, a line for each instruction: looping over a list takes longer."""

    def __init__(self, program, constants, device, overwrites):
        """`overwrites`: the function that is asked for most overwrites variables."""
        self.program = program
        self.device = device
        self.first = len(program.leaves)
        # Value number -> tensor, of constants and of what follows from constants and lengths alone
        self.known = dict(enumerate(constants, self.first - len(constants)))
        self.calls = []
        self.kernels = []
        for instruction in program.instructions:
            try:
                self.kernels.append(elementwise.kernel(instruction))
                self.calls.append(ops.make(instruction))
            except Exception as error:
                raise InstructionError(instruction, error) from error
            self._fold(instruction)
        windows.share_maxima(program.instructions, self.calls)
        self.kept = set(program.results())
        # What has no line of its own reads nothing.
        self.reads = [() if self.first + i.index in self.known else tuple(i.inputs) for i in program.instructions]
        # Indices of products that are part of a sum's own kernel
        self.merged = set()
        # Index of a sum whose kernel multiplies, too -> [name, factor or None where it comes last among the operands,
        # sign] of each of its scalars
        self.scalars = {}
        # Indices of sums that BLAS computes: their operands are read when the result is written already.
        self.by_blas = set()
        self._merge_matrices()
        self._merge()
        overwriting = Overwriting(program, ops.VIEWS, self.reads, overwrites)
        self.order = overwriting.order
        self.consumers = self._consumers()
        for instruction in program.instructions:
            if instruction.op == "item" and self._scanned(self.first + instruction.index):
                self.calls[instruction.index] = ops.item_in_elements(instruction)
        # Value number -> position of the update in whose memory it is computed: new values, and what leads to them
        self.targets = self._targets(lambda instruction, slot: True)
        # Positions of the updates that are written so
        self.written = sorted(set(self.targets.values()))
        # The same where that memory still has the old value
        self.overwritten = self._targets(overwriting.allows)
        # Of each variant of the function, the instruction on each line
        self.located = {}

    def _consumers(self):
        """For each value the instructions that read it, in the order in which they run."""
        found = [[] for _ in self.program.values]
        for instruction in self.order:
            for number in self.reads[instruction.index]:
                found[number].append(instruction)
        return found

    def _merge_matrices(self):
        """Has c * v + d * (a @ b), the new value of v, computed by one call of BLAS, where c and d are scalars."""

        def is_factor(number):
            known = self.known.get(number)
            return self.device.type == "cpu" if known is None else usable(known.item())

        for index, pair in merged(self.program, is_factor).items():
            variable, product = pair
            matmul = self._instruction(product.number)
            if matmul is None or index + self.first in self.known:
                continue
            scalars = [scaled.factor for scaled in pair]
            factors = [1.0 if number is None else self._scalar(number) for number in scalars]
            kernel = elementwise.product_added(variable, product, factors, matmul)
            self.calls[index] = self.kernels[index] = kernel
            unknown = [number for number, factor in zip(scalars, factors) if factor is None]
            sums = self.reads[index]
            self.reads[index] = (variable.number, *matmul.inputs, *unknown)
            for number in (product.number, *sums):
                if number >= self.first:
                    self.merged.add(number - self.first)
                    self.reads[number - self.first] = ()
            self.by_blas.add(index)
            signs = [scaled.sign for scaled in pair]
            self.scalars[index] = [list(each) for each in zip(("beta", "alpha"), factors, signs)]

    def _scalar(self, number):
        """A scalar as a number; None where the call alone knows it."""
        known = self.known.get(number)
        return None if known is None else known.item()

    def _merge(self):
        """Has x + c * y and x - c * y computed by one kernel, as PyTorch's own optimizers do, where c is a scalar."""
        program = self.program
        uses = Counter(number for numbers in self.reads for number in numbers)
        for instruction in program.instructions:
            if instruction.op not in ("add", "subtract") or instruction.dtype not in ("float32", "float64"):
                continue
            if len(self.reads[instruction.index]) != 2 or instruction.shape == ():
                continue
            x, number = instruction.inputs
            product = self._scaled(number, uses)
            if product is None and instruction.op == "add":
                x, number = number, x
                product = self._scaled(number, uses)
            if product is None:
                continue
            factor, y = product
            kernel = elementwise.scaled(instruction.op, self.known.get(factor))
            self.scalars[instruction.index] = [["alpha", self._scalar(factor), 1.0]]
            self.calls[instruction.index] = self.kernels[instruction.index] = kernel
            self.reads[instruction.index] = (x, y) if factor in self.known else (x, y, factor)
            self.merged.add(number - self.first)
            self.reads[number - self.first] = ()

    def _scaled(self, number, uses):
        """(the scalar's number, the other factor's) of a product that one instruction alone needs; else None."""
        instruction = self._instruction(number)
        if instruction is None or instruction.op != "multiply" or uses[number] != 1 or number in self.kept:
            return None
        for factor, other in (instruction.inputs, instruction.inputs[::-1]):
            # To read a scalar on a GPU, the kernel would have to wait for it.
            at_hand = factor in self.known or self.device.type == "cpu"
            if self.program.values[factor][1] == () and self.program.values[other][1] != () and at_hand:
                return factor, other
        return None

    def _targets(self, allows):
        """The values that are computed in the memory of an update, as far as `allows(instruction, slot)`."""
        program, found = self.program, {}
        for position, (slot, number) in enumerate(program.updates):
            if number in found:
                continue
            while number is not None and self._fits(number, program.slots[slot]):
                instruction = self._instruction(number)
                if not allows(instruction, slot):
                    break
                found[number] = position
                number = self._reusable(instruction)
        return found

    def _fold(self, instruction):
        number, shape = self.first + instruction.index, instruction.shape
        if None in shape or int(np.prod(shape)) * np.dtype(instruction.dtype).itemsize > FOLDED_BYTES:
            return
        operands = [self.known.get(n) for n in instruction.inputs]
        if instruction.op in ("size", "shape") and None not in instruction.input_shapes[0]:
            # Only lengths are asked for.
            operands = [torch.empty((), device=self.device).expand(instruction.input_shapes[0])]
        if any(x is None for x in operands):
            return
        try:
            self.known[number] = self.calls[-1](*operands)
        except Exception:
            # What fails, fails at the call.
            return

    def _scanned(self, number):
        """Whether nothing but scans takes this value, as a sequence."""
        if number in self.kept or not self.consumers[number]:
            return False
        for consumer in self.consumers[number]:
            taken = [i for i, n in enumerate(consumer.inputs) if n == number]
            if consumer.op != "scan" or taken[-1] >= consumer.attrs["sequences"]:
                return False
        return True

    def fresh(self):
        """Positions of outputs whose memory nothing else holds."""
        outputs, first = self.program.outputs, self.first
        return [
            i
            for i in self.program.computed()
            if outputs[i] not in self.known and self.program.instructions[outputs[i] - first].op not in ops.VIEWS
        ]

    def _instruction(self, number):
        """The instruction that computes this value when the program runs; None if it is given or known."""
        if number < self.first or number in self.known:
            return None
        return self.program.instructions[number - self.first]

    def _fits(self, number, kind):
        """Whether this value is computed by a kernel that can write it into memory of this (dtype, shape)."""
        instruction = self._instruction(number)
        if instruction is None or self.kernels[instruction.index] is None or None in instruction.shape:
            return False
        return (instruction.dtype, instruction.shape) == kind

    def _reusable(self, instruction):
        """An operand whose memory can take the instruction's result; None if there is none.

        It is an intermediate that nothing reads afterwards, and that nobody has a view of.
        """
        if self.kernels[instruction.index] is None or None in instruction.shape or instruction.index in self.by_blas:
            return None
        for number in self.reads[instruction.index]:
            source = self._instruction(number)
            if (
                source is not None
                and number not in self.kept
                and (source.dtype, source.shape) == (instruction.dtype, instruction.shape)
                and source.op not in ops.VIEWS
                and self.consumers[number][-1] is instruction
                and not any(consumer.op in ops.VIEWS for consumer in self.consumers[number])
            ):
                return number
        return None

    def function(self, where):
        """`function(feeds, state, draws, destinations, begin)` -> (outputs, new_state).

        `where` says what is written by ops themselves: "into" destinations, "over" the state (each new value is then in
        memory of its own, and `begin` is called before the first one), "" nothing.
        """
        program, lines, names, located = self.program, [], {}, {}
        places, begun = {}, where != "over"
        if where == "into":
            places = {number: "destinations[%d]" % position for number, position in self.targets.items()}
        elif where == "over":
            slots = [len(program.inputs) + slot for slot, _ in program.updates]
            places = {number: "v%d" % slots[position] for number, position in self.overwritten.items()}
        leaves = iter(["v%d" % number for number in range(self.first)])
        lines.append("def program(feeds, state, draws, destinations, begin):")
        for source, count in (
            ("feeds", len(program.inputs)),
            ("state", len(program.slots)),
            ("draws", len(program.draws)),
        ):
            lines.append(" [%s] = %s" % (", ".join(itertools.islice(leaves, count)), source))
        for instruction in self.order:
            number = self.first + instruction.index
            if number in self.known or instruction.index in self.merged:
                continue
            arguments = [self._name(n, names) for n in self.reads[instruction.index]]
            if number in places:
                arguments.append("out=" + places[number])
                if not begun:
                    begun = True
                    lines.append(" begin()")
            else:
                reused = self._reusable(instruction)
                if reused is not None:
                    arguments.append("out=v%d" % reused)
            names["k%d" % instruction.index] = self.calls[instruction.index]
            line = " v%d = k%d(%s)" % (number, instruction.index, ", ".join(arguments))
            # Intermediates are released after their last use.
            done = [
                "v%d" % n
                for n in sorted(set(self.reads[instruction.index]))
                if n >= self.first
                and n not in self.known
                and n not in self.kept
                and self.consumers[n][-1] is instruction
            ]
            lines.append(line + ("; del " + ", ".join(done) if done else ""))
            located[len(lines)] = instruction
        outputs = [self._name(n, names) for n in program.outputs]
        updates = [self._name(n, names) for _, n in program.updates]
        if where == "over":
            names["own"] = torch.Tensor.clone
            updates = [name if self._is_own(i) else "own(%s)" % name for i, name in enumerate(updates)]
        lines.append(" return [%s], [%s]" % (", ".join(outputs), ", ".join(updates)))
        # Serves to tell this function's frame from all others in a traceback.
        file = "<kernelk program %d>" % next(_serial)
        self.located[file] = located
        self.text = "\n".join(lines)
        exec(compile(self.text, file, "exec"), names)
        return names["program"]

    def own(self, updates):
        """The new values of a run, each in memory of its own."""
        return [value if self._is_own(position) else value.clone() for position, value in enumerate(updates)]

    def _is_own(self, position):
        """Whether the new value of an update is in memory that nothing else is in."""
        numbers = [number for _, number in self.program.updates]
        instruction = self._instruction(numbers[position])
        return (
            instruction is not None and instruction.op not in ops.VIEWS and numbers.index(numbers[position]) == position
        )

    def described(self, names):
        """The function's text in the words of PyTorch and of its reader, and how many kernels it calls."""
        calls, count, loops = {}, 0, []
        for instruction, call in zip(self.program.instructions, self.calls):
            number = self.first + instruction.index
            calls["k%d" % instruction.index] = _called(instruction, call)
            if number not in self.known and instruction.index not in self.merged:
                count += 1
            if instruction.op == "scan":
                body = instruction.attrs["body"]
                operands = [names[n] if n < len(names) else "v%d" % n for n in instruction.inputs]
                loops += ["", "# at each step of the loop v%d:" % number]
                loops += _steps(body, ["%s[t]" % text for text in operands])
                count += ops_in(body)

        def word(match):
            text = match.group()
            if text in calls:
                return calls[text]
            number = int(text[1:])
            return names[number] if text[0] == "v" and number < len(names) else text

        return re.sub(r"\b[kv]\d+\b", word, self._with_scalars()) + "\n".join([""] * bool(loops) + loops), count

    def _with_scalars(self):
        """The function's text, in which scalars that a kernel multiplies by are named."""

        def named(match):
            index, operands = int(match.group(1)), match.group(2).split(", ")
            scalars = self.scalars.get(index, ())
            out = [operands.pop()] if operands[-1].startswith("out=") else []
            unknown = [operands.pop() for _, factor, _ in scalars if factor is None][::-1]
            for name, factor, sign in scalars:
                value = unknown.pop(0) if factor is None else "%.6g" % (sign * factor)
                operands.append("%s=%s%s" % (name, "-" if factor is None and sign < 0 else "", value))
            return "k%d(%s)" % (index, ", ".join(operands + out))

        return re.sub(r"\bk(\d+)\(([^()]*)\)", named, self.text)

    def _name(self, number, names):
        if number in self.known:
            names["v%d" % number] = self.known[number]
        return "v%d" % number

    def blamed(self, error):
        """The instruction at whose line the error arose; None if it was at none."""
        trace, instruction = error.__traceback__, None
        while trace is not None:
            located = self.located.get(trace.tb_frame.f_code.co_filename)
            if located is not None:
                instruction = located.get(trace.tb_lineno, instruction)
            trace = trace.tb_next
        return instruction
