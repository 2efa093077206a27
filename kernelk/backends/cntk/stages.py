"""Cuts a program into stages, each a CNTK Function or a run of numpy's definitions, and runs them."""

import weakref

import numpy as np

from ..base import registrar
from ..errors import CannotLower
from ..lowering import InstructionError
from ..numpy.elementwise import widened
from ..numpy.ops import OPS as DEFINITIONS
from .known import FLOATS, needed, stand_in
from .limits import index_bound, why_not
from .memory import Lent, Storage, array_of
from .nodes import Builder, Val
from .ops import lower
from .updating import finishing

# The definitions, and the composites that CNTK has natively written out for the dtypes and shapes that it hasn't.
HOST_OPS = dict(DEFINITIONS)
op = registrar(HOST_OPS)

# Building a Function takes time that grows with the square of its depth, and some 10,000 nodes in a chain crash.
MOST_DEPTH = 1000
# A borrowed view of a feed costs about 9 us; below this a copy into a buffer that has one is cheaper.
BORROW_BYTES = 1 << 17
# Results from this size on stay in CNTK's memory until they are asked for.
LEND_BYTES = 1 << 17


@op("softmax")
def _softmax(instruction, x, axis):
    if x.size == 0:
        return x
    powers = np.exp(widened(x) - np.max(widened(x), axis=axis, keepdims=True))
    return (powers / np.sum(powers, axis=axis, keepdims=True)).astype(x.dtype)


@op("relu")
def _relu(instruction, x):
    return np.maximum(x, np.zeros((), x.dtype))


def engine_error(error):
    """A C++ exception's useful line, without its call stack."""
    return RuntimeError("CNTK: " + (str(error).strip().splitlines() or ["no message"])[0])


def partition(program, known, refused):
    """[(kind, instructions)] in the order to run, and {instruction index: reason} of all that CNTK can't compute.

    `refused` are instructions that CNTK itself has turned down, by index. Native stages have even levels, host
    stages odd ones; folded constants have none. What new values take besides all that comes last.
    """
    first = len(program.leaves)
    levels, depths, stages, reasons = {}, {}, {}, {}
    live = set(program.results())
    for instruction in reversed(program.instructions):
        if first + instruction.index in live:
            live.update(needed(instruction))
    computed = []
    for instruction in program.instructions:
        number = first + instruction.index
        if known[number].array is None and number in live:
            computed.append(instruction)
            reason = refused.get(instruction.index) or why_not(instruction, number, known)
            if reason is not None:
                reasons[instruction.index] = reason
    last = finishing(program, computed, lambda instruction: instruction.index not in reasons)
    updating = set(instruction.index for instruction in last)
    for instruction in computed:
        if instruction.index in updating:
            continue
        number = first + instruction.index
        host = instruction.index in reasons
        operands = [n for n in needed(instruction) if n in levels]
        level = -1 if host else 0
        for n in operands:
            level = max(level, levels[n] + ((levels[n] % 2 == 1) != host))
        depth = 1 + max([depths[n] for n in operands if levels[n] == level] or [0])
        if not host and depth > MOST_DEPTH:
            level, depth = level + 2, 1
        levels[number], depths[number] = level, depth
        stages.setdefault(level, []).append(instruction)
    plan = [("host" if level % 2 else "native", stages[level]) for level in sorted(stages)]
    return plan + ([("updates", last)] if last else []), reasons


def run_host(instructions, values, program):
    """Computes instructions by numpy's definition, into the list `values`."""
    first = len(program.leaves)
    with np.errstate(all="ignore"):
        for instruction in instructions:
            operands = [array_of(values[n]) for n in needed(instruction)]
            for dtype, shape in list(zip(instruction.input_dtypes, instruction.input_shapes))[len(operands) :]:
                operands.append(stand_in(dtype, shape))
            try:
                value = HOST_OPS[instruction.op](instruction, *operands, **instruction.attrs)
            except Exception as error:
                raise InstructionError(instruction, error) from error
            values[first + instruction.index] = np.asarray(value)


class HostStage(object):
    """Instructions that numpy computes."""

    def __init__(self, program, instructions, reasons):
        self.program = program
        self.instructions = instructions
        host = [[i.op, reasons[i.index]] for i in instructions]
        self.facts = {"kind": "host", "ops": len(instructions), "host": host}

    def run(self, values, state):
        run_host(self.instructions, values, self.program)
        return {}


class Entry(object):
    """A value that enters a native stage: a CNTK parameter, and what it takes to set it.

    Parameters are set about five times faster than the arguments of a call are passed, and keep their value: a
    variable that hasn't changed since the last call costs nothing.
    """

    def __init__(self, core, number, dtype, shape, bound, slot):
        self.core = core
        self.number = number
        self.bound = bound
        self.slot = slot
        self.token = None
        self.dtype = dtype if dtype in FLOATS else "float32"
        self.exact = dtype == self.dtype
        self.shape = tuple(shape)
        self.parameter = core.engine.Parameter(shape=self.shape, init=0, dtype=np.dtype(self.dtype).type)
        self.buffer = None
        self.guest = None

    def vacate(self):
        """Moves a result that lies in the parameter, where somebody still holds it, before it is overwritten."""
        lent = self.guest and self.guest()
        if lent is not None and lent.home is self:
            lent.settle()
        self.guest = None

    def set(self, array):
        if self.exact and array.nbytes >= BORROW_BYTES and array.flags.c_contiguous:
            self.core.assign(self.parameter, self.core.borrow(array))
            return
        if self.buffer is None:
            self.buffer = np.empty(self.shape, self.dtype)
            self.view = self.core.borrow(self.buffer)
        if self.bound is None:
            self.buffer[...] = array
        else:
            # An index outside is just that, wherever it is: clipped, all are whole floats.
            self.buffer[...] = _clipped(array, self.bound)
        self.core.assign(self.parameter, self.view)

    def set_state(self, held, stage):
        if self.token is held.token:
            if self.core.recompute:
                self.core.touch(self.parameter)
            return
        self.token = None
        self.vacate()
        lent = held.lent
        if lent is None or lent.view is None:
            self.set(held.array)
        else:
            self.core.assign(self.parameter, lent.view)
            if lent.home is stage:
                # The stage is about to overwrite its memory: the parameter has the same elements.
                lent.move(self.core.contents(self.parameter), self)
                self.guest = weakref.ref(lent)
        self.token = held.token

    def follow(self, storage, token):
        """Takes over the new value of a variable at once."""
        self.token = None
        self.vacate()
        self.core.assign(self.parameter, storage.view)
        self.token = token


def _clipped(array, bound):
    if array.dtype.kind == "u":
        return np.minimum(array, array.dtype.type(min(bound, np.iinfo(array.dtype).max)))
    low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    return np.clip(array, max(-1, low), min(bound, high))


class Exit(object):
    """A value that leaves a native stage."""

    def __init__(self, number, variable, value, dtype, inner):
        self.number = number
        self.variable = variable
        self.native_dtype = value.dtype
        self.shape = value.shape
        self.dtype = dtype
        self.pool = []
        size = np.prod(self.shape, dtype=float) * np.dtype(dtype).itemsize
        # Other stages need an array at once; what is large and leaves the program may be copied later, or never.
        self.lends = not inner and dtype == self.native_dtype and size >= LEND_BYTES


class NativeStage(object):
    """Instructions that one CNTK Function computes."""

    def __init__(self, core, program, instructions, known, wanted, inner):
        self.core = core
        self.program = program
        self.instructions = instructions
        self.facts = {"kind": "native", "ops": len(instructions), "host_runs": 0}
        self.entries = []
        self.exits = []
        self.guests = []
        self._build(known, wanted, inner)

    def _build(self, known, wanted, inner):
        program, first = self.program, len(self.program.leaves)
        builder = Builder(self.core.engine)
        made, entered = {}, {}
        first_slot = len(program.inputs)
        last_slot = first_slot + len(program.slots)

        def enter(number, bound):
            key = number, bound
            if key not in entered:
                dtype, shape = program.values[number]
                slot = number - first_slot if first_slot <= number < last_slot else None
                entry = Entry(self.core, number, dtype, shape, bound, slot)
                self.entries.append(entry)
                entered[key] = Val(entry.parameter, entry.dtype, shape, shape, known[number])
            return entered[key]

        def operand(instruction, position, number):
            if number in made:
                return made[number]
            if known[number].array is not None:
                return builder.value(known[number].array, known[number])
            return enter(number, index_bound(instruction, position))

        for instruction in self.instructions:
            number = first + instruction.index
            values = [operand(instruction, i, n) for i, n in enumerate(needed(instruction))]
            try:
                made[number] = lower(builder, instruction, values, known[number])
            except (RuntimeError, ValueError, CannotLower) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise Refused(instruction, reason) from error
            except Exception as error:
                raise InstructionError(instruction, error) from error
        outputs = []
        for instruction in self.instructions:
            number = first + instruction.index
            if number in wanted:
                # One node may stand for several values, or be a parameter: each result gets a name of its own.
                variable = self.core.engine.alias(builder.whole(made[number])).output
                outputs.append(variable)
                self.exits.append(Exit(number, variable, made[number], program.values[number][0], number in inner))
        self.flag = None
        if builder.flags:
            flags = builder.flags
            while len(flags) > 1:
                pairs = zip(flags[::2], flags[1::2])
                flags = [self.core.engine.plus(x, y) for x, y in pairs] + flags[len(flags) // 2 * 2 :]
            self.flag = self.core.engine.alias(flags[0]).output
            self.flag_storage = Storage(self.core, "float32", ())
            outputs.append(self.flag)
        self.function = self.core.engine.combine(outputs)

    def run(self, values, state):
        """Sets the values that leave the stage; returns {value number: Storage} of those that CNTK itself wrote."""
        for entry in self.entries:
            if entry.slot is None:
                entry.set(values[entry.number])
            else:
                entry.set_state(state[entry.slot], self)
        for guest in self.guests:
            lent = guest()
            if lent is not None and lent.home is self:
                lent.settle()
        self.guests = []
        taken, outputs = {}, {}
        for leaving in self.exits:
            if not leaving.lends:
                taken[leaving] = Storage.of(self.core, leaving.pool, leaving.native_dtype, leaving.shape)
            outputs[leaving.variable] = None if leaving.lends else taken[leaving].value
        if self.flag is not None:
            outputs[self.flag] = self.flag_storage.value
        self.core.forward(self.function, outputs)
        if self.flag is not None and self.flag_storage.array != 0:
            self.facts["host_runs"] += 1
            run_host(self.instructions, values, self.program)
            for leaving in self.exits:
                # numpy's arrangements are views, of feeds too.
                values[leaving.number] = np.array(values[leaving.number])
            return {}
        written = {}
        for leaving in self.exits:
            if leaving.lends:
                lent = Lent(self.core, outputs[leaving.variable].data(), self, leaving)
                self.guests.append(weakref.ref(lent))
                values[leaving.number] = lent
                continue
            storage = taken[leaving]
            array = storage.array
            if leaving.dtype == leaving.native_dtype:
                written[leaving.number] = storage
            else:
                array = array.astype(leaving.dtype)
            values[leaving.number] = array
        return written

    def describe(self, labels):
        """A line for each op of the Function, and one for each result; `labels` are the program's values' names."""
        names = {entry.parameter.uid: labels[entry.number] for entry in self.entries}
        leaving = {leaving.variable.uid: labels[leaving.number] for leaving in self.exits}
        constants = {constant.uid: constant for constant in self.function.constants}
        lines, results, numbers, pending = [], [], {}, [(self.function, False)]

        def name(variable):
            if variable.uid in names:
                return names[variable.uid]
            if variable.uid in constants:
                value = np.asarray(constants[variable.uid].value)
                return "%.6g" % value.reshape(-1)[0] if value.size == 1 else "constant%s" % (value.shape,)
            return numbers.get(variable.uid, variable.uid)

        # Without recursion: graphs may be deep.
        while pending:
            function, ready = pending.pop()
            outputs = [variable.uid for variable in function.outputs]
            if ready:
                operation = function.root_function.op_name
                if operation == "Combine" or all(uid in numbers for uid in outputs):
                    continue
                operands = ", ".join(name(variable) for variable in function.root_function.inputs)
                if outputs[0] in leaving:
                    # An alias, so that each result has a name of its own.
                    numbers.update((uid, operands) for uid in outputs)
                    results.append("result: %s = %s" % (leaving[outputs[0]], operands))
                    continue
                made = "n%d" % len(lines)
                numbers.update((uid, made) for uid in outputs)
                lines.append("%s = %s(%s) : %s" % (made, operation, operands, tuple(function.outputs[0].shape)))
            elif not (outputs and all(uid in numbers for uid in outputs)):
                pending.append((function, True))
                inputs = [variable.owner for variable in function.root_function.inputs if variable.is_output]
                pending.extend((owner, False) for owner in reversed(inputs))
        return lines, results

    def follow(self, slot, token, storage):
        """Takes over the new value of a variable, where the stage has it."""
        for entry in self.entries:
            if entry.slot == slot and entry.exact:
                entry.follow(storage, token)


class Refused(Exception):
    """CNTK turned an instruction down while its graph was built."""

    def __init__(self, instruction, reason):
        Exception.__init__(self, reason)
        self.instruction = instruction
        self.reason = reason
