"""`kernelk.save` and `kernelk.load`: the session's variables and random state as a file that numpy alone can read."""

from __future__ import annotations

import gc
import json
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import files
from .._version import __version__
from ..arrays import Array
from ..display.tables import Rendered, Table, plain, size
from ..engines.interrupts import shield
from ..errors import ArgumentError, FileError, KernelKError, LoadRefusedError, did_you_mean, printable
from ..graph.nodes import Variable
from .archive import ABOUT, FORMAT, Archive, named_reason
from .current import current
from .session import Session

# A longer name is kept in full only in the file's own list: names in a zip file end at 65,535 bytes.
_LONGEST_KEY = 1000


class Identity(NamedTuple):
    """Identifies a variable: by the name that it was given, else by the line that made it."""

    kind: str  # "name" or "line"
    text: str

    def __str__(self) -> str:
        return f"variable '{self.text}'" if self.kind == "name" else f"the unnamed variable of `{self.text}`"


def _identity(variable: Variable) -> Identity:
    # Not `.name`, which counts all nodes of the process where none was given.
    return Identity("name", variable._name) if variable._name else Identity("line", variable.source.text)


def _grouped(variables: Iterable[Variable]) -> dict[Identity, list[Variable]]:
    """Live variables by identity, the newest of each first: the name now stands for that one."""
    groups: dict[Identity, list[Variable]] = {}
    for variable in variables:
        groups.setdefault(_identity(variable), []).insert(0, variable)
    return groups


@dataclass(frozen=True, repr=False)
class Saved(Rendered):
    """The result of `save`: the file, the keys of its arrays, and their bytes."""

    path: Path
    names: list[str]
    bytes: int

    def table(self) -> Table:
        """Pairs of a heading and the names under it."""
        rows = [["variables", f"{len(self.names)} ({size(self.bytes)}): {_listed(self.names)}"]]
        return Table(rows, title=f"saved to {printable(self.path)}")


@dataclass(frozen=True, repr=False)
class Loaded(Rendered, Mapping[str, Array]):
    """The result of `load`: a mapping from the file's keys to its arrays, those without a variable here included.

    `restored`: the keys whose values went into variables. `unused`: keys that no variable here is known by.
    `missing`: variables here that the file doesn't have; they keep their values. `random`: whether the next draws are
    those that would have followed when the file was written.
    """

    path: Path
    values_by_name: dict[str, Array]
    restored: list[str]
    unused: list[str]
    missing: list[str]
    random: bool
    bytes: int = field(default=0)

    def __getitem__(self, key: str) -> Array:
        return self.values_by_name[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def table(self) -> Table:
        """Pairs of a heading and the names under it."""
        rows = [["restored", f"{len(self.restored)} ({size(self.bytes)}): {_listed(self.restored)}"]]
        if self.unused:
            rows.append(["no variable here", f"{len(self.unused)}: {_listed(self.unused)}"])
        if self.missing:
            rows.append(["not in the file", f"{len(self.missing)}, unchanged: {_listed(self.missing)}"])
        rows.append(["random state", "restored" if self.random else "unchanged"])
        return Table(rows, title=f"loaded from {printable(self.path)}")


def _listed(names: list[str]) -> str:
    return ", ".join(map(plain, names[:8])) + (", ..." if len(names) > 8 else "") if names else "none"


# --- save -----------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], variables: Iterable[Variable | str] | None = None) -> Saved:
    """Writes the live variables (or those given, as variables or names) and the random state to an npz file.

    All values are of the same moment. An existing file is replaced once the new one is complete. `np.load(path)` reads
    it: one array for each variable, under its name; if several have the same name, the newest keeps it and older ones
    are "w#2", "w#3". Raises ArgumentError for a name that no live variable has, FileError if the file can't be written.
    """
    target = _named(path, "kernelk.save('weights.npz')")
    if target.suffix in _FOREIGN:
        raise FileError(
            f"{_shown(target)} would not be a {target.suffix} file, nothing was saved",
            allowed="kernelk saves npz files",
            next_step=f"kernelk.save({str(target.with_suffix('.npz'))!r})",
        )
    if os.path.isdir(target):
        raise FileError(
            f"{_shown(target)} can't be written: it is a folder; nothing was saved",
            next_step=f"kernelk.save({str(target / 'weights.npz')!r})",
        )
    target = _npz_path(target)
    session = current()
    # A variable that only a garbage cycle holds is no longer the user's. Engines have callbacks of the collector's, in
    # which Ctrl-C would be lost.
    with shield():
        gc.collect()
    with session.lock:
        session.safe_point()
        live = session.live_variables()
        chosen = live if variables is None else _chosen(variables, live)
        session.calls.fetch([variable.slots for variable in chosen])
        keys = _keys(live)
        wanted = {id(variable) for variable in chosen}
        listed = [(key, variable) for key, variable in keys if id(variable) in wanted]
        about = {
            "format": FORMAT,
            "kernelk": __version__,
            "random": session.state.seeds.settled(),
            "variables": [[key, *_identity(variable)] for key, variable in listed],
        }
        try:
            with files.replacing(target) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                _write(archive, ABOUT, np.array(json.dumps(about)))
                for key, variable in listed:
                    # One at a time: copying all at once would double the memory.
                    _write(archive, key, session.read(variable))
        except KernelKError:
            raise
        except (OSError, ValueError, RuntimeError, MemoryError, struct.error) as error:
            raise FileError(
                f"{_shown(target)} can't be written: {named_reason(error)}; nothing was saved, and an existing file is "
                "unchanged",
                next_step="use kernelk.save with another path",
            ) from error
    return Saved(target, [key for key, _ in listed], sum(variable.slots.nbytes for _, variable in listed))


def _named(path: str | os.PathLike[str], example: str) -> Path:
    """The path of a file. Raises ArgumentError for what is no path, FileError for one that names no file."""
    try:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError
    except TypeError:
        raise ArgumentError(f"expected a path, not {type(path).__name__}", next_step=example) from None
    # Which leaves "~nobody" as it is, as a shell does.
    expanded = Path(os.path.expanduser(text))
    if not expanded.name:
        raise FileError(f"{text!r} names no file", next_step=example)
    return expanded


# What other programs would take a file for.
_FOREIGN = frozenset(
    [
        *(".h5", ".hdf5", ".keras", ".pkl", ".pickle", ".pt", ".pth", ".ckpt"),
        *(".safetensors", ".onnx", ".npy", ".json", ".mat", ".csv", ".zip"),
    ]
)


def _npz_path(path: Path) -> Path:
    """The path with numpy's suffix, added if it is missing."""
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def _shown(path: Path) -> str:
    return printable(path, 300)


def _chosen(given: Iterable[Variable | str], live: list[Variable]) -> list[Variable]:
    """The live variables that are meant. Raises ArgumentError."""
    if isinstance(given, (str, Variable)):
        given = [given]
    if not isinstance(given, Iterable):
        raise ArgumentError(
            f"variables: expected variables or their names, not {type(given).__name__}",
            next_step="variables=[w]",
        )
    found: list[Variable] = []
    for entry in given:
        if isinstance(entry, Variable):
            named = [variable for variable in live if variable is entry]
        elif not isinstance(entry, str):
            raise ArgumentError(
                f"variables: {type(entry).__name__} isn't a variable",
                allowed="each must be one that K.variable has made, or its name",
                next_step="variables=[w]",
            )
        else:
            named = [variable for variable in live if variable.name == entry]
            # Without a name, what `save` has called it.
            named = named or [variable for key, variable in _keys(live) if key == entry]
        if not named:
            raise _unknown(entry, [variable.name for variable in live])
        found += named
    return found


def _unknown(entry: Variable | str, names: list[str]) -> ArgumentError:
    if isinstance(entry, Variable):
        return ArgumentError(
            f"variable '{entry.name}' is from before K.clear_session()", next_step="run the cells that make it again"
        )
    hint = did_you_mean(str(entry), names).strip() or f"there are {_listed(names)}"
    return ArgumentError(
        f"no live variable is named {entry!r}", allowed=hint, next_step="kernelk.tensors() lists them all"
    )


def _keys(live: list[Variable]) -> list[tuple[str, Variable]]:
    """The key in the file of each live variable, in the order in which they were made."""
    bases: dict[str, list[Variable]] = {}
    for identity, variables in _grouped(live).items():
        base = _member_name(identity.text) if identity.kind == "name" else ""
        bases.setdefault(base, []).extend(variables)
    keys = {id(variables[0]): base for base, variables in bases.items() if base not in ("", ABOUT)}
    taken = {*keys.values(), ABOUT}
    for base, variables in bases.items():
        number = 1
        for variable in variables:
            if id(variable) in keys:
                continue
            # A generated key must not displace a name that the user gave.
            while (key := f"{base or 'variable'}#{number}") in taken or (number == 1 and base not in ("", ABOUT)):
                number += 1
            taken.add(key)
            keys[id(variable)] = key
    return [(keys[id(variable)], variable) for variable in live]


def _member_name(name: str) -> str:
    """A variable's name as a zip file takes it."""
    # zipfile ends a name at a NUL and, on Windows, takes "\\" for "/"; half a character can't be encoded.
    name = name.replace("\0", "_").replace("\\", "_").encode("utf-8", "replace").decode()
    return name if len(name) <= _LONGEST_KEY else f"{name[:_LONGEST_KEY]}..."


def _write(archive: zipfile.ZipFile, key: str, array: Array) -> None:
    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


# --- load -----------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str],
    variables: Iterable[Variable | str] | Mapping[Variable | str, str] | None = None,
) -> Loaded:
    """Restores the live variables from an npz file, all of them or none, and the random state.

    A variable is found by the name that it was given, or, without one, by the line that made it; several with the same
    name, in the order in which they were made. `variables` restricts this to some (the random state then stays as it
    is), or maps each to its key, as {variable: key}. The result maps the keys in the file to their arrays; with
    `variables`, only theirs are read. In an npz file that kernelk didn't write, values are found by name. Raises
    FileError for a file that can't be read, LoadRefusedError if a shape, a dtype or a number of namesakes doesn't fit.
    """
    source = _named(path, "kernelk.load('weights.npz')")
    if not files.exists(source):
        source = _npz_path(source)
    session = current()
    with Archive(source) as archive, session.lock:
        known: dict[Identity, list[str]] = {}
        for key, kind, text in reversed(archive.about.variables):
            known.setdefault(Identity(kind, text), []).append(key)
        pairs, missing = _pairs(session, archive.keys, known, variables)
        # Checked by the arrays' headers: nothing is read that doesn't fit.
        reasons = [reason for key, variable in pairs if (reason := _unfit(key, archive, variable))]
        if reasons:
            raise LoadRefusedError(f"{_shown(source)} doesn't match, nothing was changed", reasons)
        values = archive.read(archive.keys if variables is None else [key for key, _ in pairs])
        random = archive.about.random if variables is None else None
        session.restore([(variable, values[key]) for key, variable in pairs], random)
    restored = [key for key, _ in pairs]
    unused = [key for key in values if key not in restored] if variables is None else []
    count = sum(variable.slots.nbytes for _, variable in pairs)
    return Loaded(source, values, restored, unused, missing, random is not None, count)


def _pairs(
    session: Session,
    file_keys: list[str],
    known: dict[Identity, list[str]],
    given: Iterable[Variable | str] | Mapping[Variable | str, str] | None,
) -> tuple[list[tuple[str, Variable]], list[str]]:
    """Returns pairs of a key and its variable, and the names of variables that the file doesn't have."""
    live = session.live_variables()
    if isinstance(given, Mapping):
        pairs = []
        for entry, key in given.items():
            if key not in file_keys:
                raise ArgumentError(f"the file has no array {key!r}", allowed=f"it has {_listed(file_keys)}")
            pairs += [(key, variable) for variable in _chosen([entry], live)]
        return pairs, []
    wanted = {id(variable) for variable in (live if given is None else _chosen(given, live))}
    pairs, missing, reasons = [], [], []
    for identity, namesakes in _grouped(live).items():
        keys = known.get(identity, [])
        if not wanted.intersection(map(id, namesakes)):
            continue
        if keys and len(keys) != len(namesakes):
            reasons.append(
                f"{identity} matches {len(keys)} in the file ({_listed(keys)}) and {len(namesakes)} here: say which "
                f"with kernelk.load(path, variables={{variable: {keys[0]!r}}})"
            )
            continue
        missing += [variable.name for variable in namesakes if not keys and id(variable) in wanted]
        pairs += [(key, variable) for key, variable in zip(keys, namesakes) if id(variable) in wanted]
    if missing and given is not None:
        reasons += [f"the file has no variable '{name}'; it has {_listed(file_keys)}" for name in missing]
    if reasons:
        raise LoadRefusedError("nothing was loaded", reasons)
    return pairs, missing


def _unfit(key: str, archive: Archive, variable: Variable) -> str | None:
    """Returns why the array can't be the variable's value; None if it can."""
    there = archive.head(key)
    if there.shape == variable.shape and there.dtype.name == variable.dtype:
        return None
    return (
        f"'{plain(key)}' is {there.dtype.name}{there.shape}, but variable '{variable.name}' ({variable.source}) is "
        f"{variable.dtype}{variable.shape}"
    )
