#!/usr/bin/env bash
# JAX 0.10.2: once it is imported, a Ctrl-C that arrives during a garbage collection is lost.
#
# One would expect a KeyboardInterrupt to reach the code that was running, a little later at most. Importing JAX puts a
# Python function into gc.callbacks. A signal that arrives while the collector works is handled at the first Python
# code after it, and that is this function; Python ignores what a callback of the collector's raises. The interrupt is
# printed ("Exception ignored in ... _xla_gc_callback") and gone, and the loop goes on. The same holds for an alarm
# whose handler raises, as decorators for time limits do. Without JAX the same loop is interrupted each time.
# A loop that collects often can't be stopped by Ctrl-C at all; a time limit may pass unnoticed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$dir/interrupted.py" <<'PY'
import gc
import os
import signal
import sys
import threading
import time

TRIALS = 8


class TimeLimit(Exception):
    pass


def limit(*_):
    raise TimeLimit


def loop(number):
    """Whether one signal, sent to a loop of collections, stops it."""
    sender = threading.Timer(0.05, os.kill, (os.getpid(), number))
    sender.start()
    end = time.monotonic() + 1.0
    try:
        while time.monotonic() < end:
            gc.collect()
    except (KeyboardInterrupt, TimeLimit):
        return True
    finally:
        sender.join()
    return False


def stopped():
    return [sum(loop(number) for _ in range(TRIALS)) for number in (signal.SIGINT, signal.SIGALRM)]


signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, limit)
# Enough objects that nearly all of the time is the collector's.
kept = [[i] for i in range(1_000_000)]
sys.unraisablehook = lambda ignored: None
before = stopped()
import jax

after = stopped()
print("jax", jax.__version__, "Python", sys.version.split()[0])
print(f"stopped by Ctrl-C and by an alarm, of {TRIALS} each: before JAX is imported {before}, afterwards {after}")
assert before == [TRIALS, TRIALS], "a loop of collections can't be interrupted without JAX either"
# One may arrive between two collections.
assert max(after) <= 2, "JAX no longer loses them"
print("as described: lost in the callback", [one.__name__ for one in gc.callbacks if "xla" in one.__name__])
PY
JAX_PLATFORMS=cpu "$dir/venv/bin/python" "$dir/interrupted.py"
