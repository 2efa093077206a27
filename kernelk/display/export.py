"""Turns a result into a data frame, or into JSON with all figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, FileError, printable
from ..files import replacing


def write_text(path: str | Path, text: str, command: str) -> None:
    """Writes a file, completely or not at all. Raises FileError."""
    try:
        with replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise FileError(
            f"{printable(path, 300)} can't be written: {error.strerror or error}",
            next_step=f"use {command} with another path",
        ) from error


class Exported:
    """A result that can be exported as a data frame or JSON; subclasses define its rows and its raw figures."""

    def records(self) -> list[dict[str, Any]]:
        """One dict for each row of `to_frame`; seconds are floats, sizes are bytes."""
        raise NotImplementedError

    def raw(self) -> dict[str, Any]:
        """The whole result as plain lists, dicts, strings and numbers."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """A pandas DataFrame of `records`. Raises ArgumentError where pandas isn't installed."""
        try:
            import pandas
        except ImportError:
            raise ArgumentError(
                "to_frame needs pandas, which isn't installed", next_step="pip install pandas"
            ) from None
        return pandas.DataFrame(self.records())

    def to_json(self, path: str | Path | None = None) -> str:
        """The whole result, raw samples included, as JSON text; also written to `path`, if given. Raises FileError."""
        text = json.dumps(self.raw(), indent=1)
        if path is not None:
            write_text(path, text + "\n", "to_json")
        return text
