"""An engine's options (device, threads, precision, placement, compiler), checked before any engine is started."""

from __future__ import annotations

import difflib
import operator
import os
import re
from typing import Any

from ..backends.choosing import FLOAT32, PRECISIONS, chosen_device, chosen_precision
from ..backends.errors import OptionError
from ..errors import ArgumentError
from ..twins import as_typed, option
from . import registry
from .descriptors import DEFAULT, Engine
from .host import Host, refused_option

# What else the precisions are called; of the other formats, which their letters are near to, none is meant.
_MEANT: dict[str, str] = {
    **dict.fromkeys(("32", "fp32", "f32", "single", "float", "full", "highest"), FLOAT32[0]),
    **dict.fromkeys(("tensorfloat", "tensorfloat32"), "tf32"),
    **dict.fromkeys(("bf16", "brainfloat16"), "bfloat16"),
    **dict.fromkeys(("16", "fp16", "f16", "float16", "half"), ""),
}


def most_threads() -> int:
    """The largest number of threads that may be asked for: more than the processors may make sense, 1000 doesn't."""
    return max(16, 4 * (os.cpu_count() or 1))


def requested_options(
    engine: Engine,
    device: Any = None,
    threads: Any = None,
    in_kernel: bool | None = None,
    compiler: bool | None = None,
    precision: Any = None,
) -> dict[str, Any]:
    """The options of an engine that a user wants changed; None leaves one as it is, "default" resets it.

    In the result None means reset. Raises ArgumentError for a value that no engine, or not this one, can take.
    """
    changes: dict[str, Any] = {}
    if device is not None:
        if not isinstance(device, str) or not device.strip():
            raise ArgumentError(
                f"{option('device', device)} isn't allowed",
                allowed="allowed is a device's name such as cpu:0",
                next_step=as_typed(f"%kbackend {engine.name} --device {DEFAULT}"),
            )
        changes["device"] = None if device == DEFAULT else device.strip()
    if threads is not None:
        changes["threads"] = None if threads == DEFAULT else _threads(engine, threads)
    if precision is not None:
        changes["precision"] = _precision(engine, precision)
    if in_kernel is not None:
        if not isinstance(in_kernel, bool):
            raise ArgumentError(f"in_kernel={in_kernel!r} isn't allowed", allowed="allowed are True, False and None")
        if in_kernel and engine.on:
            raise ArgumentError(
                f"{engine.title} can't run in the notebook's own process, since it is on another machine",
                next_step=as_typed(f"%kbackend {engine.base} --in-kernel"),
            )
        changes["in_kernel"] = None if in_kernel == engine.in_kernel else in_kernel
    if compiler is not None:
        if not isinstance(compiler, bool):
            raise ArgumentError(f"compiler={compiler!r} isn't allowed", allowed="allowed are True, False and None")
        if not engine.compiles_c:
            allowed = registry.names_where(lambda engine: engine.compiles_c)
            raise ArgumentError(
                f"{engine.title} compiles no C code",
                allowed=f"only {', '.join(allowed)} takes this option",
                next_step=as_typed(f"%kbackend {engine.name}"),
            )
        changes["compiler"] = None if compiler else ""
    return changes


def _threads(engine: Engine, threads: Any) -> int:
    try:
        if isinstance(threads, bool):
            raise TypeError
        count = int(threads) if isinstance(threads, str) else operator.index(threads)
    except (TypeError, ValueError):
        count = 0
    # How many make sense on another machine is known there.
    if count < 1 or (count > most_threads() and not engine.on):
        processors = os.cpu_count() or 1
        raise ArgumentError(
            f"{option('threads', threads)} isn't allowed",
            allowed=f"allowed are 1 to {most_threads()} (this machine has {processors} processors) and '{DEFAULT}'",
            next_step=as_typed(f"%kbackend {engine.name} --threads {DEFAULT}"),
        )
    return count


def known_precision(precision: Any) -> str:
    """A precision that some engine has, or "default". Raises ArgumentError, with no command to follow."""
    if not isinstance(precision, str) or precision not in (*PRECISIONS, DEFAULT):
        meant = meant_precision(precision)
        hint = f"did you mean '{meant}'? " if meant else ""
        raise ArgumentError(
            f"{option('precision', precision)} isn't allowed",
            allowed=f"{hint}allowed are {', '.join(PRECISIONS)} and '{DEFAULT}'",
        )
    return precision


def meant_precision(given: Any) -> str:
    """The precision that is meant by another name of it or a misspelling; "" where none is."""
    # The last word of "<class 'numpy.float32'>", and what is left of "TF-32".
    word = (re.findall(r"[a-z0-9]+", re.sub(r"[-_ ]", "", str(given).lower())) or [""])[-1]
    if (known := _MEANT.get(word)) is not None:
        return known
    near = difflib.get_close_matches(word, (*PRECISIONS, DEFAULT), n=1, cutoff=0.6)
    # Another number is another format, however near its letters are: float64 isn't a misspelt float32.
    numbers = re.findall(r"\d+", word)
    return near[0] if near and (not numbers or numbers == re.findall(r"\d+", near[0])) else ""


def _precision(engine: Engine, precision: Any) -> str | None:
    """The precision to ask for; None for float32, which an engine has unless it is asked for another."""
    default = FLOAT32[0]
    try:
        known_precision(precision)
    except ArgumentError as error:
        meant = meant_precision(precision)
        suggested = meant if meant in engine.precisions else default
        error.next_step = as_typed(f"%kbackend {engine.name} --precision {suggested}")
        raise
    if precision not in (DEFAULT, default, *engine.precisions):
        others = registry.names_where(lambda engine: precision in engine.precisions)
        raise ArgumentError(
            f"{engine.title} has no {precision}",
            allowed=f"allowed {'is' if len(engine.precisions) == 1 else 'are'} {', '.join(engine.precisions)}, and "
            f"{precision} on {', '.join(others)}",
            next_step=as_typed(f"%kbackend {engine.name} --precision {default}"),
        )
    return None if precision in (DEFAULT, default) else str(precision)


def changed_options(options: dict[str, Any], changes: dict[str, Any], host: Host | None) -> dict[str, Any]:
    """The options after these changes. A running host knows its devices; no engine is started to find out.

    Raises ArgumentError for a device that it doesn't have, and for a precision that its device doesn't have.
    """
    options = {name: value for name, value in {**options, **changes}.items() if value is not None}
    here = host is not None and host.started and (host.placement == "kernel") == host.engine.runs_in_kernel(options)
    if host is not None and here and changes.get("device") is not None and host.facts.get("devices"):
        facts = host.facts
        try:
            options["device"] = chosen_device(
                host.engine.title, host.engine.name, options, facts["devices"], facts["device"]
            )
        except OptionError as error:
            raise refused_option(error) from None
    # Another device's are known once the engine runs on it.
    if host is not None and here and options.get("device") == host.options.get("device"):
        facts = host.facts
        available = facts.get("precisions") or FLOAT32
        try:
            chosen_precision(host.engine.title, host.engine.name, options, facts.get("device"), available)
        except OptionError as error:
            raise refused_option(error) from None
    return options


def runs_with(host: Host | None, options: dict[str, Any]) -> bool:
    """Whether a host already has these options: it was started with them, or chose the same values itself."""
    if host is None or not host.started:
        return False
    differing = {name for name in {*host.options, *options} if host.options.get(name) != options.get(name)}
    # In the notebook's own process a number of threads that isn't asked for follows the user's own setting.
    if host.placement == "kernel" or not differing <= {"device", "threads"}:
        return not differing
    return all(name in options and host.facts.get(name) == options[name] for name in differing)


def check_honoured(host: Host, options: dict[str, Any]) -> None:
    """Raises ArgumentError if a host that has just been started reports another number of threads or precision."""
    precision = options.get("precision")
    if precision is not None and host.facts.get("precision") != precision:
        raise ArgumentError(
            f"{host.engine.title} can't be given {precision} here: it says {host.facts.get('precision') or 'nothing'}",
            next_step=as_typed(f"%kbackend {host.engine.name} --precision {FLOAT32[0]}"),
        )
    threads = options.get("threads")
    used = host.facts.get("threads")
    if threads is not None and used != threads:
        says = "doesn't say how many it uses" if used is None else f"uses {used}"
        raise ArgumentError(
            f"{host.engine.title} can't be given {threads} threads here: it {says}",
            next_step=as_typed(f"%kbackend {host.engine.name} --threads {DEFAULT}"),
        )
