"""Loops for an engine that has none of its own: straight parts and bodies are compiled, the loop itself is Python's."""

import numpy as np

from .base import LOOPS
from .lowering import InstructionError, Program, Steps
from .segments import Segment

# What a backend may leave out, because it is carried out here.
STAGED = frozenset(LOOPS)


def compile_program(backend, program, constants):
    """`backend.compile`, in stages where the program has loops that the backend leaves out."""
    if all(i.op in backend.ops or i.op not in STAGED for i in program.instructions):
        return backend.compile(program, constants)
    staged = _Staged(backend, program, constants)

    # Nothing is written in place: the executor commits what it is given.
    def run(feeds, state, draws, into=None):
        return staged.run(feeds, state, draws)

    run.stages = staged.facts
    return run


class _Staged(object):
    """A program's straight parts, each compiled by itself, and the loops between them, in order.

    Values stay the engine's own from one part to the next, but for sequences and stacked results.
    """

    def __init__(self, backend, program, constants):
        self.backend = backend
        self.program = program
        self.constants = constants
        self.facts = []
        self.parts = []  # (part, numbers of the values to let go after it)
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

        for instruction in program.instructions:
            index = instruction.index
            if instruction.op == "scan":
                straight(index)
                body = instruction.attrs["body"]
                fixed = instruction.inputs[len(body.inputs) + len(body.draws) :]
                add(_Loop(self, instruction, [constants[n - first_constant] for n in fixed]), index, index + 1)
                start = index + 1
            elif instruction.op == "item":
                straight(index)
                add(_Item(self, instruction), index, index + 1)
                start = index + 1
        straight(count)
        if start == count and any(number < first for number in results):
            # Results that are leaves leave by way of an empty part.
            add(_Straight(self, Segment(program, count, count, results, constants, backend.compile)), count, count)

    def run(self, feeds, state, draws):
        program, backend = self.program, self.backend
        values = dict(enumerate(feeds))
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
        staged.facts.extend(segment.stages)

    def run(self, values, draws):
        self._segment.run(values, draws, self._program)


class _Item(object):
    def __init__(self, staged, instruction):
        self._source = instruction.inputs[0]
        self._index = instruction.attrs["index"]
        self._number = len(staged.program.leaves) + instruction.index

    def run(self, values, draws):
        values[self._number] = values[self._source][self._index]


class _Loop(object):
    """A scan whose body is compiled as a program: elements are its inputs, states and captures its slots."""

    def __init__(self, staged, instruction, constants):
        self._backend = staged.backend
        self._program = staged.program
        self._instruction = instruction
        self._outer = staged.constants
        self._body = body = instruction.attrs["body"]
        self._sequences = instruction.attrs["sequences"]
        program = Program(
            {
                "inputs": body.inputs[: self._sequences],
                "slots": body.inputs[self._sequences :],
                "draws": body.draws,
                "constants": body.constants,
                "instructions": [(i.op, i.inputs, i.attrs, i.dtype, i.shape) for i in body.instructions],
                "outputs": body.outputs,
                "updates": [],
            }
        )
        try:
            self._run = compile_program(staged.backend, program, constants)
        except InstructionError as error:
            raise InstructionError(instruction, error.cause) from error
        facts = {"kind": "loop", "ops": len(body.instructions)}
        stages = getattr(self._run, "stages", None)
        if stages:
            facts["body"] = stages
        staged.facts.append(facts)

    def _operands(self, values, draws):
        """Sequences and draws as arrays, states and captures as the engine's own values; constants are known."""
        program, backend, operands = self._program, self._backend, []
        slots = len(program.inputs)
        first_draw = slots + len(program.slots)
        first_constant = first_draw + len(program.draws)
        for place, number in enumerate(self._instruction.inputs[: len(self._body.inputs) + len(self._body.draws)]):
            own = slots <= number < first_draw or number >= len(program.leaves)
            if first_draw <= number < first_constant:
                value = draws[number - first_draw]
            elif first_constant <= number < len(program.leaves):
                value = self._outer[number - first_constant]
            else:
                value = values[number]
            if self._sequences <= place < len(self._body.inputs):
                operands.append(value if own else backend.load(np.array(value)))
            else:
                operands.append(np.ascontiguousarray(backend.to_numpy(value)) if own else value)
        return operands

    def run(self, values, draws):
        body, n = self._body, self._sequences
        operands = self._operands(values, draws)
        length = len(operands[0])
        steps = Steps(self._instruction, operands, length, lambda x, t: x[t, ...])
        count, stacked = steps.count, None
        inputs = len(body.inputs)
        for t, leaves in steps:
            try:
                results, _ = self._run(leaves[:n], leaves[n:inputs], leaves[inputs:])
            except InstructionError as error:
                raise InstructionError(self._instruction, error.cause) from error
            steps.states = results[:count]
            arrays = [self._backend.to_numpy(x) for x in results[count:]]
            if stacked is None:
                stacked = [np.empty((length,) + x.shape, x.dtype) for x in arrays]
            for whole, x in zip(stacked, arrays):
                whole[t] = x
        if stacked is None:
            stacked = [np.zeros((0,) + shape, dtype) for dtype, shape in (body.values[k] for k in body.outputs[count:])]
        number = len(self._program.leaves) + self._instruction.index
        values[number] = steps.states + [self._backend.load(x) for x in stacked]
