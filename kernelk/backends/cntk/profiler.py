"""CNTK's node timing on a call: the nodes of its networks, as it prints them."""

import os
import re
import sys
import tempfile
from contextlib import contextmanager

from ..serving.watching import OfFunctions, Rows

_LINE = re.compile(r"^(\S.*?)\s+forward avg ([\d.]+)s, backward avg [\d.]+s \(fwd# (\d+)\|")


class CNTKProfiler(OfFunctions):
    """Nodes with the mean that CNTK prints, in whole microseconds. What numpy computes in its place isn't seen."""

    label = "CNTK's node timing"

    @contextmanager
    def watching(self):
        layer, result = self.backend.layer, []
        layer.enable_node_timing()
        try:
            yield result
        finally:
            layer.disable_node_timeing()
            rows = Rows()
            for number, function in enumerate(self.functions):
                # It forgets them, too.
                for line in _printed(function.print_node_timing).splitlines():
                    match = _LINE.match(line)
                    if match and int(match.group(3)):
                        calls = int(match.group(3))
                        rows.add(match.group(1), float(match.group(2)) * calls, calls, key=number)
            result.extend(rows.all())


def _printed(function):
    """The output of a function in C; CNTK has a process of its own, in which nobody else prints meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
            function()
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
