"""A recording on its way to another process: encoded programs, arrays and numbers, and no code of anybody's.

`encode` makes it in the kernel, for engines that have said what they can; `Opened` is the recording there, on a session
of its own. What it has in place of nodes is as much of them as `session.calls` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..errors import EngineError, KernelKError, one_line
from ..graph.seeds import Count, Stream
from ..program.program import Program
from ..session.calls import check_able
from ..session.session import Session
from ..source import Lines, Source, place
from .recording import Call, Recording


class Ability(NamedTuple):
    """What an engine has said when it started, and what programs for it depend on."""

    title: str
    ops: frozenset[str]
    dtypes: frozenset[str]
    specialises: str


class Parcel(NamedTuple):
    """A recording as it is sent: `head` fits into JSON, and refers to `arrays` by their numbers.

    `refused`: why an engine, by its position, can't run this, in a line.
    """

    head: dict[str, Any]
    arrays: list[Array]
    refused: dict[int, str]


def encode(session: Session, recording: Recording, rewind: Callable[[], None], engines: Sequence[Ability]) -> Parcel:
    """A recording for these engines. `rewind` makes the state that from before it; called with the lock held."""
    rewind()
    return _Encoder(session, recording).parcel(engines)


class _Encoder:
    def __init__(self, session: Session, recording: Recording) -> None:
        self._session = session
        self._recording = recording
        self._arrays: list[Array] = []
        self._known: dict[int, int] = {}  # an array's id -> its number
        self._counts: dict[Count, int] = {}
        self._variables: dict[Any, int] = {}
        self._listed: list[list[Any]] = []
        self._origins: list[list[str]] = []
        self._origin_numbers: dict[Any, int] = {}
        self._lines = Lines()

    def parcel(self, engines: Sequence[Ability]) -> Parcel:
        calls = self._recording.calls
        refused: dict[int, str] = {}
        programs: list[dict[str, Any]] = []
        made: dict[frozenset[str], list[tuple[Program, dict[str, Any]]]] = {}
        for position, able in enumerate(engines):
            try:
                if able.ops not in made:
                    found = [call.program(self._session, able.ops) for call in calls]
                    made[able.ops] = [(program, self._program(program)) for program in found]
                    programs.append({"ops": sorted(able.ops), "calls": [one for _, one in made[able.ops]]})
                for call, (program, encoded) in zip(calls, made[able.ops]):
                    check_able(able.title, able.ops, able.dtypes, program)
                    if able.specialises not in encoded["forms"]:
                        encoded["forms"][able.specialises] = self._form(program, call, able.specialises)
            except KernelKError as error:
                refused[position] = one_line(error)
        head = {
            "programs": programs,
            "calls": [self._call(call) for call in calls],
            "sequence": [
                [calls.index(call), None if feeds is None else [self._array(feed) for feed in feeds]]
                for call, feeds in self._recording.sequence
            ],
            "before": [self._variable(variable) for variable in self._recording.before],
            "variables": self._listed,
            "counts": [self._recording.places.get(count, count.begin) for count in self._counts],
            "origins": self._origins,
        }
        return Parcel(head, self._arrays, refused)

    def _array(self, array: Array) -> int:
        number = self._known.setdefault(id(array), len(self._arrays))
        if number == len(self._arrays):
            self._arrays.append(array)
        return number

    def _variable(self, variable: Any) -> int:
        number = self._variables.setdefault(variable, len(self._listed))
        if number == len(self._listed):
            value = self._array(self._session.read(variable))
            self._listed.append([variable.name, variable.dtype, value])
        return number

    def _count(self, count: Count) -> int:
        return self._counts.setdefault(count, len(self._counts))

    def _call(self, call: Call) -> dict[str, Any]:
        return {
            "label": call.label,
            "feeds": [self._array(feed) for feed in call.feeds],
            "seconds": call.seconds,
            "outputs": len(call.function.outputs),
        }

    def _program(self, program: Program) -> dict[str, Any]:
        return {
            "key": program.key,
            "inputs": [x.dtype for x in program.inputs],
            "slots": [self._variable(x) for x in program.slots],
            "draws": [[x.attrs["kind"], x.dtype, x.seed(), self._count(x.count)] for x in program.draws],
            "drawn_before": [self._count(x.count) for x in program.drawn_before],
            "constants": [[x.dtype, self._array(x.array)] for x in program.constants],
            "output_dtypes": program.output_dtypes,
            "updates": program.updates,
            "forms": {},
        }

    def _form(self, program: Program, call: Call, mode: str) -> dict[str, Any]:
        specialisation = program.specialise(tuple([feed.shape for feed in call.feeds]), mode)
        return {
            "key": specialisation.key,
            "encoded": specialisation.encode(program),
            "draws": specialisation.draws,
            "outputs": specialisation.outputs,
            "origins": [self._origin(node.op, node.source) for node in specialisation.origins(program)],
        }

    def _origin(self, op: str, source: Source) -> int:
        """The number of an op with the line that wrote it, for errors."""
        line = self._lines.line(source)
        key = op, source.code.co_filename, source.cell, line
        number = self._origin_numbers.setdefault(key, len(self._origins))
        if number == len(self._origins):
            self._origins.append([op, str(source), f"{place(source.code.co_filename, source.cell)}, line {line}"])
        return number


# --- in the other process -----------------------------------------------------------------------------------


class _Line:
    """Stands for the Source of what was written elsewhere."""

    def __init__(self, words: str, location: str) -> None:
        self._words = words
        self.location = location

    def __str__(self) -> str:
        return self._words


class _Node:
    """Stands for a leaf, or for the node behind an instruction."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def seed(self) -> int:
        return int(self.__dict__["drawn"])


class _Form:
    """Stands for a Specialisation."""

    def __init__(self, sent: dict[str, Any], origins: list[list[str]]) -> None:
        self.key = sent["key"]
        self.draws = [tuple(shape) for shape in sent["draws"]]
        self.outputs = [tuple(shape) for shape in sent["outputs"]]
        self._encoded = sent["encoded"]
        self._origins = [origins[number] for number in sent["origins"]]

    def encode(self, program: _Program) -> dict[str, Any]:
        return self._encoded  # type: ignore[no-any-return]

    def output_arrays(self, program: _Program) -> list[tuple[int, str, tuple[int, ...]]]:
        return [
            (int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64)), dtype, shape)
            for dtype, shape in zip(program.output_dtypes, self.outputs)
        ]

    def blamed(self, program: _Program, path: Sequence[int]) -> _Node | None:
        if not path or path[0] >= len(self._origins):
            return None
        op, words, location = self._origins[path[0]]
        return _Node(op=op, source=_Line(words, location))


class _Program:
    """Stands for a Program, whose nodes are elsewhere."""

    def __init__(self, sent: dict[str, Any], opened: Opened) -> None:
        self.key = sent["key"]
        self.inputs = [_Node(dtype=dtype) for dtype in sent["inputs"]]
        self.slots = [opened.variables[number] for number in sent["slots"]]
        self.draws = [
            _Node(attrs={"kind": kind}, dtype=dtype, drawn=seed, count=opened.counts[number])
            for kind, dtype, seed, number in sent["draws"]
        ]
        self.drawn_before = [_Node(count=opened.counts[number]) for number in sent["drawn_before"]]
        self.constants = [_Node(dtype=dtype, array=opened.arrays[number]) for dtype, number in sent["constants"]]
        self.output_dtypes = sent["output_dtypes"]
        self.updates = [(slot, number) for slot, number in sent["updates"]]
        self.plans: dict[Any, Any] = {}  # filled by `session.calls`
        self.updated_bytes = sum(self.slots[slot].slots.nbytes for slot, _ in self.updates)
        self._forms = {mode: _Form(form, opened.origins) for mode, form in sent["forms"].items()}

    def lacking(self, ops: frozenset[str], dtypes: frozenset[str]) -> list[str]:
        """Nothing: the kernel has looked."""
        return []

    def specialise(self, feed_shapes: tuple[tuple[int, ...], ...], mode: str) -> _Form:
        return self._forms[mode]


class _Function:
    """Stands for the Function of one kind of call: it has a program for each set of ops."""

    def __init__(self, outputs: int) -> None:
        self.outputs = range(outputs)
        self.programs: dict[frozenset[str], _Program] = {}

    def program_for(self, session: Session, ops: frozenset[str], phase: int, feeds: list[Array]) -> _Program:
        program = self.programs.get(ops)
        if program is None:
            raise EngineError(
                "this engine has other ops than the one whose programs were sent here",
                next_step="install one version of it on all machines",
            )
        return program


class _Call(Call):
    """A Call whose label came with it."""

    words = ""

    @property
    def label(self) -> str:
        return self.words


class Opened:
    """What came in a parcel: `recording`, whose variables belong to this process's `session`."""

    def __init__(self, session: Session, head: dict[str, Any], arrays: list[Array]) -> None:
        self.arrays = arrays
        self.origins = head["origins"]
        self.counts = [self._counted(session, value) for value in head["counts"]]
        self.variables = [self._variable(session, *sent) for sent in head["variables"]]
        calls: list[Call] = []
        for position, sent in enumerate(head["calls"]):
            function = _Function(sent["outputs"])
            for programs in head["programs"]:
                function.programs[frozenset(programs["ops"])] = _Program(programs["calls"][position], self)
            feeds = [arrays[number] for number in sent["feeds"]]
            made: Any = _Call(function, 0, feeds, _Line(sent["label"], ""), sent["seconds"])  # type: ignore[arg-type]
            made.words = sent["label"]
            calls.append(made)
        self.recording = Recording(
            calls=calls,
            sequence=[
                (calls[call], None if feeds is None else [arrays[number] for number in feeds])
                for call, feeds in head["sequence"]
            ],
            before={self.variables[number]: arrays[head["variables"][number][2]] for number in head["before"]},
            places={count: count.begin for count in self.counts},
        )

    @staticmethod
    def _counted(session: Session, value: int) -> Count:
        count = Count(Stream(0), None)
        count.begin = count.value = value
        session.state.seeds.counts.add(count)
        return count

    def _variable(self, session: Session, name: str, dtype: str, value: int) -> Any:
        made: Any = _Node(name=name, dtype=dtype, source=_Line(name, ""), generation=session.state.generation)
        made.shape = self.arrays[value].shape
        session.adopt(made, self.arrays[value])
        return made
