"""All of kernelk's errors: each says what happened, what is allowed and the next command, in one line."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

from .source import CELL, is_users, place


def one_line(words: object) -> str:
    """The text of an error or another object without line breaks."""
    return " ".join(str(words).split())


def printable(words: object, most: int = 0) -> str:
    """A text on one line that any terminal can show: what doesn't print, half a character too, is written out.

    `most`: of so many characters at most, its middle left out; 0 for all of it.
    """
    text = str(words)
    if most and len(text) > most:
        text = f"{text[: most // 2]}...{text[3 - most // 2 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def joined(problem: str, allowed: str = "", next_step: str = "") -> str:
    """One line in the pattern of all messages: "problem: what is allowed; next: the next command"."""
    words = problem
    if allowed:
        # A second colon would leave open what belongs to which.
        words += ("; " if ": " in problem else ": ") + allowed
    return "; ".join([*([words] if words else []), *([f"next: {next_step}"] if next_step else [])])


def did_you_mean(word: str, known: Iterable[str], shown: str = "'{}'", cutoff: float = 0.6) -> str:
    """ "did you mean 'dense'? " for a word that is close to a known one, "" otherwise. `shown`: how to write it."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {shown.format(near[0])}? " if near else ""


class KernelKError(Exception):
    """Base of all errors that kernelk raises on purpose; a notebook shows it as one line.

    `problem` says what happened, `allowed` what is allowed, `next_step` what to do now, a command where one helps.
    `remarks` are what those who pass the error on have added, `locations` the cells' or files' lines that these name,
    and `location`, which comes first, is a script's line that led to the error.
    """

    def __init__(self, problem: str = "", *, allowed: str = "", next_step: str = "") -> None:
        # All else is in `__dict__`, which copies and pickles keep beside the arguments.
        super().__init__(problem)
        self.problem, self.allowed, self.next_step = problem, allowed, next_step
        self.remarks: list[str] = []
        self.locations: list[str] = []
        self.location = ""

    def __str__(self) -> str:
        location = f"{self.location}: " if self.location else ""
        remarks = "".join(f" ({remark})" for remark in self.remarks)
        # Names of files, variables and cells come in as they are.
        return printable(f"{location}{joined(self.problem, self.allowed, self.next_step)}{remarks}")

    def __repr__(self) -> str:
        # The whole message: Python's own repr would only show the problem.
        return f"{type(self).__name__}({str(self)!r})"

    def remark(self, words: str) -> None:
        """Adds what a later stage knows of the error, such as the op or the setting that is to blame."""
        self.remarks.append(words)

    def as_dict(self) -> dict[str, Any]:
        """The error as data, for another process."""
        return {
            "kind": type(self).__name__,
            "problem": self.problem,
            "allowed": self.allowed,
            "next_step": self.next_step,
            "remarks": self.remarks,
        }

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of printing a traceback, of which only the user's own line matters here.
        whole = _asked_for(self)
        if whole is not None:
            return whole
        return [f"{type(self).__name__}: {self}{self._raised_in()}"]

    def _raised_in(self) -> str:
        """ " (cell 3, line 2: y = K.dot(x, w))" for the innermost line of the user's own, if there is one."""
        users = [trace for trace in _steps(self) if is_users(trace.tb_frame)]
        if not users:
            return ""
        code, line = users[-1].tb_frame.f_code, users[-1].tb_lineno
        text = linecache.getline(code.co_filename, line).strip()
        # A magic's line reaches here in IPython's own words, which tell the user nothing.
        shown = "" if "run_line_magic" in text or "run_cell_magic" in text or not text else f": {text}"
        return f" ({place(code.co_filename, CELL.of(code))}, line {line}{shown})"


def _steps(error: BaseException) -> list[TracebackType]:
    """An error's traceback from the outermost frame to the innermost one."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def end_at_users_line(error: BaseException) -> BaseException:
    """The error, one that isn't kernelk's; IPython shows its traceback down to the user's own line, and no further."""
    error._render_traceback_ = _shown_to_users_line  # type: ignore[attr-defined]
    return error


def _shown_to_users_line() -> list[str]:
    # IPython notes the error before it shows it. Known to this function, it would keep itself and its frames alive.
    error = sys.last_value
    assert error is not None
    whole = _asked_for(error)
    if whole is not None:
        return whole
    steps = _steps(error)
    while len(steps) > 1 and not is_users(steps[-1].tb_frame):
        steps.pop()
    shown = None
    for step in reversed(steps):
        shown = TracebackType(shown, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return _as_ipython(error, shown)


def _as_ipython(error: BaseException, trace: TracebackType | None) -> list[str]:
    """The lines in which IPython, which is running, shows an error with this traceback."""
    shell = sys.modules["IPython"].get_ipython()
    lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, trace)
    return lines


def _asked_for(error: BaseException) -> list[str] | None:
    """The whole traceback, if it is `%tb` that shows the error: the user has asked for it; else None."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not (frame.f_code.co_name == "tb" and "IPython" in frame.f_code.co_filename):
        frame = frame.f_back
    ipython = sys.modules.get("IPython")
    if frame is None or ipython is None or ipython.get_ipython() is None:
        return None
    return _as_ipython(error, error.__traceback__)


class UnknownBackendError(KernelKError, ValueError):
    """A name that no registered backend has."""


class BackendNotInstalledError(KernelKError, ImportError):
    """The engine, or an interpreter that fits it, isn't on this machine."""


class InstallError(KernelKError, RuntimeError):
    """An engine's environment could not be built or fails its check."""


class ShapeError(KernelKError, ValueError):
    """Shapes that can't work together; raised in the line that writes the op."""


class DTypeError(KernelKError, TypeError):
    """A dtype that the op or the engine can't take."""


class ArgumentError(KernelKError, ValueError):
    """An argument whose value isn't allowed."""


class AbsentError(KernelKError, AttributeError):
    """A name that other libraries have on tensors or on K; the next step is what there is instead."""


class FeedError(KernelKError, ValueError):
    """A function was called with the wrong number, shape or dtype of inputs, or one is missing."""


class UpdateError(KernelKError, ValueError):
    """Updates that contradict each other or name something that can't be updated."""


class StaleTensorError(KernelKError, RuntimeError):
    """A tensor or variable from before `K.clear_session()` was used after it, or one of another session."""


class _Refused(KernelKError):
    """Base of the errors that have several `reasons`, one line each."""

    def __init__(self, problem: str = "", reasons: Iterable[str] = (), *, next_step: str = "") -> None:
        self.reasons = list(reasons)
        super().__init__(problem, allowed="; ".join(self.reasons), next_step=next_step)


class SwapRefusedError(_Refused, RuntimeError):
    """The target engine can't take over the session; the old one is still active.

    `reasons` lists every obstacle, one line each.
    """


class OutOfMemoryError(KernelKError, MemoryError):
    """A value, feed or result that doesn't fit into the memory there is; nothing was changed."""


class ForkedError(KernelKError, RuntimeError):
    """A forked child can't continue its parent's session, which isn't affected."""


class CopyRefusedError(KernelKError, TypeError):
    """An attempt to pickle or copy an object that can't leave its session."""


class FileError(KernelKError, OSError):
    """A file that can't be written or read, or doesn't hold what it should."""


class LoadRefusedError(_Refused, ValueError):
    """Saved values don't fit the session's variables; nothing was changed. `reasons` lists each, one line each."""


class EngineError(KernelKError, RuntimeError):
    """The engine itself failed while it compiled or ran a program."""


class WorkerDiedError(KernelKError, RuntimeError):
    """The worker process ended in the middle of a call; no completed call is lost, and the next use restarts it.

    `before_call`: it was gone before it had read the request.
    """

    before_call = False
