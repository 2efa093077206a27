"""The program `kernelk`: parses its command line and calls the packages that do the work (manage, measure).

Every problem is one line on standard error and exit status 1, without a traceback.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from .._version import __version__
from ..display.progress import Progress
from ..engines import registry
from ..engines.descriptors import Engine
from ..environments import bundles, keras2
from ..environments.recipes import RECIPES
from ..errors import ArgumentError, InstallError, KernelKError, UnknownBackendError, joined, one_line
from ..manage.install import BUILDS, install, uninstall
from ..manage.states import states


def _say(text: str) -> None:
    print(text, flush=True)  # at once: a notebook's `!kernelk install` shows progress through a pipe


def _complain(text: str) -> None:
    print("kernelk: " + one_line(text), file=sys.stderr, flush=True)


# The help of an option that several commands have.
_ON = "not here, but on the machines of this ipyparallel cluster or profile"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        step = "`kernelk --help`"
        if message.startswith("unrecognized") and "--on" in message.split():
            step = "name engines with their cluster, as in `kernelk compare script.py torch@NAME`"
        _complain(joined(message, next_step=step))
        raise SystemExit(1)


def _check_name(name: str, command: str) -> None:
    """Takes an engine's name, and that of Keras 2 where it can be installed or removed.

    Raises UnknownBackendError with the command that was meant, if one is near.
    """
    known = list(dict.fromkeys([*RECIPES, *registry.names(), *BUILDS]))
    if command in ("install", "uninstall"):
        known.append(keras2.NAME)
    if name.partition("@")[0] not in known:
        hint = registry.near(name, known, f"`kernelk {command} {{}}`")
        raise UnknownBackendError(
            f"unknown engine {name!r}",
            allowed=f"{hint}available are {', '.join(sorted(known))}",
            next_step="`kernelk list`",
        )


def _engine(name: str, command: str) -> Engine:
    """The engine of that name. Raises as `_check_name`."""
    _check_name(name, command)
    base, at, place = name.partition("@")
    return registry.engine(f"{BUILDS.get(base, base)}{at}{place}")


def _each(names: Sequence[str], command: str, work: Callable[[str], object]) -> int:
    """Does the work for each engine; one that fails doesn't stop the others."""
    failed = False
    for name in dict.fromkeys(names):
        try:
            _check_name(name, command)
            work(name)
        except KernelKError as error:
            failed = True
            _complain(str(error))
    return 1 if failed else 0


def _install(names: Sequence[str], rebuild: bool, bundle: str | None, on: str | None) -> int:
    if bundle is not None and on is not None:
        raise ArgumentError(
            "install: a bundle installs on the machine that it lies on, so --from and --on exclude each other",
            next_step=f"copy it to {on}, and there: `kernelk install --from {bundle}`",
        )
    if bundle is not None:
        bundles.install(Path(bundle), names, rebuild=rebuild)
        return 0
    if not names:
        _complain(joined("install: name an engine, or a bundle with --from", next_step="`kernelk list`"))
        return 1
    return _each(names, "install", lambda name: install(name, Progress(), rebuild, on))


def _list(on: str | None) -> int:
    if on is None:
        states(_say)
        return 0
    from ..manage.elsewhere import machines  # which needs numpy and more

    failed = False
    for machine in machines(on):
        if machine.error is not None:
            failed = True
            _complain(str(machine.error))
            continue
        _say(f"on {machine.name}, Python {machine.facts['python']} ({machine.facts['executable']}):")
        machine.carry_out("list", {"on": machine.connection.name}, _say)
    return int(failed)


def _bundle(names: Sequence[str], output: str) -> int:
    for name in names:
        if _engine(name, "bundle").recipe is None:
            raise InstallError(
                f"{name} needs no environment of its own: pip itself can download it",
                next_step=f"`{sys.executable} -m pip download --dest FOLDER ...`",
            )
    bundles.bundle(names, Path(output))
    return 0


def _doctor(names: Sequence[str], on: str | None) -> int:
    from ..manage.doctor_report import doctor  # which needs numpy and the whole of K

    report = doctor([_engine(name, "doctor").name for name in names] or None, on)
    _say(repr(report))
    return 0 if report.passed else 1


def _measure(chosen: argparse.Namespace) -> int:
    from . import scripts  # which needs numpy and the whole of K

    paths, engines = scripts.split(chosen.words)
    usage = f"`kernelk {chosen.command} script.py{' tensorflow torch' if chosen.command == 'compare' else ''}`"
    if not paths:
        raise ArgumentError(f"{chosen.command}: name a script that evaluates something with K", next_step=usage)
    if chosen.command != "compare" and len(chosen.words) > 1:
        raise ArgumentError(
            f"{chosen.command}: one script at a time, on the engine that KERNELK_BACKEND or keras.json chooses",
            next_step=usage,
        )
    options = {
        name: getattr(chosen, name, None) or None
        for name in ("budget", "device", "threads", "precision", "per_op", "engine")
    }
    for path in filter(None, (chosen.json, chosen.plot)):
        # Before minutes are spent on measuring.
        if not Path(path).absolute().parent.is_dir():
            raise ArgumentError(
                f"{chosen.command}: the result can't be written: there is no folder {Path(path).parent}",
                next_step=f"mkdir -p {Path(path).parent}",
            )
    result = scripts.measure(chosen.command, paths, options, engines)
    _say(repr(result))
    try:
        if chosen.json:
            result.to_json(chosen.json)
        if chosen.plot:
            result.plot().figure.savefig(chosen.plot)
    except KernelKError:
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{chosen.command}: the result can't be written: {error}",
            next_step=f"name another file, e.g. --plot {chosen.command}.png",
        ) from None
    return 1 if any(side.failure for side in getattr(result, "sides", ())) else 0


def _parser() -> _Parser:
    parser = _Parser(prog="kernelk", description="Install, list and check engines, and time scripts on them.")
    parser.add_argument("--version", action="version", version=f"kernelk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    own = ", ".join(RECIPES)
    installing = commands.add_parser("install", help="install an engine, unless it is already installed")
    installing.add_argument("names", nargs="*", metavar="NAME", help=own)
    installing.add_argument("--rebuild", action="store_true", help="install it again, even if it is already installed")
    installing.add_argument("--from", dest="bundle", metavar="BUNDLE", help="install from a bundle, without network")
    installing.add_argument("--on", metavar="CLUSTER", help=_ON)
    uninstalling = commands.add_parser("uninstall", help="remove an engine's environments, including older ones")
    uninstalling.add_argument("names", nargs="+", metavar="NAME", help=own)
    uninstalling.add_argument("--on", metavar="CLUSTER", help=_ON)
    listing = commands.add_parser("list", help="show what is installed of each engine: versions, folder and size")
    listing.add_argument("--on", metavar="CLUSTER", help=_ON)
    bundle = commands.add_parser("bundle", help="write one file from which engines can be installed without network")
    bundle.add_argument("names", nargs="+", metavar="NAME", help=own)
    bundle.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    doctor = commands.add_parser("doctor", help="check each engine, and show what is missing and the next command")
    doctor.add_argument("names", nargs="*", metavar="NAME", help="the engines to check (default: all)")
    doctor.add_argument("--on", metavar="CLUSTER", help=_ON)
    compare = commands.add_parser("compare", help="time what a script evaluates, on several engines side by side")
    words = "a script and engine names (default: all installed); or several scripts and one engine"
    compare.add_argument("words", nargs="+", metavar="SCRIPT.py|NAME", help=words)
    compare.add_argument("--device", metavar="D", help="the same device for all: cpu:0 ...")
    compare.add_argument("--threads", metavar="N", help="the same number of threads for all")
    compare.add_argument("--precision", metavar="P", help="how all multiply float32: float32, tf32 or bfloat16")
    compare.add_argument("--per-op", action="store_true", help="also time each op separately on every engine")
    measured = {"compare": compare}
    for name, what in (("time", "part by part"), ("profile", "op by op")):
        measured[name] = commands.add_parser(name, help=f"time what a script evaluates, {what}")
        measured[name].add_argument("words", nargs="+", metavar="SCRIPT.py", help="the script")
    words = "also run the engine's own profiler on the call"
    measured["profile"].add_argument("--engine", action="store_true", help=words)
    for command in measured.values():
        command.add_argument("--budget", metavar="S", help="seconds to run for, not counting compilation")
        command.add_argument("--json", metavar="FILE", help="write all samples there")
        command.add_argument("--plot", metavar="FILE", help="draw a picture there: x.png, x.svg ... (needs Matplotlib)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    chosen = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of folders may have bytes that are no text
    try:
        if chosen.command == "install":
            return _install(chosen.names, chosen.rebuild, chosen.bundle, chosen.on)
        if chosen.command == "uninstall":
            return _each(chosen.names, "uninstall", lambda name: uninstall(name, _say, chosen.on))
        if chosen.command == "bundle":
            return _bundle(chosen.names, chosen.output)
        if chosen.command in ("compare", "time", "profile"):
            return _measure(chosen)
        return _doctor(chosen.names, chosen.on) if chosen.command == "doctor" else _list(chosen.on)
    except KernelKError as error:
        _complain(str(error))
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader left, as in `kernelk list | head`: nobody is there to complain to
        return 1
    except KeyboardInterrupt:
        done = "the installation was not completed" if chosen.command == "install" else "nothing was left half-done"
        _complain(joined(f"stopped; {done}", next_step="run the same command again"))
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
