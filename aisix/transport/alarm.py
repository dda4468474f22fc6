"""One loop timer for many moments: it rings at the earliest wanted one. I/O: a timer of the loop.

Most moments never come, because what they guard ends first. So nothing is cancelled when it ends:
the timer stays, rings in vain, and whoever is rung then says which moment is the next. An alarm
costs a comparison where a timer of its own would cost two entries in the loop's heap.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

NEVER = math.inf


class Alarm:
    """Calls `ring` once at, or shortly after, the earliest moment wanted since it last rang.

    Moments are seconds on the scale of `now`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        now: Callable[[], float],
        ring: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._ring = ring
        self._at = NEVER
        self._timer: asyncio.TimerHandle | None = None

    def want(self, at: float) -> None:
        """Ring at `at`, unless it rings earlier anyway."""
        if at < self._at:
            self.cancel()
            self._at = at
            self._timer = self._loop.call_later(max(0.0, at - self._now()), self._fire)

    def cancel(self) -> None:
        """Forget every moment."""
        timer, self._timer = self._timer, None
        self._at = NEVER
        if timer is not None:
            timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._at = NEVER
        self._ring()
