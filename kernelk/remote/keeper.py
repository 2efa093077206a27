"""The keeper, a process that holds memory and does nothing else: what lies there outlives a worker and its engine.

`kept` runs it by its path, with the standard library alone. It listens to nobody: whoever may look at its descriptors
takes them from it, and it ends when nothing was heard of its notebook for as long as its lease says.
"""

from __future__ import annotations

import contextlib
import mmap
import signal
import struct
import sys
import time

# The page's first bytes: when the notebook was heard of last, by the clock that all processes of a machine share.
HEARD = struct.Struct("<d")


def main(fileno: int, lease: float) -> None:
    """Waits until the lease in the page behind this descriptor runs out."""
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("kernelk-keeper")
    page = mmap.mmap(fileno, 0)
    while time.monotonic() - HEARD.unpack_from(page)[0] < lease:
        time.sleep(lease / 8)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
