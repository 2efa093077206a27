"""Loops and searches that an engine lacks, carried out in Python between the parts of a program that it compiles."""

import sys

import numpy as np

from .base import STAGED
from .loop_columns import as_it_is, in_columns
from .lowering import Instruction, InstructionError, Program, Steps
from .segments import Segment


def is_staged(instruction, ops):
    """Whether a backend with these ops leaves an instruction, or something inside it, to be carried out here."""
    if instruction.op in STAGED and instruction.op not in ops:
        return True
    return instruction.op == "scan" and any(is_staged(inner, ops) for inner in instruction.attrs["body"].instructions)


def compile_program(backend, program, constants):
    """`backend.compile`, in stages where the program has something that the backend leaves out."""
    if not any(is_staged(instruction, backend.ops) for instruction in program.instructions):
        return backend.compile(program, constants)
    # A value that one part overwrites may be needed by the next one.
    backend.overwrites = False
    staged = _Staged(backend, program, constants)

    # Nothing is written in place: the executor commits the returned values.
    def run(feeds, state, draws, into=None):
        return staged.run(feeds, state, draws)

    run.stages = staged.facts
    run.parts = [part.described for part, _ in staged.parts if part.described is not None]
    return run


class _Staged(object):
    """A program's loop-free parts, each compiled separately, and the loops between them, in order.

    Values stay the engine's own from one part to the next, but for sequences and stacked results.
    """

    def __init__(self, backend, program, constants):
        self.backend = backend
        self.program = program
        self.constants = constants
        self.facts = []
        self.parts = []  # (part, numbers of the values to release after it)
        first, count = len(program.leaves), len(program.instructions)
        first_constant = first - len(constants)
        results = set(program.results())
        last_use = {}
        for instruction in program.instructions:
            for number in instruction.inputs:
                last_use[number] = instruction.index

        def add(part, start, stop):
            gone = [n for n, index in last_use.items() if n >= first and n not in results and start <= index < stop]
            self.parts.append((part, gone))

        start = 0

        def straight(stop):
            if stop > start:
                wanted = set(n for n, index in last_use.items() if index >= stop).union(results)
                add(_Straight(self, Segment(program, start, stop, wanted, constants, backend.compile)), start, stop)

        loops = set()
        for instruction in program.instructions:
            index, op = instruction.index, instruction.op
            if not (instruction.inputs[0] in loops if op == "item" else is_staged(instruction, backend.ops)):
                continue
            straight(index)
            if op == "scan":
                loops.add(first + index)
                body = instruction.attrs["body"]
                fixed = instruction.inputs[len(body.inputs) + len(body.draws) :]
                part = _Loop(self, instruction, [constants[n - first_constant] for n in fixed])
            else:
                part = _Item(self, instruction) if op == "item" else _Host(self, instruction)
            add(part, index, index + 1)
            start = index + 1
        straight(count)
        if start == count and any(number < first for number in results):
            # Results that are leaves are returned by an empty part.
            add(_Straight(self, Segment(program, count, count, results, constants, backend.compile)), count, count)

    def run(self, feeds, state, draws):
        program, backend = self.program, self.backend
        # Its parts in numpy take arrays.
        values = {i: x if type(x) is np.ndarray else backend.to_numpy(x) for i, x in enumerate(feeds)}
        values.update(enumerate(state, len(program.inputs)))
        for part, gone in self.parts:
            part.run(values, draws)
            for number in gone:
                values.pop(number, None)
        # New values of variables share no memory with anything.
        new = [backend.load(np.array(backend.to_numpy(values[number]))) for _, number in program.updates]
        return [values[number] for number in program.outputs], new


class _Straight(object):
    def __init__(self, staged, segment):
        self._program = staged.program
        self._segment = segment
        self.described = ("ops without a loop", segment.piece, segment.compiled, segment.leaves)
        staged.facts.extend(segment.stages)

    def run(self, values, draws):
        self._segment.run(values, draws, self._program)


class _Operands(object):
    """Operands of one instruction, taken from values by number: the engine's own, or arrays of feeds and constants."""

    def __init__(self, staged, instruction):
        program = staged.program
        self._backend = staged.backend
        self._constants = staged.constants
        self._slots = len(program.inputs)
        self._first_draw = self._slots + len(program.slots)
        self._first_constant = self._first_draw + len(program.draws)
        self._first = len(program.leaves)
        self._numbers = instruction.inputs
        self.result = self._first + instruction.index

    def _operand(self, position, values, draws):
        """(whether it is the engine's own, the value)"""
        number = self._numbers[position]
        if self._first_draw <= number < self._first_constant:
            return False, draws[number - self._first_draw]
        if self._first_constant <= number < self._first:
            return False, self._constants[number - self._first_constant]
        return self._slots <= number, values[number]

    def array(self, position, values, draws):
        own, value = self._operand(position, values, draws)
        return np.asarray(self._backend.to_numpy(value), order="C") if own else value

    def native(self, position, values, draws):
        own, value = self._operand(position, values, draws)
        return value if own else self._backend.load(np.array(value))


class _Host(object):
    """An instruction that numpy computes."""

    def __init__(self, staged, instruction):
        # Imported here: most programs have no such instruction, and the kernel imports this module early.
        from .numpy.ops import OPS

        self._compute = OPS[instruction.op]
        self._backend = staged.backend
        self._instruction = instruction
        self._operands = _Operands(staged, instruction)
        self.described = ("numpy computes %s" % instruction.op, None, None, None)
        staged.facts.append({"kind": "host", "ops": 1, "host": [[instruction.op, "numpy's on every engine"]]})

    def run(self, values, draws):
        instruction = self._instruction
        arrays = [self._operands.array(position, values, draws) for position in range(len(instruction.inputs))]
        try:
            result = self._compute(instruction, *arrays, **instruction.attrs)
        except Exception as error:
            raise InstructionError(instruction, error) from error
        values[self._operands.result] = self._backend.load(np.asarray(result))


class _Item(object):
    def __init__(self, staged, instruction):
        self._source = instruction.inputs[0]
        self._index = instruction.attrs["index"]
        self._number = len(staged.program.leaves) + instruction.index
        self.described = None

    def run(self, values, draws):
        values[self._number] = values[self._source][self._index]


# Results of a step that are joined have at most so many bytes each.
JOINED_BYTES = 1 << 13


def _joined(kinds):
    """The positions of results in groups that leave a step together, which have one shape, from (dtype, shape)s."""
    groups = {}
    for position, (dtype, shape) in enumerate(kinds):
        known = shape and None not in shape and np.prod(shape, dtype=float) * np.dtype(dtype).itemsize <= JOINED_BYTES
        groups.setdefault((dtype, shape) if known else position, []).append(position)
    return list(groups.values())


def _side_by_side(columns):
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)


# Memory for stacked results up to this size each is used again by the next run: fresh pages cost more than the copies.
KEPT_BYTES = 1 << 24


class _Loop(object):
    """A scan whose body is compiled as a program: elements are its inputs, states and captures its slots."""

    def __init__(self, staged, instruction, constants):
        self._backend = staged.backend
        self._instruction = instruction
        self._operands = _Operands(staged, instruction)
        self._made = made = in_columns(instruction) if staged.backend.slow_columns else as_it_is(instruction)
        body, states = made.program, instruction.attrs["states"]
        attrs = dict(instruction.attrs, body=body, sequences=made.sequences)
        self._steps = Instruction(instruction.index, "scan", instruction.inputs, attrs, instruction.dtype, ())
        instructions = [(i.op, i.inputs, i.attrs, i.dtype, i.shape) for i in body.instructions]
        outputs = list(body.outputs[:states])
        kinds = [body.values[number] for number in body.outputs[states:]]
        self._groups = _joined(kinds) if staged.backend.joins_results else [[i] for i in range(len(kinds))]
        for group in self._groups:
            numbers = [body.outputs[states + position] for position in group]
            outputs.append(numbers[0])
            if len(group) > 1:
                dtype, shape = body.values[numbers[0]]
                whole = (len(group) * shape[0],) + shape[1:]
                outputs[-1] = len(body.leaves) + len(instructions)
                instructions.append(("concatenate", numbers, {"axis": 0}, dtype, whole))
        program = Program(
            {
                "inputs": body.inputs[: made.sequences],
                "slots": body.inputs[made.sequences :],
                "draws": body.draws,
                "constants": body.constants,
                "instructions": instructions,
                "outputs": outputs,
                "updates": [],
            }
        )
        try:
            self._run = compile_program(staged.backend, program, constants)
        except InstructionError as error:
            raise self._blaming(error) from error
        # Its leaves are a step's own.
        self.described = ("a loop in Python; at each step:", program, self._run, [None] * len(program.leaves))
        facts = {"kind": "loop", "ops": len(instruction.attrs["body"].instructions)}
        stages = getattr(self._run, "stages", None)
        if stages:
            facts["body"] = stages
        staged.facts.append(facts)
        self._kept = {}

    def _room(self, position, shape, dtype):
        """An array for one of the stacked results: that of the run before, once nobody holds it any more."""
        kept = self._kept.pop(position, None)
        # Views, or an engine that shares its memory, hold references to the array besides this name and the call.
        if kept is None or kept.shape != shape or kept.dtype != dtype or sys.getrefcount(kept) > 2:
            kept = np.empty(shape, dtype)
        if kept.nbytes <= KEPT_BYTES:
            self._kept[position] = kept
        return kept

    def run(self, values, draws):
        made, body = self._made, self._instruction.attrs["body"]
        inputs, n = len(made.leaves), made.sequences
        # Sequences and draws as arrays, states and captures as the engine's own values; constants are compiled in.
        # The first sequence tells the length, whether a step takes its elements or not.
        taken = set([0] + [leaf.operand for leaf in made.leaves[:n]])
        sequences = {position: self._operands.array(position, values, draws) for position in taken}
        operands = [leaf.of_all_steps(sequences[leaf.operand]) for leaf in made.leaves[:n]]
        operands += [self._native(leaf, values, draws) for leaf in made.leaves[n:]]
        for position in range(len(body.draws)):
            operands.append(self._operands.array(len(body.inputs) + position, values, draws))
        length = len(sequences[0])
        steps = Steps(self._steps, operands, length, lambda x, t: x[t, ...])
        count, stacked = steps.count, None
        for t, leaves in steps:
            try:
                results, _ = self._run(leaves[:n], leaves[n:inputs], leaves[inputs:])
            except InstructionError as error:
                raise self._blaming(error) from error
            steps.states = results[:count]
            arrays = [self._backend.to_numpy(x) for x in results[count:]]
            if stacked is None:
                stacked = [self._room(position, (length,) + x.shape, x.dtype) for position, x in enumerate(arrays)]
            for whole, x in zip(stacked, arrays):
                whole[t] = x
        outputs = made.program.outputs[count:]
        if stacked is None:
            kinds = [made.program.values[number] for number in outputs]
            results = [np.zeros((0,) + shape, dtype) for dtype, shape in kinds]
        else:
            results = [None] * len(outputs)
            for whole, group in zip(stacked, self._groups):
                parts = [whole] if len(group) == 1 else np.split(whole, len(group), axis=1)
                for position, part in zip(group, parts):
                    results[position] = part
        results = [_side_by_side([results[i] for i in positions]) for positions in made.results]
        values[self._operands.result] = steps.states + [self._backend.load(x) for x in results]

    def _blaming(self, error):
        """The error for one in a step: the scan's, because of an instruction of the body that was given."""
        given, origins = self._instruction.attrs["body"].instructions, self._made.origins
        # Behind them are those that join results.
        if error.index < len(origins):
            error = InstructionError(given[origins[error.index]], error.cause)
        return InstructionError(self._instruction, error)

    def _native(self, leaf, values, draws):
        """The engine's own value of a state or a capture, or of columns of it."""
        value = self._operands.native(leaf.operand, values, draws)
        return value if leaf.whole else self._backend.load(np.array(leaf.of(self._backend.to_numpy(value)), order="C"))
