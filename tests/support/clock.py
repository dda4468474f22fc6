"""A clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """Implements Clock. Both times start apart, so that a mix-up shows."""

    def __init__(self, monotonic: float = 1_000.0, time: float = 1_760_000_000.0) -> None:
        self._monotonic = monotonic
        self._time = time

    def monotonic(self) -> float:
        """Seconds, for intervals."""
        return self._monotonic

    def time(self) -> float:
        """UTC epoch seconds, for records."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._time += seconds
