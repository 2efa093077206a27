"""The sampler of `durable.py`, in a process of its own: `python sampler.py PID ...`.

From the first line on its standard input to the next, it finds the most memory, in bytes, that these processes have
together, and answers with it. What they share is counted once. (Linux alone.)
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

PERIOD = 0.002  # seconds from one look to the next


def together(pids: list[int]) -> int:
    """The bytes of memory of these processes, a page that several have counted once; files, such as libraries, aside.

    Of those, the share of each process depends on what else runs on the machine.
    """
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kib += int(line.split()[1])
    return kib * 1024


def main(pids: list[int]) -> None:
    """Answers until its standard input is closed."""
    while sys.stdin.readline():
        print(json.dumps(None), flush=True)
        found = together(pids)
        while not select.select([sys.stdin], [], [], PERIOD)[0]:
            found = max(found, together(pids))
        if not sys.stdin.readline():
            return
        print(json.dumps(max(found, together(pids))), flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
