"""Collects a session's tensors by their notebook names, for `%ktensors` and the panel; keeps nothing alive.

`Row.as_dict` is what the panel's front end reads, strict JSON:

    key          int     a tensor's number (0 or more), a K.function's negative one; the same for the whole session
    kind         str     "variable", "placeholder", "tensor" or "function"
    names        [str]   the notebook's names for it: "y", "layers[0]", "d['w']"; in the notebook's order, may be empty
    name         str     its own name: "softmax_11", or what it was given
    op           str     "softmax"; "variable", "placeholder", "constant" ...; "function"
    shape        [int | null] | null    null within: unknown until a call; null: a function has none
    dtype        str | null             null: a function has none
    device       str     the active engine's device ("cpu:0") where the engine has it or computes it, else "kernel"
    bytes        int | null             of the value; null where its size isn't known
    fed          [int] | null           a placeholder's last fed shape
    source       {"place": "cell 3", "cell": 3 | null, "line": 2, "text": "y = K.dot(x, w)"}    cell null: a file
    signature    str | null             of a function: "(x(None, 2)) -> (float32(None, 10)), 2 updates"
    shown        bool    whether a value of it has been shown, which a swap computes again
    reevaluated  {"from": "numpy", "to": "cntk", "difference": 1.2e-07} | null
                         that the last swap did so; the largest absolute difference may be "Infinity"
"""

from __future__ import annotations

import itertools
import linecache
import math
import re
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, joined
from ..graph.nodes import Placeholder, Tensor, Variable
from ..graph.state import current_state
from ..program.program import KEY_LENGTH
from ..session.function import Function
from ..session.session import Session
from ..session.targets import parts_of
from ..source import PACKAGE, Lines, place

# Names that IPython keeps for itself: results, inputs and their lists.
_IPYTHONS = re.compile(r"_{1,3}|_\d+|_i{1,3}|_i\d+|_ih|_oh|_dh|__\w+__")
# At most so many entries of a list are searched; one without a tensor among its first entries counts as having none.
_FIRST, _MOST = 1000, 100_000
_LONGEST_KEY = 60

_ITEMSIZE = {name: np.dtype(name).itemsize for name in ("float16", "float32", "float64", "bool")}


class Row(NamedTuple):
    """One tensor or function; see the module's docstring. `ref()` is the object itself, None once it is gone.

    `cell` is 0 where the source isn't a notebook's; `difference` None where the last swap didn't evaluate it again.
    """

    key: int
    kind: str
    names: tuple[str, ...]
    name: str
    op: str
    shape: tuple[int | None, ...] | None
    dtype: str
    device: str
    bytes: int | None
    fed: tuple[int, ...] | None
    cell: int
    line: int
    signature: str
    shown: bool
    difference: float | None
    swap: tuple[str, str] | None
    ref: weakref.ref[Any]
    file: str

    @property
    def label(self) -> str:
        """The first name in the notebook, else its own."""
        return self.names[0] if self.names else self.name

    @property
    def place(self) -> str:
        """The cell or file of the line: "cell 3", or the file's name."""
        return place(self.file, self.cell)

    @property
    def text(self) -> str:
        """The source line, stripped; empty where it isn't known."""
        return linecache.getline(self.file, self.line).strip()

    def as_dict(self) -> dict[str, Any]:
        """Strict JSON, as the module's docstring describes it."""
        reevaluated = None
        if self.difference is not None and self.swap is not None:
            origin, target = self.swap
            reevaluated = {"from": origin, "to": target, "difference": number(self.difference)}
        return {
            "key": self.key,
            "kind": self.kind,
            "names": list(self.names),
            "name": self.name,
            "op": self.op,
            # A dimension is an int with more to it, which marimo would send as an object.
            "shape": None if self.shape is None else [None if n is None else int(n) for n in self.shape],
            "dtype": self.dtype or None,
            "device": self.device,
            "bytes": self.bytes,
            "fed": None if self.fed is None else list(self.fed),
            "source": {"place": self.place, "cell": self.cell or None, "line": self.line, "text": self.text},
            "signature": self.signature or None,
            "shown": self.shown,
            "reevaluated": reevaluated,
        }


def number(value: float | int | None) -> float | int | str | None:
    """A number as strict JSON and JavaScript hold it: what they can't ("NaN", "-Infinity", 2**60) is a string."""
    if isinstance(value, int):
        return value if abs(value) <= 2**53 else str(value)
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def rows(session: Session, namespace: Mapping[str, Any]) -> list[Row]:
    """All live variables and K.functions, their placeholders, and what `namespace` names; oldest first, functions last.

    Starts and asks no engine. Tensors from before `K.clear_session()` are left out; `stale_names` has theirs.
    """
    with session.lock:
        objects = _living(session, namespace)
        return _rows(session, objects)


def checked_namespace(namespace: Any, asker: str, next_step: str) -> Mapping[str, Any]:
    """`namespace` if it maps names to values. Raises ArgumentError, in the name of `asker`."""
    if not isinstance(namespace, Mapping):
        raise ArgumentError(
            f"{asker}: {type(namespace).__name__} is no namespace",
            allowed="it maps names to values, as globals() does",
            next_step=next_step,
        )
    return namespace


def notebook_namespace() -> Mapping[str, Any]:
    """Where the user's names are: the shell's namespace, else that of the module or marimo cell that called kernelk."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        namespace: Mapping[str, Any] = shell.user_ns
        return namespace
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_globals


def names_of(namespace: Mapping[str, Any]) -> dict[int, list[str]]:
    """The notebook's names of each tensor and function, by its key."""
    names: dict[int, list[str]] = {}
    for name, value in _named(namespace):
        names.setdefault(value.uid, []).append(name)
    return names


def stale_names(namespace: Mapping[str, Any]) -> list[str]:
    """The names whose tensors and functions belong to a session that `K.clear_session()` ended."""
    return [name for name, value in _named(namespace) if is_stale(value)]


def is_stale(value: Tensor | Function) -> bool:
    """Whether it is from before the last `K.clear_session()`, or of another session."""
    generation = current_state().generation
    return any(tensor.generation is not generation for tensor in _tensors(value))


def stale_reason(value: Tensor | Function) -> str:
    """Returns why a stale tensor or function can't be used, with the next step."""
    if _is_foreign(value):
        return joined("of another session of this process", next_step="make it again in this one")
    return joined("from before K.clear_session()", next_step="run its cells again")


def _is_foreign(value: Tensor | Function) -> bool:
    """Whether it belongs to another session that is still alive."""
    here = current_state().generation
    return any(x.generation is not here and not x.generation.ended for x in _tensors(value))


def _tensors(value: Tensor | Function) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [*value.inputs, *value.outputs, *(variable for variable, _ in value.updates)]


def kind_of(value: Tensor | Function) -> str:
    """Returns which of the four kinds it is."""
    if isinstance(value, Variable):
        return "variable"
    if isinstance(value, Placeholder):
        return "placeholder"
    return "tensor" if isinstance(value, Tensor) else "function"


def _named(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each tensor and function of this session, or a cleared one, with each of its names.

    Those in lists, tuples and dicts one level deep, and a model's, are included. Another session's are not: it numbers
    its own.
    """
    return ((name, value) for name, value in _held(namespace) if not _is_foreign(value))


def _held(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in list(namespace.items()):
        if _IPYTHONS.fullmatch(name):
            continue
        if isinstance(value, (Tensor, Function)):
            yield name, value
        elif isinstance(value, (list, tuple, dict)) and name not in ("In", "Out"):
            yield from _inside(name, value)
        else:
            yield from ((f"{name}{part}", inner) for part, inner in parts_of(value).items())


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    # The plain types' own methods: a subclass may have its reasons to do more.
    entries: Iterator[tuple[Any, Any]]
    if isinstance(value, dict):
        entries = iter(dict.items(value))
    else:
        entries = enumerate(list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value))
    first = list(itertools.islice(entries, _FIRST))
    kept = [entry for entry in first if isinstance(entry[1], (Tensor, Function))]
    if kept and len(first) == _FIRST:
        more = list(itertools.islice(entries, _MOST - _FIRST))
        kept += [entry for entry in more if isinstance(entry[1], (Tensor, Function))]
    for key, entry in kept:
        yield f"{name}[{_key(key)}]", entry


def _key(key: Any) -> str:
    # Any other object's text may be of any length and its own doing.
    text = repr(key) if type(key) in (int, str, bool, float, bytes) else "..."
    return text if len(text) <= _LONGEST_KEY else f"{text[:_LONGEST_KEY]}..."


def _living(session: Session, namespace: Mapping[str, Any]) -> list[tuple[Any, list[str]]]:
    objects: dict[int, tuple[Any, list[str]]] = {}
    for name, value in _named(namespace):
        if value.uid in objects:
            objects[value.uid][1].append(name)
        elif not is_stale(value):
            objects[value.uid] = (value, [name])
    for variable in session.live_variables():
        if variable.uid not in objects and variable.generation is session.state.generation:
            objects[variable.uid] = (variable, [])
    for function in list(session.functions):
        if function.uid not in objects:
            objects[function.uid] = (function, [])
        for x in function.placeholders:
            if x.uid not in objects:
                objects[x.uid] = (x, [])
    # Functions are numbered downwards.
    return [objects[key] for key in sorted(objects, key=lambda key: (key < 0, abs(key)))]


def _rows(session: Session, objects: list[tuple[Any, list[str]]]) -> list[Row]:
    host = session.hosts.get(session.active)
    device, versions, compiled = "kernel", {}, set()
    if host is not None and host.started:
        device = str(host.facts.get("device") or host.engine.name)
        if host.engine.on:
            device += f"@{host.engine.on}"
        versions = host.versions
        compiled = {key[:KEY_LENGTH] for key in host.compiled}
    shown = {tensor.uid: entry.value.nbytes for tensor, entry in list(session.shown.items())}
    differences: dict[int, float] = {}
    swap: tuple[str, str] | None = None
    if session.swaps:
        last = session.swaps[-1]
        swap = (last.origin, last.target)
        differences = {entry.key: entry.difference for entry in last.reevaluated}
    lines = Lines()
    rows = []
    for value, names in objects:
        kind = kind_of(value)
        key, source = value.uid, value.source
        shape, dtype, fed, bytes_, signature, where = None, "", None, None, "", device
        if kind == "function":
            op, signature = "function", value.signature
            where = device if compiled and not compiled.isdisjoint(value.keys) else "kernel"
        else:
            op, shape, dtype = value.op, value.shape, value.dtype
            if kind == "variable":
                slots = value.slots
                where = device if versions.get(slots.number) == slots.version else "kernel"
            elif kind == "placeholder":
                fed, where = value.fed_shape, "kernel"
            elif op == "constant":
                where = "kernel"
            bytes_ = _bytes(fed if fed is not None else shape, dtype)
            if bytes_ is None:
                bytes_ = shown.get(key)
        rows.append(
            Row(
                key,
                kind,
                tuple(names),
                value.name,
                op,
                shape,
                dtype,
                where,
                bytes_,
                fed,
                source.cell,
                lines.line(source),
                signature,
                key in shown,
                differences.get(key),
                swap,
                weakref.ref(value),
                source.code.co_filename,
            )
        )
    return rows


def _bytes(shape: tuple[int | None, ...] | None, dtype: str) -> int | None:
    if shape is None or None in shape:
        return None
    size = _ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize
    return size * math.prod(shape)  # type: ignore[arg-type]
