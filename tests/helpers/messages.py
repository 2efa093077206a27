"""Messages as users read them."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The message of an error, which has to be one line with a next command."""
    assert "\n" not in str(error)
    return str(error)
