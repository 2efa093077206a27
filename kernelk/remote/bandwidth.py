"""How long values take over the network, from the transfers made so far: it paces the kernel's checkpoints."""

from __future__ import annotations

import math

# What is smaller tells of the round trip alone.
_LEAST_BYTES = 1 << 16


class Bandwidth:
    """Of one engine's requests; `trip` is the shortest one, in seconds."""

    def __init__(self) -> None:
        self.trip = math.inf
        self._rates: dict[str, float] = {}  # bytes in a second, by the request: "fetch", "load"

    def note(self, do: str, nbytes: int, seconds: float) -> None:
        """Notes a request, the bytes of the values that it has moved, and how long it took."""
        self.trip = min(self.trip, seconds)
        if nbytes >= _LEAST_BYTES:
            self._rates[do] = nbytes / max(seconds - self.trip, seconds / 10)

    @property
    def rate(self) -> float:
        """The bytes in a second; 0 as long as nothing is known. The two ways may differ: a fetch counts first."""
        return self._rates.get("fetch") or self._rates.get("load") or 0.0

    def seconds(self, nbytes: int) -> float | None:
        """How long it takes to fetch so many bytes; None as long as nothing is known."""
        return self.trip + nbytes / self.rate if self.rate else None
