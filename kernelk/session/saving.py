"""`kernelk.save` and `kernelk.load`: the session's variables and random state as a file that numpy alone can read."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .._version import __version__
from ..arrays import Array
from ..display.tables import Rendered, Table, size
from ..errors import ArgumentError, FileError, KernelKError, LoadRefusedError, did_you_mean, one_line
from ..graph.nodes import Variable
from .current import current
from .session import Session

# The member of the file that says what the others are: JSON, as an array of one string.
_ABOUT = "kernelk"
_FORMAT = 1


class Identity(NamedTuple):
    """What a variable is known by: the name that it was given, else the line that made it."""

    kind: str  # "name" or "line"
    text: str

    def __str__(self) -> str:
        return f"variable '{self.text}'" if self.kind == "name" else f"the unnamed variable of `{self.text}`"


def _identity(variable: Variable) -> Identity:
    # Not `.name`, which counts all nodes of the process where none was given.
    return Identity("name", variable._name) if variable._name else Identity("line", variable.source.text)


def _grouped(variables: Iterable[Variable]) -> dict[Identity, list[Variable]]:
    """Live variables by identity, the newest of each first: it is what the name means today."""
    groups: dict[Identity, list[Variable]] = {}
    for variable in variables:
        groups.setdefault(_identity(variable), []).insert(0, variable)
    return groups


@dataclass(frozen=True, repr=False)
class Saved(Rendered):
    """What was written: the file, the keys of its arrays, and their bytes."""

    path: Path
    names: list[str]
    bytes: int

    def table(self) -> Table:
        """Pairs of what and how much."""
        rows = [["variables", f"{len(self.names)} ({size(self.bytes)}): {_listed(self.names)}"]]
        return Table(rows, title=f"saved to {self.path}")


@dataclass(frozen=True, repr=False)
class Loaded(Rendered, Mapping[str, Array]):
    """What a file gave: a mapping from its keys to its arrays, those without a variable here included.

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
        """Pairs of what and how much."""
        rows = [["restored", f"{len(self.restored)} ({size(self.bytes)}): {_listed(self.restored)}"]]
        if self.unused:
            rows.append(["no variable here", f"{len(self.unused)}: {_listed(self.unused)}"])
        if self.missing:
            rows.append(["not in the file", f"{len(self.missing)}, unchanged: {_listed(self.missing)}"])
        rows.append(["random state", "restored" if self.random else "unchanged"])
        return Table(rows, title=f"loaded from {self.path}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


# --- save -----------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], variables: Iterable[Variable | str] | None = None) -> Saved:
    """Writes the live variables (or those given, as variables or names) and the random state to an npz file.

    The values are of one moment. An existing file is replaced once the new one is whole. `np.load(path)` reads it: one
    array for each variable, under its name; of several with one name the newest has it, older ones are "w#2", "w#3".
    Raises ArgumentError for a name that no live variable has, FileError where the file can't be written.
    """
    place = _npz_path(path)
    session = current()
    # What only a cycle of garbage holds is no variable of the user's any more.
    gc.collect()
    with session.lock:
        session.safe_point()
        live = session.live_variables()
        chosen = live if variables is None else _chosen(variables, live)
        keys = _keys(live)
        wanted = {id(variable) for variable in chosen}
        listed = [(key, variable) for key, variable in keys if id(variable) in wanted]
        about = {
            "format": _FORMAT,
            "kernelk": __version__,
            "random": session.state.seeds.state(),
            "variables": [[key, *_identity(variable)] for key, variable in listed],
        }
        try:
            with _replacing(place) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                _write(archive, _ABOUT, np.array(json.dumps(about)))
                for key, variable in listed:
                    # One after the other: a copy of all would double the memory.
                    _write(archive, key, session.read(variable))
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileError(
                f"{place} can't be written: {reason}; nothing was saved, and an existing file is unchanged",
                next_step="use kernelk.save with another path",
            ) from error
    return Saved(place, [key for key, _ in listed], sum(variable.slots.nbytes for _, variable in listed))


def _npz_path(path: str | os.PathLike[str]) -> Path:
    try:
        place = Path(path).expanduser()
    except TypeError:
        raise ArgumentError(
            f"expected a path, not {type(path).__name__}", next_step="kernelk.save('weights.npz')"
        ) from None
    # As numpy has it.
    return place if place.suffix == ".npz" else place.with_name(place.name + ".npz")


def _chosen(given: Iterable[Variable | str], live: list[Variable]) -> list[Variable]:
    """The live variables that are meant. Raises ArgumentError."""
    if isinstance(given, (str, Variable)):
        given = [given]
    found: list[Variable] = []
    for entry in given:
        if isinstance(entry, Variable):
            named = [variable for variable in live if variable is entry]
        else:
            named = [variable for variable in live if variable.name == entry]
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
    return ArgumentError(f"no live variable is named {entry!r}", allowed=hint)


def _keys(live: list[Variable]) -> list[tuple[str, Variable]]:
    """The key in the file of each live variable, in the order in which they were made."""
    bases: dict[str, list[Variable]] = {}
    for identity, variables in _grouped(live).items():
        # zipfile ends a name at a NUL and, on Windows, takes "\\" for "/".
        base = identity.text.replace("\0", "_").replace("\\", "_") if identity.kind == "name" else ""
        bases.setdefault(base, []).extend(variables)
    keys = {id(variables[0]): base for base, variables in bases.items() if base not in ("", _ABOUT)}
    taken = {*keys.values(), _ABOUT}
    for base, variables in bases.items():
        number = 1
        for variable in variables:
            if id(variable) in keys:
                continue
            # No given name gives way to a key that is only made up.
            while (key := f"{base or 'variable'}#{number}") in taken or (number == 1 and base not in ("", _ABOUT)):
                number += 1
            taken.add(key)
            keys[id(variable)] = key
    return [(keys[id(variable)], variable) for variable in live]


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    """A new file beside `place` that takes its place at the end of the block; after an error nothing has changed."""
    place = Path(os.path.realpath(place))  # a link goes on leading to the file
    if place.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    try:
        mode = place.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    handle, name = tempfile.mkstemp(prefix=f".{place.name[:40]}-", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _write(archive: zipfile.ZipFile, key: str, array: Array) -> None:
    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


# --- load -----------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str],
    variables: Iterable[Variable | str] | Mapping[Variable | str, str] | None = None,
) -> Loaded:
    """Restores the live variables from an npz file, all of them or none, and the random state.

    A variable is found by the name that it was given, one without a name by the line that made it; several of one
    name, in the order in which they were made. `variables` restricts this to some (the random state stays then as it
    is), or says under which key each is, as {variable: key}. The result is a mapping of all arrays in the file.
    An npz file by others gives values by name. Raises FileError for a file that can't be read, LoadRefusedError where
    a shape, a dtype or a number of namesakes doesn't fit.
    """
    place = Path(path) if isinstance(path, (str, os.PathLike)) else _npz_path(path)
    place = place.expanduser()
    if not place.exists():
        place = _npz_path(place)
    values, about = _read(place)
    known = {Identity(kind, text): list[str]() for _, kind, text in about["variables"]}
    for key, kind, text in reversed(about["variables"]):
        known[Identity(kind, text)].append(key)
    session = current()
    with session.lock:
        pairs, missing = _pairs(session, values, known, variables)
        reasons = [reason for key, variable in pairs if (reason := _unfit(key, values[key], variable))]
        if reasons:
            raise LoadRefusedError(f"{place} doesn't match, nothing was changed", reasons)
        random = about["random"] if variables is None else None
        session.restore([(variable, values[key]) for key, variable in pairs], random)
    restored = [key for key, _ in pairs]
    unused = [key for key in values if key not in restored] if variables is None else []
    count = sum(variable.slots.nbytes for _, variable in pairs)
    return Loaded(place, values, restored, unused, missing, random is not None, count)


def _read(place: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a file and what it says of them. Raises FileError."""
    foreign = "load a file that kernelk.save or np.savez wrote"
    try:
        file = np.load(place, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise FileError(f"{place} contains a single array and isn't an npz file", next_step=foreign)
        archive = file.zip
        assert archive is not None
        with file:
            # By the members' whole names: numpy takes "w.npy" for "w".
            members = [name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")]
            values = {key: file[f"{key}.npy"] for key in members}
            about = values.pop(_ABOUT, None)
            if about is None:
                return values, {"random": None, "variables": [[key, "name", key] for key in values]}
            told = json.loads(str(about))
            return values, _checked(place, told, values)
    except FileNotFoundError:
        raise FileError(f"{place} doesn't exist", next_step="check the path, or run kernelk.save first") from None
    except KernelKError:
        raise
    except MemoryError as error:
        raise FileError(
            f"{place} doesn't fit into memory", next_step="use kernelk.load on a machine with more"
        ) from error
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = one_line(error)[:120] or type(error).__name__
        # numpy offers to unpickle whatever it doesn't know.
        if "pickle" in reason or "Object arrays" in reason:
            reason = "it contains Python objects, or isn't an npz file"
        raise FileError(f"{place} can't be read: {reason}; nothing was changed", next_step=foreign) from error


def _checked(place: Path, told: Any, values: dict[str, Array]) -> dict[str, Any]:
    """What the file says of itself, if it is as `save` writes it. Raises FileError or ValueError."""
    if told["format"] > _FORMAT:
        raise FileError(f"{place} was written by kernelk {told['kernelk']}", next_step="pip install --upgrade kernelk")
    random = told["random"]
    numbers = [random[name] for name in ("entropy", "count", "fixed", "counter")]
    if not all(type(number) is int and number >= 0 for number in numbers) or max(numbers[2:]) >= 2**64:
        raise ValueError("its random state is damaged")
    if sorted(key for key, _, _ in told["variables"]) != sorted(values):
        raise ValueError("the arrays in it aren't those that it lists")
    return dict(told)


def _pairs(
    session: Session,
    values: dict[str, Array],
    known: dict[Identity, list[str]],
    given: Iterable[Variable | str] | Mapping[Variable | str, str] | None,
) -> tuple[list[tuple[str, Variable]], list[str]]:
    """Which key goes into which variable, and the names of variables that the file hasn't."""
    live = session.live_variables()
    if isinstance(given, Mapping):
        pairs = []
        for entry, key in given.items():
            if key not in values:
                raise ArgumentError(f"the file has no array {key!r}", allowed=f"it has {_listed(list(values))}")
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
        reasons += [f"the file has no variable '{name}'; it has {_listed(list(values))}" for name in missing]
    if reasons:
        raise LoadRefusedError("nothing was loaded", reasons)
    return pairs, missing


def _unfit(key: str, value: Array, variable: Variable) -> str | None:
    """Why the value can't be the variable's, None if it can."""
    if value.shape == variable.shape and value.dtype.name == variable.dtype:
        return None
    return (
        f"'{key}' is {value.dtype.name}{value.shape}, but variable '{variable.name}' ({variable.source}) is "
        f"{variable.dtype}{variable.shape}"
    )
