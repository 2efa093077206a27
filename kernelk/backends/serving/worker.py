"""The worker process: one engine behind the wire, serving requests until its kernel closes the wire."""

import ctypes
import faulthandler
import importlib
import io
import os
import signal
import socket
import sys
import warnings

import numpy as np

from . import freed
from .executor import Executor, describe
from .shared_memory import Segment
from .wire import Malformed, Wire, WireClosed

# In a training loop the next call comes within this time, in seconds; an idle worker sleeps after it.
PATIENCE = 0.0002

# At most this many different warnings of one call are passed on.
MOST_WARNINGS = 50


def _speak_at_once():
    """Flushes output at the end of each line, from Python and from C, and has a crash print its stack."""
    # One pipe is standard output and error already; what an engine prints can't reach the wire. Python 3.6 buffers
    # both, and has no other encoding than ASCII in some locales.
    for name in ("stdout", "stderr"):
        lines = io.TextIOWrapper(getattr(sys, name).detach(), "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, lines)
    faulthandler.enable()
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        library.setvbuf(stream, None, 1, ctypes.c_size_t(0))  # 1: by lines
    except (OSError, ValueError, AttributeError):
        pass  # Its output comes later then, in blocks.


class _Warnings(object):
    """Collects the warnings of a call, for the kernel to raise again under the user's own filters."""

    def __init__(self):
        self.pending = []
        warnings.showwarning = self._note
        # Whether the same line warns once or always is the kernel's to decide. What Python and the engine leave out,
        # such as deprecations in the engine's own code, stays out.
        warnings.simplefilter("always", append=True)

    def _note(self, message, category, filename, lineno, file=None, line=None):
        names = [kind.__name__ for kind in category.__mro__ if issubclass(kind, Warning)]
        entry = [names, str(message)[:2000], filename, lineno]
        if len(self.pending) < MOST_WARNINGS and entry not in self.pending:
            self.pending.append(entry)

    def take(self):
        taken, self.pending = self.pending, []
        return taken


def _attached(executor, sizes, files):
    """Maps the segments [number, size]... of a request and returns the reply. If one fails, the earlier ones stay."""
    try:
        for number, size in sizes:
            executor.attach(number, Segment.attach(files.pop(0), size))
        return {}
    except Exception as error:
        for file in files:
            os.close(file)
        return {"error": describe(error)}


def main(fileno, module, name, options):
    """Serves class `name` of module `module` over the inherited socket `fileno`, then exits."""
    _speak_at_once()
    # As in the kernel: an infinity is an ordinary value, on every engine.
    np.seterr(all="ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=fileno)
    wire = Wire(connection)
    try:
        backend = getattr(importlib.import_module(module), name)(options)
        executor = Executor(backend)
        hello = executor.do_facts({})
    except BaseException as error:
        wire.send({"error": describe(error)})
        raise
    wire.send(hello)  # number 0: unasked
    warned = _Warnings()
    patience, resting = 0.0, (freed.REST, freed.give_back)
    while True:
        try:
            request, number, files = wire.receive_with_files(patience, resting)
        except WireClosed:
            break
        except Malformed as error:
            print("kernelk: an invalid request: %s" % error, file=sys.stderr)
            break
        if request["do"] == "attach":
            reply = _attached(executor, request["attach"], files)
        else:
            reply = executor.handle(request)
        patience = PATIENCE if request["do"] == "run" else 0.0
        if warned.pending:
            reply = dict(reply, warnings=warned.take())
        try:
            wire.send(reply, number)
        except WireClosed:
            break
        if request["do"] == "run":
            executor.draw_ahead()
    # Without finalizers: engines' own exit handlers have been seen to hang or crash.
    os._exit(0)
