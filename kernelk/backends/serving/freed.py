"""Gives memory that a worker's engine has freed back to the system: the C library keeps it for the next calls."""

import ctypes

# It is given back when no request has come for so many seconds.
REST = 1.0


def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        # Another C library than GNU's, which isn't told to keep any.
        return None


_malloc_trim = _trim()


def give_back():
    """Gives back all free pages."""
    if _malloc_trim is not None:
        _malloc_trim(0)
