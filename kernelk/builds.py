"""Builds one environment in its final place: venv, pip with hashes, stubs, the check, and last of all the marker.

`environments` says where and when. Whatever ends a build before its marker is written leaves "not installed"; but for a
process that was killed, nothing of it stays except its log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import __version__, display, mpi_stub
from .engines import missing_package
from .errors import InstallError
from .interpreters import Interpreter, Maker, below, clean_environment, created_folder, last_line, probe
from .progress import Moving, Report
from .recipes import LIBPYTHON36, LockedFile, Recipe, requirements_text

MARKER = "kernelk.json"
_CHECK_SECONDS = 300
_POLL_SECONDS = 0.5

# Run by the environment's own Python once it has the pinned pip: what wheels it takes, best first, and its platform.
_TAGS = """
import json, platform, sys
from pip._vendor.packaging.tags import sys_tags
where = "Python %d.%d on %s (%s)" % (sys.version_info[0], sys.version_info[1], platform.system(), platform.machine())
print(json.dumps([[str(tag) for tag in sys_tags()], where]))
"""

_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Temporary failure in name resolution"
    r"|Name or service not known|Network is unreachable|Connection refused|Could not fetch URL"
    r"|CONNECTION FAILED|CondaHTTPError|error sending request|dns error",
)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]|NoSpaceLeftError")


def megabytes(count: float) -> str:
    """Bytes for reading, always in MB."""
    return f"{count / 1e6:.1f} MB"


def size(folder: Path) -> int:
    """Bytes of all files below the folder; links count as themselves."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def python_in(environment: Path) -> Path:
    """The environment's interpreter."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def site_packages(environment: Path, series: str) -> Path:
    """Where the environment's packages are."""
    return environment / "lib" / f"python{series}" / "site-packages"


def enough_space(what: str, place: Path, needed: int, next_step: str) -> None:
    """Raises InstallError if the disk of `place` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InstallError(
            f"{what} needs {megabytes(needed)} on the disk of {place}, and {megabytes(free)} are free; next: make "
            f"room, or choose another folder with KERNELK_ENVS, then {next_step}"
        )


class Runner:
    """Runs the commands of one task on an engine's environment, with all their output in a log.

    `again` is the command that repeats the task. Raises InstallError for a command that fails, in one line.
    """

    def __init__(self, title: str, name: str, log: Path, report: Report, again: str, doing: str = "installed") -> None:
        self.title = title
        self.name = name
        self.log = log
        self.again = again
        self._doing = doing
        self._report = report
        self._moving = Moving(report)
        self._started = time.monotonic()
        log.write_text("", encoding="utf-8")

    def _stamped(self, text: str) -> str:
        return f"{self.name}: [{time.monotonic() - self._started:3.0f} s] {text}"

    def say(self, text: str) -> None:
        """A line that stays."""
        self._report(self._stamped(text))

    def move(self, text: str) -> None:
        """The line that moves."""
        self._moving(self._stamped(text))

    def failed(self, reason: str) -> InstallError:
        """The task's failure, with the log and the next command."""
        return InstallError(
            f"{self.title} could not be {self._doing}: {reason} (log: {self.log}); next: {self.again} again"
        )

    def __call__(
        self,
        what: str,
        command: list[str],
        line: Callable[[str], None] | None = None,
        tick: Callable[[], None] | None = None,
        timeout: float | None = None,
        settings: dict[str, str] | None = None,
        logged: bool = True,
    ) -> str:
        """Runs it and returns what it wrote to standard output (with `line`: to standard error too).

        `line` gets each line as it comes, `tick` is called twice a second. `timeout` in seconds. Without `logged` only
        its standard error is kept in the log. However this ends, nothing of the command is left running.
        """
        lines: queue.Queue[str | None] = queue.Queue()
        output: list[str] = []
        end = time.monotonic() + timeout if timeout else float("inf")
        late = False
        with open(self.log, "a", encoding="utf-8", errors="replace") as log:
            print(f"--- {what}", file=log, flush=True)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if line else log,
                text=True,
                errors="replace",
                env=clean_environment() | (settings or {}),
                cwd=self.log.parent,
                # A group of its own: Ctrl-C reaches this process alone, which then ends the whole group.
                start_new_session=True,
            )
            try:
                threading.Thread(target=_read, args=(process, lines), daemon=True).start()
                while True:
                    try:
                        text = lines.get(timeout=_POLL_SECONDS)
                    except queue.Empty:
                        text = ""
                    if text is None:
                        break
                    if text:
                        output.append(text)
                        if logged:
                            log.write(text)
                        if line:
                            line(text)
                    elif tick:
                        tick()
                    if time.monotonic() > end:
                        late = True
                        _kill(process)
                process.wait()
            finally:
                _kill(process)
        if late:
            raise self.failed(f"{what} took more than {timeout:.0f} s")
        if process.returncode:
            said = self.log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2]
            if process.returncode < 0:
                said = f"ended by signal {-process.returncode}"
            raise self._explained(what, said)
        return "".join(output)

    def _explained(self, what: str, said: str) -> InstallError:
        """The failure of a command by what it said, with the next command that fits it."""
        wrong = re.search(
            r"^ *(\S+==\S+) from (\S+?)(?:#\S*)?(?: \(from .*\))?:\s*\n\s*Expected sha256 (\w+)\s+Got\s+(\w+)",
            said,
            re.M,
        )
        begin = f"{self.title} could not be {self._doing}"
        if wrong:
            pin, url, expected, got = wrong.groups()
            return InstallError(
                f"{begin}: {url.rpartition('/')[2]} ({pin}) has not the content that kernelk's lock names (SHA-256 "
                f"{got[:12]}... instead of {expected[:12]}...): it was damaged on the way, or the index serves another "
                f"file (log: {self.log}); next: `pip cache purge` and {self.again}, and if it stays, another index "
                f"(PIP_INDEX_URL)"
            )
        # venv, for one, keeps the reason to itself.
        if _FULL.search(said) or shutil.disk_usage(self.log.parent).free < 4 << 20:
            return InstallError(
                f"{begin}: no space left on the disk of {self.log.parent} (log: {self.log}); next: make room, or "
                f"choose another folder with KERNELK_ENVS, then {self.again}"
            )
        if _NO_NETWORK.search(said):
            return InstallError(
                f"{begin}: {'the package index' if what == 'pip' else f'the server of {what}'} can't be reached (log: "
                f"{self.log}); next: check the network and the proxy, then {self.again}; with no network: `kernelk "
                f"install --from BUNDLE`"
            )
        if missing_package(said):
            return InstallError(
                f"{begin}: {what} failed: {last_line(said)} (log: {self.log}); next: {missing_package(said)}, then "
                f"{self.again}"
            )
        return self.failed(f"{what} failed: {last_line(said)}")


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError), process.stdout:
        for text in process.stdout:
            lines.put(text)
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends the command and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def disk_error(title: str, place: Path, error: OSError, next_step: str) -> InstallError:
    """What the file system refused, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, mend = "no space left on the disk", "make room"
    else:
        reason, mend = str(error.strerror or error), "make it writable"
    return InstallError(
        f"{title} could not be installed in {place}: {reason}; next: {mend}, or choose another folder with "
        f"KERNELK_ENVS, then {next_step}"
    )


def create_interpreter(maker: Maker, root: Path, run: Runner) -> Interpreter:
    """A Python made by conda or uv in a folder beside the environments; half of one is cleared first."""
    folder = created_folder(root, maker.series)
    shutil.rmtree(folder, ignore_errors=True)
    run.say(f"creating a Python {maker.series} by {maker.program.name} in {folder}")

    def line(text: str) -> None:
        if text.strip():
            run.move(f"{maker.program.name}: {text.strip()[:80]}")

    try:
        run(maker.program.name, maker.command(folder), line=line, settings=maker.environment(folder))
        python = maker.python(folder)
        if python is None:
            raise run.failed(
                f"{maker.program.name} said that it was done, and left no python{maker.series} in {folder}"
            )
        return probe(python, f"created by {maker.program.name}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class Build:
    """One build of one environment, in its final place: its scripts hold their path, so it can't move.

    `wheels`: a folder to take the files from, in place of the package index.
    """

    def __init__(
        self, recipe: Recipe, interpreter: Interpreter, folder: Path, run: Runner, wheels: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.interpreter = interpreter
        self.folder = folder
        self.python = python_in(folder)
        self.run = run
        self._wheels = wheels
        # pip's own temporary files: on the same disk, seen while they grow, and gone with the build.
        self._scratch = folder.with_name(f".{folder.name}.partial")
        # In a rebuild, the environment that is there, until the new one is complete.
        self._previous = folder.with_name(f".{folder.name}.previous")

    def build(self) -> Path:
        """All steps; the environment's interpreter. Raises InstallError, and leaves nothing but the log then."""
        with self._cleared():
            found = f"Python {self.interpreter.version} ({self.interpreter.source})"
            self.run.say(f"building with {found} in {self.folder}")
            self.run("venv", [str(self.interpreter.path), "-I", "-m", "venv", str(self.folder)])
            files = bootstrap_of(self.recipe)
            if files:
                self._pip(files)
            packages = packages_for(self.recipe, self.python, self.run)
            self._pip(packages)
            if self.recipe.name == "cntk":
                self._write_stubs()
            self.run.say("checking that it computes")
            check = [str(self.python), "-I", "-W", "ignore", "-c", self.recipe.check]
            engine = self.run("check", check, timeout=_CHECK_SECONDS).splitlines()[-1].strip()
            listed = self.run("pip list", [*pip_of(self.python), "list", "--format=json"])
            versions = json.loads(listed.splitlines()[-1])
            total = size(self.folder)
            self._mark(
                {
                    "recipe": self.recipe.hash(self.interpreter.series),
                    "python": self.interpreter.version,
                    "engine": engine,
                    "versions": {entry["name"]: entry["version"] for entry in versions},
                    "files": {file.name: file.sha256 for file in (*files, *packages)},
                    "bytes": total,
                    "kernelk": __version__,
                }
            )
        self.run.say(f"ready: {self.recipe.name} {engine}, {megabytes(total)}")
        return self.python

    @contextlib.contextmanager
    def _cleared(self) -> Iterator[None]:
        """The folder is free before the build; after one that doesn't come to its end, it is as it was."""
        if (self.folder / MARKER).exists():
            shutil.rmtree(self._previous, ignore_errors=True)
            self.folder.rename(self._previous)
        elif self.folder.exists():
            self.run.say(f"clearing {self.folder}, which an earlier install left")
            shutil.rmtree(self.folder)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder, ignore_errors=True)
                if self._previous.exists():
                    self._previous.rename(self.folder)
            raise
        finally:
            for path in (self._scratch, self._previous):
                shutil.rmtree(path, ignore_errors=True)

    def _pip(self, files: list[LockedFile]) -> None:
        """Installs exactly these files, which pip compares with their hashes."""
        absent = [file.name for file in files if self._wheels is not None and not (self._wheels / file.name).exists()]
        if absent:
            raise InstallError(
                f"{self.recipe.title} could not be installed: the bundle holds no {absent[0]}, which this Python on "
                f"this machine needs; next: make the bundle on a machine of this kind (`kernelk bundle "
                f"{self.recipe.name} --output FILE`)"
            )
        requirements = self._scratch / "requirements.txt"
        requirements.write_text(requirements_text(files), encoding="utf-8")
        total = sum(file.size for file in files)
        self.run.say(f"installing {', '.join(file.pin for file in files)}: {megabytes(total)}")
        # The list is complete, so that --no-deps keeps out whatever the index holds newer.
        options = ["--no-deps", "--require-hashes", "--progress-bar", "off", "--no-warn-script-location"]
        if self._wheels is not None:
            options += ["--no-index", "--find-links", str(self._wheels)]
        progress = Downloads(files, self._scratch, self.run)
        self.run(
            "pip",
            [*pip_of(self.python), "install", *options, "--requirement", str(requirements)],
            line=progress.line,
            tick=progress.tick,
            settings={"TMPDIR": str(self._scratch)},
        )

    def _write_stubs(self) -> None:
        self.run.say("writing stubs for MPI, which only distributed training calls")
        libs = site_packages(self.folder, self.interpreter.series) / "cntk" / "libs"
        mpi_stub.write_mpi_stubs(libs)
        if not self.interpreter.shared:
            # The Python program itself has every symbol then; only the library's name is missing.
            mpi_stub.write(libs / LIBPYTHON36)

    def _mark(self, content: dict[str, object]) -> None:
        partial = self.folder / f".{MARKER}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / MARKER)


def bootstrap_of(recipe: Recipe) -> list[LockedFile]:
    """pip itself and what it builds with, as locked files."""
    return recipe.choose(recipe.bootstrap, ["py3-none-any", "py2.py3-none-any"], "any Python")


def packages_for(recipe: Recipe, python: Path, run: Runner) -> list[LockedFile]:
    """The locked files of the engine and its libraries for this interpreter, which has the pinned pip."""
    tags, where = json.loads(run("tags", [str(python), "-I", "-c", _TAGS], logged=False).splitlines()[-1])
    return recipe.choose(recipe.requirements, tags, where)


def pip_of(python: Path) -> list[str]:
    """pip of this interpreter; -I keeps the current folder, PYTHONPATH and the user's site-packages out of it."""
    cache = ["--no-cache-dir"] if os.environ.get("PIP_NO_CACHE_DIR") else []
    return [str(python), "-I", "-u", "-m", "pip", *cache]


class Downloads:
    """Tells how far pip is, from its lines and from the growth of the file that it downloads into `scratch`."""

    def __init__(self, files: list[LockedFile], scratch: Path, run: Runner) -> None:
        self._files = {file.name: file for file in files}
        self._total = sum(file.size for file in files)
        self._done = 0
        self._current: LockedFile | None = None
        self._scratch = scratch
        self._run = run

    def line(self, text: str) -> None:
        """Takes a line of pip's."""
        match = re.match(r"\s*(Downloading|Using cached|Processing|Building wheel for|Saved) (\S+)(.*)", text)
        if match:
            what, name = match[1].lower(), match[2].rpartition("/")[2]
            file = self._files.get(name)
            if file is not None and what != "saved":
                self._arrived()
                self._current = file
                done = f"{self._done / 1e6:.1f} of {megabytes(self._total)} done"
                self._run.say(f"{what} {name} ({display.size(file.size)}; {done})")
            elif what.startswith("building") and "started" in match[3]:
                self._arrived()
                self._run.say(f"building a wheel of {name}")
        elif text.startswith("Installing collected packages:"):
            self._arrived()
            self._run.say(f"unpacking {text.partition(':')[2].strip()}")
        elif "Retrying (" in text:
            self._run.say("no answer from the package index; trying again")

    def _arrived(self) -> None:
        if self._current is not None:
            self._done += self._current.size
            self._current = None

    def tick(self) -> None:
        """Says how much of the present file is there."""
        if self._current is None:
            return
        for path in below(self._scratch, f"*/{self._current.name}"):
            with contextlib.suppress(OSError):
                there = path.stat().st_size
                self._run.move(
                    f"downloading {self._current.name}: {there / 1e6:.1f} of {megabytes(self._current.size)}, "
                    f"in all {(self._done + there) / 1e6:.1f} of {megabytes(self._total)}"
                )
