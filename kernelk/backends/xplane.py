"""Reads traces of the profiler that TensorFlow and XLA share: each event's own time, and the trace files."""

import glob
import os
import shutil
import tempfile
from contextlib import contextmanager


@contextmanager
def trace_folder(scratch):
    """A folder for one trace, gone afterwards; inside `scratch`, the process's own folder, where there is one."""
    folder = tempfile.mkdtemp(prefix="kernelk-trace-", dir=scratch)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trace_file(folder):
    """The trace that was written into the folder. Raises RuntimeError if there is none."""
    files = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
    if not files:
        raise RuntimeError("the profiler wrote no trace")
    return files[0]


def on_device(planes):
    """The lines to evaluate: (plane, line) names of a GPU's streams, or of the CPU's threads.

    `planes`: {plane's name: its lines' names}.
    """
    gpus = [name for name in planes if name.startswith("/device:GPU")]
    if gpus:
        return [(plane, line) for plane in gpus for line in planes[plane] if line.startswith("Stream")]
    return [(plane, line) for plane in planes if plane.startswith("/host:CPU") for line in planes[plane]]


def own_times(events):
    """The time of each of one thread's events without those inside it: [(event, seconds)...].

    `events`: (start, duration, event), in nanoseconds.
    """
    rows, open_ones = [], []  # positions in `rows`, with their ends, of those that enclose the next one
    for start, duration, event in sorted(events, key=lambda one: (one[0], -one[1])):
        while open_ones and open_ones[-1][1] <= start:
            open_ones.pop()
        if open_ones:
            outer = open_ones[-1][0]
            rows[outer][1] -= min(duration, open_ones[-1][1] - start)
        open_ones.append((len(rows), start + duration))
        rows.append([event, duration])
    return [(event, max(0.0, duration) * 1e-9) for event, duration in rows]
