"""Profiles a recorded call for `%kprofile`: each node separately on its real inputs, and the call as compiled."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..arrays import Array
from ..display.progress import waiting
from ..display.tables import Rendered, Table, duration, size
from ..engines.host import Host
from ..errors import KernelKError, one_line
from ..graph.nodes import Tensor, walk
from ..ops.creation import placeholder
from ..ops.gradients import of_a_gradient
from ..ops.linear import dot
from ..session.current import current
from ..session.function import Function
from ..session.session import Session
from ..session.targets import outer_scope
from ..session.untouched import untouched
from ..twins import typed_name
from .by_layer import LayerTimes, by_layer
from .engine_profile import EngineProfile, check_profiler, engine_profile
from .estimates import Estimate, unsteadiness
from .recording import Call, record
from .results import Result, noted
from .single_ops import Nodes
from .timing import SETTLE_SECONDS, CallTime, Conditions, checked_budget, measured, ready, shown, tells_of_device

BUDGET = 5.0
# Rows that a table shows; the result has them all.
SHOWN_ROWS = 30

# Ops that only arrange elements: no arithmetic, and on some engines no work at all.
_ARRANGING = (
    "reshape",
    "transpose",
    "slice",
    "concatenate",
    "broadcast_to",
    "pad",
    "gather",
    "tile",
    "shape",
    "size",
    "cast",
    "saturating_cast",
)
_REDUCING = (
    "sum",
    "prod",
    "mean",
    "max",
    "min",
    "argmax",
    "argmin",
    "cumsum",
    "cumprod",
    "softmax",
    "log_softmax",
    "sum_to",
)


# The rates of a machine are those of a product of so many rows and columns, and of a sum of so many elements.
_SQUARE, _LONG = 1024, 1 << 22

_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Machine:
    """The engine's rates here on large arrays: FLOP a second in a float32 matmul, bytes a second in a sum."""

    flops: float
    bandwidth: float

    @classmethod
    def of(cls, product: CallTime, total: CallTime, by_device: bool) -> Machine:
        """From the times of a product and a sum, of the device or of whole calls."""
        # The machine's capacity, not what is left beside other work.
        seconds = [(call.device if by_device else None) or min(call.samples) for call in (product, total)]
        return cls(2.0 * _SQUARE**3 / seconds[0], 2.0 * 4 * _LONG / seconds[1])


@dataclass
class OpTime:
    """One op, timed separately, of your line `source` at `location`. `part`: "forward", "gradient" or "update". `count`
    nodes are equal, and `steady` is the time of one.

    `device`: the part of that in which the GPU itself works, where the engine's profiler tells it of all ops of a call.
    `bytes`: of its operands and its value; `flops`: its arithmetic, 0 where it has none or it isn't known. `failure`:
    why it has no time, in one line. `uids` are the nodes' own numbers, as tensors have them. `scopes`: for each
    outermost name scope among them, how many stand in it, and the least of their numbers.
    """

    op: str
    name: str
    source: str
    location: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    flops: int
    count: int = 1
    steady: Estimate = _UNKNOWN
    failure: str = ""
    uids: list[int] = field(default_factory=list)
    scopes: dict[str, tuple[int, int]] = field(default_factory=dict)
    device: float | None = None

    def also_of(self, node: Tensor) -> None:
        """Enters a node that is equal to those before."""
        self.uids.append(node.uid)
        count, first = self.scopes.get(outer_scope(node), (0, node.uid))
        self.scopes[outer_scope(node)] = count + 1, min(first, node.uid)

    @property
    def seconds(self) -> float:
        """The time of one that counts: the device's own where it is known, since all else is the way there."""
        return self.steady.value if self.device is None else self.device

    @property
    def total(self) -> float:
        """The seconds of all equal nodes that count."""
        return 0.0 if self.failure else self.count * self.seconds


@dataclass(repr=False)
class ProfileResult(Result, Rendered):
    """The result of `%kprofile`: `ops`, the slowest first, each separately and unfused; `whole`: the call as compiled.

    `by_layer`: the ops' times by a model's layers, or by name scopes; None where there are none. `engine_profile`: what
    the engine's own profiler says of the call as it really runs, where that was asked for.
    """

    conditions: Conditions
    whole: CallTime
    ops: list[OpTime]
    machine: Machine
    others: int = 0
    notes: list[str] = field(default_factory=list)
    engine_profile: EngineProfile | None = None
    by_layer: LayerTimes | None = None

    def also(self) -> Rendered | None:
        """By layer, and the engine's own."""
        if self.by_layer is None:
            return self.engine_profile
        return replace(self.by_layer, below=self.engine_profile)

    @property
    def by_device(self) -> bool:
        """Whether the ops' times that count are the device's own."""
        return any(op.device is not None for op in self.ops)

    @property
    def alone(self) -> float:
        """The sum of all ops' separate times, in seconds: not the time of the call."""
        return sum(op.total for op in self.ops)

    @property
    def fusion(self) -> float:
        """The time of all separate ops, as a multiple of the call's."""
        whole = self.whole.device if self.by_device else self.whole.steady.value
        return self.alone / whole if whole else math.nan

    def share(self, op: OpTime) -> float:
        """An op's part of all ops' time."""
        return op.total / self.alone if self.alone else 0.0

    def reached(self, op: OpTime) -> str:
        """The op's share of the rate that the engine reaches here: of its matmul's, or of the memory's."""
        if op.failure or not op.seconds:
            return ""
        rate = op.flops / op.seconds / self.machine.flops
        memory = op.bytes / op.seconds / self.machine.bandwidth
        return f"{rate:.0%} of matmul" if rate >= memory else f"{memory:.0%} of memory"

    def table(self) -> Table:
        """A row for each kind of op, the slowest first."""
        header = [
            "op",
            "name",
            "written in",
            "part",
            "shape",
            "dtype",
            "times",
            "time of one",
            *(["on the device"] if self.by_device else []),
            "share",
            "bytes",
            "reaches",
        ]
        rows = [
            [
                op.op,
                op.name,
                op.location,
                op.part,
                str(op.shape),
                op.dtype,
                str(op.count),
                "failed" if op.failure else shown(op.steady),
                *(["" if op.device is None else duration(op.device)] if self.by_device else []),
                f"{self.share(op):.0%}",
                size(op.bytes),
                self.reached(op),
            ]
            for op in self.ops[:SHOWN_ROWS]
        ]
        whole = self.whole.steady
        verb = "fusion saves" if self.fusion >= 1 else "separately its ops take"
        there = f", {duration(self.whole.device)} of it on the device" if self.whole.device is not None else ""
        title = (
            f"{self.whole.label}: {shown(whole)} on {self.conditions.engine}{there}; "
            f"its ops one by one {duration(self.alone)}: {verb} {self.fusion:.2g}x"
        )
        return Table(rows, header, title=title, below="\n".join(self._below()))

    def _below(self) -> list[str]:
        parts = {
            part: sum(op.total for op in self.ops if op.part == part) for part in ("forward", "gradient", "update")
        }
        sums = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items() if seconds)
        lines = [f"one by one: {sums}"] if sums else []
        separately = sum(op.count * op.steady.value for op in self.ops if not op.failure)
        gain = separately - self.whole.steady.value
        if gain > 0:
            pays = math.ceil(self.whole.compile_seconds / gain)
            runs = f"{pays} run{'' if pays == 1 else 's'}"
            lines.append(f"compiled in {duration(self.whole.compile_seconds)}, which pays off after {runs}")
        if len(self.ops) > SHOWN_ROWS:
            lines.append(f"{len(self.ops)} kinds of ops, {SHOWN_ROWS} shown (.ops has all)")
        lines += [f"{op.op} '{op.name}' could not be timed: {op.failure}" for op in self.ops if op.failure][:3]
        if self.others:
            lines.append(f"{self.others} other kinds of calls took less time and aren't profiled")
        remark = unsteadiness(self.whole.samples)
        lines += [f"unsteady ({remark})"] if remark else []
        lines.append(
            f"peak rates measured here: matmul {self.machine.flops / 1e9:.3g} GFLOP/s, memory "
            f"{self.machine.bandwidth / 1e9:.3g} GB/s; each op's time includes the engine's whole overhead of a call"
            + (", which the device's doesn't: sums, shares and rates are of that" if self.by_device else "")
        )
        return [*lines, *self.notes, self.conditions.words()]

    def records(self) -> list[dict[str, Any]]:
        """One dict for each kind of op: the rows of `to_frame`."""
        return [
            {
                **{name: getattr(op, name) for name in ("op", "name", "source", "part", "shape", "dtype", "count")},
                "steady": op.steady.value,
                "low": op.steady.low,
                "high": op.steady.high,
                "device": op.device,
                "share": self.share(op),
                "bytes": op.bytes,
                "flops": op.flops,
                "failure": op.failure,
            }
            for op in self.ops
        ]

    def raw(self) -> dict[str, Any]:
        """All measurements."""
        return asdict(self)

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: the ten ops that take most."""
        most = [op for op in self.ops if not op.failure][:10]
        times = [op.steady if op.device is None else Estimate(*[op.device] * 3) for op in most]
        return [f"{op.op} {op.shape}" for op in most], times


def profile(target: Any, feeds: Any = None, budget: float = BUDGET, engine: bool = False) -> ProfileResult:
    """Times each op of a call separately on the active engine. The Python twin of `%kprofile`.

    `target`, `feeds`: as in `kernelk.time`; of several kinds of calls, the one that took longest is profiled. `budget`:
    seconds of running in all; compiling each op comes on top. Nothing is committed but by the body itself. `engine`:
    the engine's own profiler is asked as well, about the call as it really runs: the result's `engine_profile`.
    Raises ArgumentError, FeedError, EngineError, and what the body raises.
    """
    __tracebackhide__ = True  # in an error of the body
    seconds = checked_budget(budget, typed_name("profile"))
    session = current()
    with session.lock:
        host = session.ready_host()
        if engine:
            check_profiler(host)
        recording = record(session, target, feeds, typed_name("profile"), "kernelk.profile(y, feeds={x: array})")
        host = session.ready_host()
        call = max(recording.calls, key=lambda one: sum(one.seconds))
        with untouched(session, [host]):
            whole = measured(session, host, call, seconds / 5)
            large = _large(session, host, seconds / 20)
            with waiting("timing each op separately", ["Ctrl-C cancels"]):
                ops = [op for (op,) in op_times(session, [host], call, seconds * (0.5 if engine else 0.7))]
            own = engine_profile(session, host, call, seconds / 5) if engine else None
        notes = []
        if tells_of_device(host) and not (whole.device and _all_of_device(ops)):
            _forget_device(ops)
            label = (host.profiler or {})["label"]
            notes = [f"{label} didn't see all that ran on {host.facts['device']}: all times are the calls'"]
        ops.sort(key=lambda op: -op.total)
        layers = by_layer([host.engine.name], [[op] for op in ops], call.function.roots)
        machine = Machine.of(*large, any(op.device is not None for op in ops))
        others = len(recording.calls) - 1
        result = ProfileResult(Conditions.of(host), whole, ops, machine, others, notes, own, layers)
        return noted("profile", result)


def _timed(
    session: Session, host: Host, outputs: list[Tensor], fed: list[tuple[Any, Array]], budget: float
) -> CallTime:
    """Times runs of these outputs on their own. Raises KernelKError."""
    function = Function([x for x, _ in fed], outputs, live=False)
    alone = Call(function, 0, [np.asarray(value, order="C") for _, value in fed], outputs[0].source)
    with ready(session, host, alone, tells_of_device(host)) as timed:
        timed.warm_up(budget / 3, min(0.005, budget / 10))
        timed.sample_for(budget * 2 / 3)
        timed.on_device()
    return timed.call_time


def _all_of_device(ops: Sequence[OpTime]) -> bool:
    """Whether the profiler has told of all ops that have a time, and of something in them."""
    told = [op.device for op in ops if not op.failure]
    return None not in told and any(told)


def _forget_device(ops: Sequence[OpTime]) -> None:
    for op in ops:
        op.device = None


def _large(session: Session, host: Host, budget: float) -> tuple[CallTime, CallTime]:
    """The times of a product and a sum that are large enough to tell of the machine."""
    n = _SQUARE
    a, b = placeholder((n, n), dtype="float32"), placeholder((_LONG,), dtype="float32")
    square, long = np.full((n, n), 1 / n, np.float32), np.ones(_LONG, np.float32)
    product = _timed(session, host, [dot(a, a)], [(a, square)], budget)
    total = _timed(session, host, [b + b], [(b, long)], budget)
    return product, total


def op_times(session: Session, hosts: Sequence[Host], call: Call, budget: float) -> list[list[OpTime]]:
    """Times each kind of op of a call separately on each of these started hosts, in turns of random order.

    Every host computes from the same operands, those of the first. `budget`: seconds of running in all.
    """
    function = call.function
    nodes = Nodes(
        session, function.roots, call.phase, dict(zip(function.placeholders, call.feeds)), typed_name("profile")
    )
    forward = {id(node) for node in walk(function.outputs, lambda node: node.inputs)}
    kinds: dict[Any, list[OpTime]] = {}
    share = budget / max(1, len(nodes.computed) * len(hosts))
    for numbers, more in nodes.chunks():
        known: dict[int, Array] = nodes.values(hosts[0], sorted([*more, *numbers]))
        work: list[tuple[int, list[OpTime]]] = []
        # A loop stands before the first of its items, which alone have values.
        for number in _with_loops(nodes, numbers):
            key = nodes.likeness(number)
            if key in kinds:
                for op in kinds[key]:
                    op.count += 1
                    op.also_of(nodes.nodes[number])
                continue
            kinds[key] = [_described(nodes, number, forward) for _ in hosts]
            work.append((number, kinds[key]))
        for number, ops in work:
            for host, op in random.sample(list(zip(hosts, ops)), len(hosts)):
                if len(hosts) > 1:
                    time.sleep(SETTLE_SECONDS)
                try:
                    timed = _by_itself(session, host, nodes, number, known, share)
                    op.steady, op.device = timed.steady, timed.device
                except KernelKError as error:
                    op.failure = one_line(error)
    rows = list(kinds.values())
    for column in zip(*rows):
        if not _all_of_device(column):
            _forget_device(column)
    return rows


def _with_loops(nodes: Nodes, numbers: Sequence[int]) -> list[int]:
    """The nodes to measure among these: a loop in place of its items and of its draws."""
    measured_nodes: dict[int, None] = {}
    for number in numbers:
        node = nodes.nodes[number]
        if node.op == "item":
            measured_nodes[nodes.program.instructions[number - nodes.program.first].inputs[0]] = None
        elif number not in nodes.of_loops:
            measured_nodes[number] = None
    return list(measured_nodes)


def _by_itself(
    session: Session, host: Host, nodes: Nodes, number: int, known: dict[int, Array], budget: float
) -> CallTime:
    """The times of this node on its own; `known`: the values of its operands. Raises KernelKError."""
    node = nodes.nodes[number]
    if number < nodes.program.first:
        # A draw needs only the lengths of its operands, whatever is fed.
        return _timed(session, host, [node], list(zip(nodes.placeholders, nodes.feeds)), budget)
    if node.op == "scan":
        outputs, leaves = nodes.loop_alone(number)
    else:
        tensors, leaves = nodes.alone([number])
        outputs = [tensors[number]]
    fed = [(x, known[n] if n in known else nodes.feeds[n]) for n, x in leaves.items()]
    return _timed(session, host, outputs, fed, budget)


def _described(nodes: Nodes, number: int, forward: set[int]) -> OpTime:
    node = nodes.nodes[number]
    part = "gradient" if of_a_gradient(node) else "forward" if id(node) in forward else "update"
    operands = list(nodes.operands[number])
    values = [number]
    if node.op == "scan":
        operands = list(nodes.program.instructions[number - nodes.program.first].inputs)
        values = [n for n, one in enumerate(nodes.nodes) if one.op == "item" and nodes.loop_of(n) == number]
    shape = tuple(nodes.shapes[values[0]])
    moved = nodes.bytes(n for n in {*operands, *values} if nodes.nodes[n].op != "scan")
    attrs = nodes.program.instructions[number - nodes.program.first].attrs if number >= nodes.program.first else {}
    flops = _flops(node.op, attrs, [tuple(nodes.shapes[n]) for n in operands], shape)
    described = OpTime(
        node.op, node.name, str(node.source), node.source.location, part, shape, node.dtype, moved, flops
    )
    described.also_of(node)
    return described


def _flops(op: str, attrs: dict[str, Any], operands: list[tuple[int, ...]], shape: tuple[int, ...]) -> int:
    """The arithmetic of an op, a multiplication and an addition counted as two; 0 where it isn't known."""
    if op in ("matmul", "batch_matmul"):
        inner = operands[0][-2 if attrs.get("transpose_a") else -1]
        return 2 * math.prod(shape) * inner
    if op.endswith("conv"):
        # The kernel's lengths and channels, for each element of the value.
        return 2 * math.prod(shape) * math.prod(operands[1][:-1] if "depthwise" not in op else operands[1][:-2])
    if "conv" in op:
        # Of a gradient: as many as forward, whose value's gradient is one of the operands.
        kernel = operands[1] if op.endswith("_input") else shape
        gradient = operands[0] if op.endswith("_input") else operands[1]
        return 2 * math.prod(gradient) * math.prod(kernel[:-1] if "depthwise" not in op else kernel[:-2])
    if op in _ARRANGING or op in ("scan", "placeholder") or not operands:
        return 0
    return math.prod(operands[0]) if op in _REDUCING else math.prod(shape)
