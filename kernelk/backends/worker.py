"""The worker process: one engine behind the wire, serving requests until its kernel is gone."""

import importlib
import os
import select
import signal
import socket
import sys
import threading

from .executor import Executor, describe
from .shared_memory import Segment
from .wire import Wire, WireClosed

# In a training loop the next call comes within this time, in seconds; an idle worker sleeps after it.
PATIENCE = 0.0002


def _end_with_kernel(connection):
    """Ends this process when the kernel's end of the socket closes, in the middle of a long computation too."""

    def watch():
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        while True:
            for _, event in poll.poll():
                if event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    os._exit(0)

    threading.Thread(target=watch, name="kernelk-watch", daemon=True).start()


def main(fileno, module, name, options):
    """Serves class `name` of module `module` over the inherited socket `fileno`, then exits."""
    # Standard output and error are a log file already; what an engine prints can't reach the wire.
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
    wire.send(hello)
    patience = 0.0
    while True:
        try:
            request, files = wire.receive_with_files(patience)
        except WireClosed:
            break
        for (number, size), file in zip(request.get("attach", ()), files):
            executor.attach(number, Segment.attach(file, size))
        if request["do"] == "stop":
            break
        if request["do"] == "attach":
            wire.send({})
            continue
        reply = executor.handle(request)
        patience = PATIENCE if request["do"] == "run" else 0.0
        sys.stdout.flush()
        try:
            wire.send(reply)
        except WireClosed:
            break
    # Without finalizers: an engine's own exit handlers have been seen to hang or crash.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
