"""Which of Keras's tests aren't run, and why: `excluded.txt`, read and checked."""

from __future__ import annotations

import re

from keras_on_kernelk import SUITE

# All that may keep a test out.
KINDS = ("network", "downloads", "the engine's own objects")
_LINE = re.compile(r"(?P<file>[\w/]+\.py)::(?P<test>\S+?)(?: on (?P<engine>\w+))?: (?P<kind>[^:]+): (?P<why>.+)")


def of(file: str, engine: str) -> dict[str, str]:
    """Test, or class of tests, in the file -> why it isn't run on the engine. ValueError for a line of no kind."""
    found = {}
    for line in (SUITE / "excluded.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match["kind"] not in KINDS:
            raise ValueError(f"excluded.txt wants 'FILE::TEST: KIND: why' with one of {', '.join(KINDS)}, not: {line}")
        if match["file"] == file and match["engine"] in (None, engine):
            found[match["test"]] = f"{match['kind']}: {match['why']}"
    return found
