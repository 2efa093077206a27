"""The watcher, a small process next to each worker: when the kernel ends, it ends the worker and its children.

A thread of the worker's can't: it waits for Python's lock, which an engine's C code may keep for minutes.
"""

import contextlib
import os
import select
import signal
import sys
import time

# Seconds between checks of the processes if the system can't report their end.
EVERY = 0.2
# Seconds that it waits for the processes that it has ended to be gone.
PATIENCE = 10.0

_PIDFD_OPEN = 434  # the number of this system call on every kind of Linux that an engine runs on


def watch(kernel, scratch):
    """Starts the watcher of this process, whose kernel has this id; with it, it also removes the folder `scratch`.

    Called before anything else is loaded, which would stay in the watcher's memory too, and before there are threads.
    """
    watched = [_Process(kernel), _Process(os.getpid())]
    if os.getppid() != kernel:
        # It ended while this process was starting, and its number may have been reused.
        _remove(scratch)
        os._exit(1)
    # Forked twice, so that it isn't the worker's child: engines wait for all children of their process.
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        for process in watched:
            process.close()
        return
    try:
        os.setsid()
        if not os.fork():
            _serve(watched, scratch)
    finally:
        os._exit(0)


def _serve(watched, scratch):
    kernel, worker = watched
    # The kernel reads until nobody can write to the log's pipe or the socket any more.
    let_go([process.fileno for process in watched])
    # Standard input, output and error lead nowhere.
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    os.chdir("/")
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        with open("/proc/self/comm", "w") as file:
            file.write("kernelk-watcher")
    except OSError:
        pass  # then it keeps the worker's name
    ends = select.poll()
    for process in watched:
        if process.fileno is not None:
            ends.register(process.fileno, select.POLLIN)
    every = None if all(process.fileno is not None for process in watched) else EVERY * 1000
    while kernel.alive() and worker.alive():
        ends.poll(every)
    # When the worker is gone, its children are useless; when the kernel is gone, so is the worker.
    end = time.time() + PATIENCE
    while True:
        with contextlib.suppress(OSError):  # they may all be gone
            os.killpg(worker.pid, signal.SIGKILL)
        # After the processes have ended, so that nothing is written into the folder again.
        _remove(scratch)
        if time.time() > end or not (os.path.lexists(scratch) or worker.alive()):
            return
        time.sleep(0.02)


class _Process(object):
    """A process whose end can be waited for, and which isn't taken for a later one of the same number."""

    def __init__(self, pid):
        self.pid = pid
        self.fileno = _pidfd(pid)
        self._born = (_look(pid) or (None, None))[1]

    def alive(self):
        if self.fileno is not None:
            end = select.poll()
            end.register(self.fileno, select.POLLIN)
            return not end.poll(0)
        seen = _look(self.pid)
        if seen is not None:
            return seen[0] not in b"ZX" and seen[1] == self._born
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        # Where processes are shown, this one no longer is.
        return self._born is None

    def close(self):
        if self.fileno is not None:
            os.close(self.fileno)


def _pidfd(pid):
    """A descriptor that becomes readable when the process ends; None if the system has none."""
    try:
        if hasattr(os, "pidfd_open"):
            return os.pidfd_open(pid)
        if sys.platform.startswith("linux"):
            import ctypes

            fileno = ctypes.CDLL(None).syscall(_PIDFD_OPEN, pid, 0)
            return fileno if fileno >= 0 else None
    except (ImportError, OSError, AttributeError):
        pass
    return None


def _look(pid):
    """(state, time of start) of a process; None where the system doesn't show it."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def let_go(kept):
    """Closes every descriptor of this process but those that are kept."""
    numbers = range(256)
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            numbers = [int(name) for name in os.listdir(folder)]
            break
        except OSError:
            continue
    for number in numbers:
        if number not in kept:
            with contextlib.suppress(OSError):  # one was the descriptor of the listing
                os.close(number)


def _remove(folder):
    """Removes a folder as far as possible. Without `shutil`, which would make the watcher a third larger."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
