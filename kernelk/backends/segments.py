"""Cuts a long program into consecutive parts, for an engine whose compiler is slow, or fails, on long ones."""

from .lowering import InstructionError, Program


class Segment(object):
    """Instructions `start` to `stop` of a program, compiled separately.

    What they take from earlier segments comes in as further slots, since only slots hold an engine's own values.
    """

    def __init__(self, program, start, stop, wanted, constants, compile):
        first, instructions = len(program.leaves), program.instructions[start:stop]
        made = range(first + start, first + stop)
        taken = set(number for instruction in instructions for number in instruction.inputs) - set(made)
        results = [number for number in made if number in wanted]
        if stop == len(program.instructions):
            leaves = set(number for number in program.results() if number < first)
            taken |= leaves
            results += sorted(leaves)
        ends = [0, len(program.inputs)]
        for group in (program.slots, program.draws, program.constants):
            ends.append(ends[-1] + len(group))
        inputs, slots, draws, fixed = [
            [number for number in range(low, high) if number in taken] for low, high in zip(ends, ends[1:])
        ]
        slots += sorted(number for number in taken if number >= first)
        self.inputs = inputs
        self.slots = slots
        self.draws = [number - ends[2] for number in draws]
        self.results = results
        self.start = start
        order = inputs + slots + draws + fixed + list(made)
        numbers = {number: position for position, number in enumerate(order)}
        moved = [(i.op, [numbers[n] for n in i.inputs], i.attrs, i.dtype, i.shape) for i in instructions]
        self.leaves = inputs + slots + draws + fixed
        self.piece = piece = Program(
            {
                "inputs": [program.values[number] for number in inputs],
                "slots": [program.values[number] for number in slots],
                "draws": [program.values[number] for number in draws],
                "constants": [program.values[number] for number in fixed],
                "instructions": moved,
                "outputs": [numbers[number] for number in results],
                "updates": [],
            }
        )
        piece.new = set(numbers[number] for number in results if number in program.new)
        with self.located(program):
            self.compiled = self._run = compile(piece, [constants[number - ends[3]] for number in fixed])
        self.stages = getattr(self._run, "stages", None) or []

    def located(self, program):
        """A context that reports an error in one of the segment's instructions by its index in the whole program."""
        return _Located(program, self.start)

    def run(self, values, draws, program):
        """Computes the segment's results into `values`, the whole program's by number."""
        with self.located(program):
            outputs, _ = self._run(
                [values[number] for number in self.inputs],
                [values[number] for number in self.slots],
                [draws[number] for number in self.draws],
            )
        for number, value in zip(self.results, outputs):
            values[number] = value


class _Located(object):
    def __init__(self, program, start):
        self.program = program
        self.start = start

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InstructionError):
            raise InstructionError(self.program.instructions[self.start + error.index], error.cause) from error.cause


def compile_in_segments(compile, program, constants, most):
    """Like `Backend.compile`, by calls of `compile` for at most `most` instructions each.

    Values stay the engine's own from one segment to the next. Raises what `compile` raises.
    """
    first, count = len(program.leaves), len(program.instructions)
    last_use = {}
    for instruction in program.instructions:
        for number in instruction.inputs:
            last_use[number] = instruction.index
    results = program.results()
    segments, drops = [], []
    start = 0
    while start < count:
        stop = min(start + most, count)
        # The values of a loop stay in its segment.
        while stop < count and program.instructions[stop].op == "item":
            stop += 1
        wanted = set(number for number, index in last_use.items() if index >= stop).union(results)
        segments.append(Segment(program, start, stop, wanted, constants, compile))
        # Values are released once the last segment that takes them is through.
        drops.append(
            [n for n, index in last_use.items() if n >= first and start <= index < stop and n not in set(results)]
        )
        start = stop
    feeds_end = len(program.inputs)

    def run(feeds, state, draws):
        values = dict(enumerate(feeds))
        values.update(enumerate(state, feeds_end))
        for segment, gone in zip(segments, drops):
            segment.run(values, draws, program)
            for number in gone:
                values.pop(number, None)
        return [values[n] for n in program.outputs], [values[n] for _, n in program.updates]

    # For `describing`: each part's title, its program, what was compiled from it, its leaves among the whole's values.
    run.parts = [
        ("part %d of %d" % (i, len(segments)), segment.piece, segment.compiled, segment.leaves)
        for i, segment in enumerate(segments, 1)
    ]
    return run
