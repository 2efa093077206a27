"""The last stage of a program: what new values take besides the gradients, computed by numpy a piece at a time.

CNTK runs each elementwise op by itself, with a pass through memory for each. numpy computes all of them for one piece
of the elements before the next, and new values need no copy out of CNTK's memory. The ops are those that are rounded
exactly, so that who computes them can't be told from the values (CNTK's own quotients and roots aren't).
"""

import numpy as np

from ..numpy.elementwise import UFUNCS
from .known import FLOATS
from .memory import Storage, array_of


def _select(condition, x, y, out):
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


# Each is called with its operands and the array for its result. Roots are rounded exactly as well.
EXACT = dict(UFUNCS, sqrt=np.sqrt, select=_select)
DTYPES = FLOATS + ("bool",)

# So many elements are computed at a time: what all of the ops need of them stays in a core's caches.
PIECE = 1 << 15
# A thread of its own pays off from so many pieces on.
PIECES_EACH = 2


def _elements(shape):
    return int(np.prod(shape, dtype=np.int64))


def _alike(instruction):
    """Whether all operands that aren't single numbers have as many elements as the result."""
    return all(_elements(shape) in (1, _elements(instruction.shape)) for shape in instruction.input_shapes)


def finishing(program, instructions, possible):
    """Those of the instructions that only new values need, and that numpy computes as exactly.

    `instructions`: all that are computed; `possible(instruction)`: whether CNTK would compute it otherwise.
    """
    first = len(program.leaves)
    # Whether all that needs a value is computed here.
    here = dict.fromkeys(program.results(), False)
    here.update(dict.fromkeys(program.new, True))
    found = []
    for instruction in reversed(instructions):
        number = first + instruction.index
        mine = (
            here.get(number, False)
            and instruction.op in EXACT
            and instruction.dtype in (FLOATS if number in program.new else DTYPES)
            and all(dtype in DTYPES for dtype in instruction.input_dtypes)
            and _alike(instruction)
            and possible(instruction)
        )
        if mine:
            found.append(instruction)
        for operand in instruction.inputs:
            here[operand] = here.get(operand, True) and mine
    return found[::-1]


def connected(program, instructions):
    """The instructions in groups, each of results with as many elements that depend on one another.

    Whatever a group needs of others has fewer elements, and comes before it.
    """
    first = len(program.leaves)
    groups = {}  # value number -> the group that it is made in
    for instruction in instructions:
        joined = [instruction]
        for number in instruction.inputs:
            group = groups.get(number)
            if group is not None and group is not joined and _elements(group[0].shape) == _elements(instruction.shape):
                joined += group
                groups.update((first + member.index, joined) for member in group)
        groups[first + instruction.index] = joined
    distinct = {id(group): group for group in groups.values()}.values()
    ordered = [sorted(group, key=lambda instruction: instruction.index) for group in distinct]
    return sorted(ordered, key=lambda group: (_elements(group[0].shape), group[0].index))


class Loop(object):
    """A group of instructions, computed for one piece of the elements after another."""

    def __init__(self, core, program, instructions, elsewhere):
        """`elsewhere`: the numbers of values that other groups need."""
        self.core = core
        first = len(program.leaves)
        self.size = _elements(instructions[0].shape)
        last_use = {}
        for instruction in instructions:
            for number in instruction.inputs:
                last_use[number] = instruction.index
        made = set(first + instruction.index for instruction in instructions)
        self.operands = sorted(set(last_use).difference(made))
        self.new = {}  # number of a new value -> (dtype, shape, the memory that it has had)
        self.kept = {}  # number of a value that other groups need -> its memory
        for instruction in instructions:
            number = first + instruction.index
            if number in program.new:
                self.new[number] = (instruction.dtype, instruction.shape, [])
            elif number in elsewhere:
                self.kept[number] = np.empty(instruction.shape, instruction.dtype)
        whole = self.operands + list(self.new) + list(self.kept)
        places = {number: i for i, number in enumerate(whole)}
        self.steps = []
        # What lies between is written where nothing is needed any more, or into memory of its own.
        between, free = [], {}
        for instruction in instructions:
            number = first + instruction.index
            if number not in places:
                unused = free.setdefault(instruction.dtype, [])
                if not unused:
                    unused.append(len(whole) + len(between))
                    between.append(instruction.dtype)
                places[number] = unused.pop()
            self.steps.append((EXACT[instruction.op], [places[n] for n in instruction.inputs] + [places[number]]))
            for operand in set(instruction.inputs):
                if places[operand] >= len(whole) and last_use[operand] == instruction.index:
                    free.setdefault(program.values[operand][0], []).append(places[operand])
        # Where all has one shape, numpy takes it as it is.
        shapes = set(tuple(program.values[number][1]) for number in set(self.operands).union(made))
        if self.size > 1:
            shapes.discard(())
        self.flat = len(shapes) > 1 or self.size > PIECE
        parts = max(1, min(core.threads(), self.size // (PIECES_EACH * PIECE)))
        pieces = -(-self.size // PIECE)
        self.bounds = [pieces * part // parts * PIECE for part in range(parts)] + [self.size]
        shape = (min(self.size, PIECE),) if self.flat else instructions[0].shape
        self.between = [
            [
                core.memory((part, i), PIECE, dtype)[: min(self.size, PIECE)].reshape(shape)
                for i, dtype in enumerate(between)
            ]
            for part in range(parts)
        ]

    def run(self, values, written):
        """Sets the values that it computes, and enters the Storage of new ones in `written`."""
        whole = [array_of(values[number]) for number in self.operands]
        for number, (dtype, shape, had) in self.new.items():
            storage = written[number] = Storage.of(self.core, had, dtype, shape)
            values[number] = storage.array
            whole.append(storage.array)
        for number, array in self.kept.items():
            values[number] = array
            whole.append(array)
        if self.flat:
            whole = [array.reshape(-1) for array in whole]
        if self.size <= PIECE:
            self._computed(whole + self.between[0])
            return
        others = [self.core.helpers().submit(self._pieces, whole, part) for part in range(1, len(self.between))]
        try:
            self._pieces(whole, 0)
        finally:
            for other in others:
                other.result()

    def _pieces(self, whole, part):
        # What numpy does about NaN and infinity is each thread's own.
        with np.errstate(all="ignore"):
            for start in range(self.bounds[part], self.bounds[part + 1], PIECE):
                stop = min(start + PIECE, self.bounds[part + 1])
                pieces = [array[start:stop] if array.size == self.size else array for array in whole]
                pieces += [memory[: stop - start] for memory in self.between[part]]
                self._computed(pieces)

    def _computed(self, arrays):
        for function, places in self.steps:
            function(*[arrays[i] for i in places])


class UpdateStage(object):
    """The instructions that `finishing` has found."""

    def __init__(self, core, program, instructions):
        self.instructions = instructions
        self.facts = {"kind": "updates", "ops": len(instructions)}
        groups = connected(program, instructions)
        users = {}  # value number -> the groups that need it
        for group in groups:
            for number in set(number for instruction in group for number in instruction.inputs):
                users.setdefault(number, []).append(group)
        self.loops = []
        for group in groups:
            elsewhere = set(number for number, those in users.items() if any(other is not group for other in those))
            self.loops.append(Loop(core, program, group, elsewhere))

    def run(self, values, state):
        """Sets the new values; returns {value number: Storage}."""
        written = {}
        with np.errstate(all="ignore"):
            for loop in self.loops:
                loop.run(values, written)
        return written
