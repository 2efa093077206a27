"""Bounded caches: when one is full, the oldest quarter of its entries is dropped."""

from __future__ import annotations

import itertools
from collections.abc import MutableMapping
from typing import Any, TypeVar

Key = TypeVar("Key")


def drop_oldest(entries: MutableMapping[Key, Any], most: int) -> list[Key]:
    """Removes the oldest quarter of a mapping with more than `most` entries; returns the removed keys."""
    if len(entries) <= most:
        return []
    gone = list(itertools.islice(entries, len(entries) - most + most // 4))
    for key in gone:
        del entries[key]
    return gone
