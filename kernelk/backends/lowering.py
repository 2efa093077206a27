"""A program as the backends see it, and the walk that turns its instructions into an engine's own values."""

from .errors import CannotLower


class Instruction(object):
    """One op of a program: which values it takes, and the dtype and shape (None: unknown) that it promises.

    `rounded`: it multiplies float32, and both factors are rounded to bfloat16 first (see `products`).
    """

    __slots__ = ("attrs", "dtype", "index", "input_dtypes", "input_shapes", "inputs", "op", "rounded", "shape")

    def __init__(self, index, op, inputs, attrs, dtype, shape):
        self.index = index
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.dtype = dtype
        self.shape = tuple(shape)
        self.input_dtypes = ()
        self.input_shapes = ()
        self.rounded = False


class Program(object):
    """A linearised graph, decoded from JSON.

    Values are numbered in one sequence: inputs (fed), slots (variables), draws (random arrays made for each run),
    constants, instructions. `outputs` is a list of value numbers, `updates` a list of (slot index, value number).
    """

    def __init__(self, encoded):
        self._encoded = encoded
        # The backend's own compiled form of a loop's body.
        self.plan = None
        self.inputs = [(dtype, tuple(shape)) for dtype, shape in encoded["inputs"]]
        self.slots = [(dtype, tuple(shape)) for dtype, shape in encoded["slots"]]
        self.draws = [(dtype, tuple(shape)) for dtype, shape in encoded["draws"]]
        self.constants = [(dtype, tuple(shape)) for dtype, shape in encoded["constants"]]
        self.leaves = self.inputs + self.slots + self.draws + self.constants
        self.outputs = encoded["outputs"]
        self.updates = [tuple(pair) for pair in encoded["updates"]]
        # The numbers of the values that only variables take.
        self.new = set(number for _, number in self.updates).difference(self.outputs)
        self.instructions = []
        # dtype and shape of every value, by number
        self.values = list(self.leaves)
        for index, (op, inputs, attrs, dtype, shape) in enumerate(encoded["instructions"]):
            if op == "scan" and not isinstance(attrs["body"], Program):
                attrs = dict(attrs, body=Program(attrs["body"]))
            instruction = Instruction(index, op, inputs, attrs, dtype, shape)
            instruction.input_dtypes = tuple(self.values[i][0] for i in inputs)
            instruction.input_shapes = tuple(self.values[i][1] for i in inputs)
            self.instructions.append(instruction)
            self.values.append((dtype, tuple(shape)))

    def __repr__(self):
        # Equal programs have equal text.
        return "Program(%r)" % (self._encoded,)

    def computed(self):
        """Positions of outputs that an instruction computes, and that aren't another result's value."""
        results, first = self.results(), len(self.leaves)
        return [i for i, number in enumerate(self.outputs) if number >= first and results.count(number) == 1]

    def results(self):
        """Value numbers that leave the program: outputs, then new values of updated slots."""
        return self.outputs + [value for _, value in self.updates]


class InstructionError(Exception):
    """An op function failed; `index` is the instruction's, the cause is chained."""

    def __init__(self, instruction, cause):
        Exception.__init__(self, "%s: %s" % (type(cause).__name__, cause))
        self.index = instruction.index
        self.op = instruction.op
        self.cause = cause


def lower(program, leaves, ops):
    """Calls one function of `ops` per instruction; returns the engine's values of all value numbers.

    `leaves` are the engine's values of inputs, slots, draws and constants, in that order.
    """
    values = list(leaves)
    lower_into(values, program, ops)
    return values


def lower_into(values, program, ops):
    """The same, where `values` has those of the leaves, and gets the others as they are made."""
    for instruction in program.instructions:
        function = ops.get(instruction.op)
        if function is None:
            raise InstructionError(instruction, CannotLower("this backend doesn't define %r" % instruction.op))
        try:
            values.append(function(instruction, *[values[i] for i in instruction.inputs], **instruction.attrs))
        except Exception as error:
            raise InstructionError(instruction, error) from error


class Overwriting(object):
    """Which instructions may write a variable's new value into the memory of the old one.

    `order` has the program's instructions, with `reorder` those last that have to wait for others to read what they
    overwrite. `views` are the ops whose results may share memory with an operand, `reads` has for each instruction the
    numbers of the values that it reads.
    """

    def __init__(self, program, views, reads, reorder):
        self._program = program
        self._views = views
        self._reads = reads
        self.order = list(program.instructions)
        self._find_reads()
        waiting = self._too_early() if reorder else ()
        if waiting:
            # And with them all that depends on them.
            first = len(program.leaves)
            for instruction in program.instructions:
                if any(number - first in waiting for number in reads[instruction.index]):
                    waiting.add(instruction.index)
            self.order.sort(key=lambda instruction: instruction.index in waiting)
            self._find_reads()

    def _find_reads(self):
        """Notes what shares memory with which variable, and where each variable's memory is read last."""
        program = self._program
        start = len(program.inputs)
        slots = range(start, start + len(program.slots))
        self.positions = {instruction.index: at for at, instruction in enumerate(self.order)}
        # Value number -> numbers of the variables whose memory it may be in
        self._shared = {number: frozenset([number]) for number in slots}
        self._last = {}
        none = frozenset()
        for at, instruction in enumerate(self.order):
            read = none.union(*[self._shared.get(number, none) for number in self._reads[instruction.index]])
            self._last.update(dict.fromkeys(read, at))
            if read and instruction.op in self._views:
                self._shared[len(program.leaves) + instruction.index] = read
        self._leaving = none.union(*[self._shared.get(number, none) for number in program.results()])

    def _too_early(self):
        """Indices of instructions that compute new values before the old ones are read for the last time."""
        program, found = self._program, set()
        for slot, number in program.updates:
            index, variable = number - len(program.leaves), len(program.inputs) + slot
            if index >= 0 and self._last.get(variable, -1) > self.positions[index]:
                found.add(index)
        return found

    def allows(self, instruction, slot):
        """Whether the instruction's result may be written over this slot's old value, element by element."""
        variable = len(self._program.inputs) + slot
        if variable in self._leaving or self._last.get(variable, -1) > self.positions[instruction.index]:
            return False
        # Its own operand may be the variable itself, but not some other arrangement of it.
        reads = self._reads[instruction.index]
        return not any(variable in self._shared.get(number, ()) for number in reads if number != variable)


class Steps(object):
    """A scan's operands, step by step: iterating gives (t, the values of the body's leaves), the states included.

    `states` is to be set to the new ones after each step. `take(x, t)` is the engine's element t of a sequence.
    """

    def __init__(self, instruction, operands, length, take):
        attrs = instruction.attrs
        body = attrs["body"]
        self.count = attrs["states"]
        self.states = list(operands[attrs["sequences"] : attrs["sequences"] + self.count])
        self._sequences = operands[: attrs["sequences"]]
        self._captures = list(operands[attrs["sequences"] + self.count : len(body.inputs)])
        self._draws = operands[len(body.inputs) : len(body.inputs) + len(body.draws)]
        self._constants = list(operands[len(body.inputs) + len(body.draws) :])
        self._times = range(length - 1, -1, -1) if attrs["reverse"] else range(length)
        self._take = take

    def leaves(self, t):
        """The values of the body's leaves at element `t`."""
        take = self._take
        elements = [take(x, t) for x in self._sequences]
        draws = [take(x, t) for x in self._draws]
        return elements + self.states + self._captures + draws + self._constants

    def __iter__(self):
        for t in self._times:
            yield t, self.leaves(t)


# Ops whose result may be empty though no operand is; that of windows may be where the number of places isn't known.
_MAY_BE_EMPTY = {"shape", "slice", "scan", "item", "ctc_beam_search"}


def with_elements(program):
    """The numbers of values that have elements in every run whose feeds and draws all have some."""
    given = len(program.inputs) + len(program.slots)
    drawn = range(given, given + len(program.draws))
    found = set()
    for number, (_, shape) in enumerate(program.leaves):
        if 0 not in shape and (None not in shape or number < len(program.inputs) or number in drawn):
            found.add(number)
    for number, instruction in enumerate(program.instructions, len(program.leaves)):
        shape = instruction.shape
        unsure = instruction.op in _MAY_BE_EMPTY or ("pads" in instruction.attrs and None in shape[1:])
        if 0 not in shape and (None not in shape or (not unsure and found.issuperset(instruction.inputs))):
            found.add(number)
    return found


def resolve_dims(dims, values, length):
    """`dims` with each [k, axis] replaced by `length(values[k], axis)`."""
    return [length(values[dim[0]], dim[1]) if isinstance(dim, list) else dim for dim in dims]


def static_dims(instruction, dims):
    """`dims` as ints where the graph knows them; None where a reference is unknown until the call."""
    shapes = instruction.input_shapes
    return [shapes[dim[0]][dim[1]] if isinstance(dim, list) else dim for dim in dims]


def last_neighbours(shape, axes):
    """Ascending axes as two parts: the last ones, with none between them that is longer than 1, come second."""
    start = len(axes) - 1
    while start > 0 and all(length == 1 for length in shape[axes[start - 1] + 1 : axes[start]]):
        start -= 1
    start = max(start, 0)
    return axes[:start], axes[start:]


def python_slices(slices):
    """The attribute `slices` as a tuple of slice objects."""
    return tuple(slice(*entry) for entry in slices)
