"""A worker that answers what a test tells it to, once, in place of its reply to a request of one kind."""

from __future__ import annotations

import json
from pathlib import Path

# Goes into the worker's code, before it serves. "facts" is what it says when it has started.
HOSTILE = """
import struct, threading, time
executor = importlib.import_module("kernelk.backends.serving.executor")
wire = importlib.import_module("kernelk.backends.serving.wire")
honest, handle, last = wire.Wire.send, executor.Executor.handle, ["facts"]
def handled(self, request):
    last[0] = request["do"]
    return handle(self, request)
def send(self, message, number=0, files=()):
    try:
        with open(os.environ["KERNELK_TEST_HOSTILE"]) as file:
            kind, code = json.load(file)
    except (OSError, ValueError):
        kind, code = None, ""
    if kind != last[0]:
        return honest(self, message, number, files)
    os.remove(os.environ["KERNELK_TEST_HOSTILE"])
    def raw(data, kind=0, number=number, length=None):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        frame = struct.pack("<IBQ", len(body) if length is None else length, kind, number) + body
        self.connection.sendall(frame)
    exec(code, dict(globals(), raw=raw, message=message, number=number, connection=self.connection))
executor.Executor.handle, wire.Wire.send = handled, send
"""


class Hostile:
    """Has the worker run `code` in place of its next reply to a request of this kind; `raw` sends a frame."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def answer(self, kind: str, code: str) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps([kind, code]))
        fresh.rename(self._file)

    @property
    def has_answered(self) -> bool:
        return not self._file.exists()
