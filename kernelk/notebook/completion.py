"""Completes the lines of kernelk's magics at the Tab key: engines, options, devices; it starts no engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from IPython import version_info
from IPython.core.interactiveshell import InteractiveShell

from .. import config
from ..backends.choosing import PRECISIONS
from ..engines import registry
from ..engines.descriptors import DEFAULT, Engine
from ..errors import KernelKError
from ..inspection.columns import COLUMNS, KINDS
from ..remote.connection_files import files
from ..session.current import existing
from .arguments import Expression, options, python_kind, takes_engines, takes_value
from .graph_magics import GraphMagics
from .inspection_magics import InspectionMagics
from .measuring_magics import MeasuringMagics

# All but %kbackend, whose class is handed in by magics.py.
_MAGICS = {
    magic.__name__: magic
    for magic in (
        MeasuringMagics.ktime,
        MeasuringMagics.kprofile,
        MeasuringMagics.kcompare,
        MeasuringMagics.kdiff,
        InspectionMagics.ktensors,
        GraphMagics.kgraph,
        GraphMagics.kshow,
    )
}
_LINE = re.compile(rf"\s*(?:\w+\s*=\s*)?%{{0,2}}(kbackend|{'|'.join(_MAGICS)})\s(.*)$", re.DOTALL)


def matcher(magics: Any) -> Any:
    """A matcher for IPython's completer that takes over the lines of these magics, and no others."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="kernelk.magics", priority=1000)  # type: ignore[untyped-decorator]
    def kernelk_magics(context: Any) -> dict[str, Any]:
        line = _LINE.match(context.line_with_cursor[: context.cursor_position])
        if line is None:
            return {"completions": [], "suppress": False}
        name, text = line.groups()
        word = re.split(r"[\s=]", text)[-1]
        before = text[: len(text) - len(word)].replace("=", " ").split()
        magic = magics.kbackend if name == "kbackend" else _MAGICS[name]
        if name == "kbackend":
            offered = list(_backend(magics, before, word))
        elif name == "ktensors":
            offered = list(_tensors(magics.shell.user_ns, before, word))
        else:
            offered = list(_compare(before, word) if name == "kcompare" else _beside_python(magic, before, word))
        # The other matchers offer nothing that belongs on these lines, and Jedi would take long to find that out.
        alone = python_kind(magic) is None or any(text.startswith(word) for text in offered)
        fitting = [SimpleCompletion(text) for text in offered if text.startswith(word)]
        if alone and not fitting:
            # A matcher without an offer suppresses none of the others, which would list every magic or Python name.
            fitting = [SimpleCompletion(word)]
        # IPython would split "cpu:0" into two words.
        return {"completions": fitting, "matched_fragment": word, "suppress": alone}

    return kernelk_magics


def _backend(magics: Any, before: list[str], word: str) -> Iterable[str]:
    last = before[-1] if before else ""
    named = next((name for name in before if registry.is_name(name)), None)
    actions = [f"--{name.replace('_', '-')}" for name in magics.actions]
    action = next((name for name in before if name in actions), None)
    if last == "--on":
        return files()
    if action is not None:
        elsewhere = action.removeprefix("--") in magics.actions_elsewhere
        if word.startswith("-"):
            return ["--on"] if elsewhere and "--on" not in before else []
        # It takes names: one, or any number of them.
        more = action in ("--stop", "--install", "--doctor") or last == "--log"
        return _engines(before, word) if more and "--on" not in before else []
    if last == "--device":
        return [*devices(named), DEFAULT]
    if last == "--threads":
        return [*_threads(), DEFAULT]
    if last == "--precision":
        engine = _descriptor(named)
        return engine.precisions if engine is not None else ()
    if named is None and not word.startswith("-"):
        return _engines(before, word)
    left_out = {*before, *(actions if before else ())}
    engine = _descriptor(named)
    if engine is None or not engine.compiles_c:
        left_out.update(("--compiler", "--no-compiler"))
    if engine is None or len(engine.precisions) == 1:
        left_out.add("--precision")
    return [name for name in options(magics.kbackend) if name not in left_out]


def _engines(before: list[str], word: str) -> list[str]:
    """The engines that aren't named yet, those on other machines that were used too; after "torch@" the clusters."""
    base, at, _ = word.partition("@")
    if at:
        return [f"{base}@{name}" for name in files() if base in registry.names()]
    session = existing()
    elsewhere = [name for name in session.hosts if "@" in name] if session is not None else []
    return [name for name in (*registry.names(), *elsewhere) if name not in before]


def _descriptor(name: str | None) -> Engine | None:
    """The engine of this name, or the active one; None where there is none of its name."""
    session = existing()
    try:
        return registry.engine(name or (session.active if session else config.chosen_backend()[0]))
    except KernelKError:
        return None


def _threads() -> list[str]:
    count = os.cpu_count() or 1
    return [str(n) for n in range(1, count + 1) if n <= 8 or n == count or not n & (n - 1)]


def _beside_python(magic: Any, before: list[str], word: str) -> Iterable[str]:
    """Options and engines; expressions, code and the values of feeds are left to IPython."""
    if word.startswith("-"):
        return options(magic) if isinstance(python_kind(magic), Expression) or not _code_begun(magic, before) else []
    if not before or any(name.startswith("--") for name in before) or not takes_engines(magic):
        return []
    return _engines(before, word)


def _code_begun(magic: Any, before: list[str]) -> bool:
    values = {index + 1 for index, name in enumerate(before) if takes_value(magic, name)}
    return any(index not in values and not name.startswith("--") for index, name in enumerate(before))


def _compare(before: list[str], word: str) -> Iterable[str]:
    last = before[-1] if before else ""
    if last == "--device":
        return devices(None)
    if last == "--threads":
        return _threads()
    if last == "--precision":
        return list(PRECISIONS)
    if last == "--on":
        return files()
    if last in ("--budget", "--sweep"):
        return []
    left = [name for name in options(MeasuringMagics.kcompare) if name not in before]
    return left if word.startswith("-") else [*_engines(before, word), *left]


def _tensors(namespace: dict[str, Any], before: list[str], word: str) -> Iterable[str]:
    last = before[-1] if before else ""
    if last == "--kind":
        return KINDS
    if last == "--sort":
        return COLUMNS
    left = [name for name in options(InspectionMagics.ktensors) if name not in before]
    # Without a session there are no tensors yet.
    names: Iterable[str] = ()
    if not word.startswith("-") and existing() is not None:
        from ..inspection.inventory import names_of

        names = [name for same in names_of(namespace).values() for name in same if " " not in name]
    return [*names, *left]


def devices(name: str | None) -> list[str]:
    """The devices of an engine (the active one by default): all of them once it has started, until then cpu:0."""
    session = existing()
    host = session.hosts.get(name or session.active) if session is not None else None
    return list(host.facts.get("devices", ())) if host is not None and host.facts else ["cpu:0"]


def load(shell: InteractiveShell, magics: Any) -> None:
    """Adds the matcher to the shell's completer, if the shell has one that takes any: Colab's IPython 7 has none."""
    completer: Any = shell.Completer
    if hasattr(completer, "custom_matchers") and version_info[0] >= 8:
        completer.custom_matchers.append(matcher(magics))


def unload(shell: InteractiveShell) -> None:
    """Removes the matcher again."""
    completer: Any = shell.Completer
    if hasattr(completer, "custom_matchers"):
        completer.custom_matchers[:] = [
            entry for entry in completer.custom_matchers if getattr(entry, "__module__", "") != __name__
        ]
