"""The worker process: one engine behind the wire, serving requests until its kernel is gone."""

import ctypes
import faulthandler
import importlib
import io
import os
import select
import signal
import socket
import sys
import threading
import warnings

import numpy as np

from .executor import Executor, describe
from .shared_memory import Segment
from .wire import Malformed, Wire, WireClosed

# In a training loop the next call comes within this time, in seconds; an idle worker sleeps after it.
PATIENCE = 0.0002

# So many different warnings of one call are passed on.
MOST_WARNINGS = 50


def _end_with_kernel(connection):
    """Ends this process when the kernel's end of the socket closes, in the middle of a long computation too."""

    kernel = os.getppid()
    # Not every system tells of the end of a socket that nothing is awaited from; there, the parent is looked at too.
    every = None if sys.platform.startswith("linux") else 1000

    def watch():
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        while True:
            for _, event in poll.poll(every):
                if event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    os._exit(0)
            if os.getppid() != kernel:
                os._exit(0)

    threading.Thread(target=watch, name="kernelk-watch", daemon=True).start()


def _speak_at_once():
    """Every line goes to the kernel when it ends, whether it comes from Python or from C; a crash says where it was."""
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
        pass  # It comes later then, in blocks.


class _Warnings(object):
    """Collects what is warned of in a call, for the kernel to warn of it again under the user's own filters."""

    def __init__(self):
        self.told = []
        warnings.showwarning = self._note
        # Whether the same line warns once or always is the kernel's to decide. What Python and the engine leave out,
        # such as deprecations in the engine's own code, stays out.
        warnings.simplefilter("always", append=True)

    def _note(self, message, category, filename, lineno, file=None, line=None):
        names = [kind.__name__ for kind in category.__mro__ if issubclass(kind, Warning)]
        told = [names, str(message)[:2000], filename, lineno]
        if len(self.told) < MOST_WARNINGS and told not in self.told:
            self.told.append(told)

    def take(self):
        told, self.told = self.told, []
        return told


def _attached(executor, sizes, files):
    """Maps the segments [number, size]... that were handed over; the reply. Without memory for one, others stay."""
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
    # As in the kernel: an infinity is a value like others, on every engine alike.
    np.seterr(all="ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=fileno)
    _end_with_kernel(connection)
    wire = Wire(connection)
    try:
        backend = getattr(importlib.import_module(module), name)(options)
        executor = Executor(backend)
        hello = executor.do_facts({})
    except BaseException as error:
        wire.send({"error": describe(error)})
        raise
    wire.send(hello)  # number 0: nobody has asked
    warned = _Warnings()
    patience = 0.0
    while True:
        try:
            request, number, files = wire.receive_with_files(patience)
        except WireClosed:
            break
        except Malformed as error:
            print("kernelk: a request that can't be right: %s" % error, file=sys.stderr)
            break
        if request["do"] == "attach":
            reply = _attached(executor, request["attach"], files)
        else:
            reply = executor.handle(request)
        patience = PATIENCE if request["do"] == "run" else 0.0
        if warned.told:
            reply = dict(reply, warnings=warned.take())
        try:
            wire.send(reply, number)
        except WireClosed:
            break
    # Without finalizers: an engine's own exit handlers have been seen to hang or crash.
    os._exit(0)
