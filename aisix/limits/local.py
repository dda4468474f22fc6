"""Buckets and concurrency counters in the memory of this process. No I/O.

One `take` is atomic because it never awaits: everything is checked before anything is committed, so
a request that one limit refuses consumes none of the others. Memory is bounded by the live buckets:
each take looks at a few of the oldest entries and drops those that have drained, which is how the
buckets of deleted keys go away. A counter at zero is not kept either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from aisix.core.ports import Clock
from aisix.limits.buckets import (
    Bucket,
    Charge,
    Decision,
    Slot,
    charged,
    corrected,
    drained,
    read,
    repaced,
    spent_at,
    wait_s,
)


class LocalBuckets:
    """The bucket store of a gateway that is one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._in_flight: dict[str, int] = {}

    def __len__(self) -> int:
        """Entries held: buckets that are not full, and counters that are not zero."""
        return len(self._buckets) + len(self._in_flight)

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        """Take all `charges` and `slots`, whose keys are distinct, or nothing."""
        now = self._clock.monotonic()
        spent = [spent_at(self._buckets.get(charge.key), now) for charge in charges]
        waits = [wait_s(level, charge) for level, charge in zip(spent, charges, strict=True)]
        counts = [self._in_flight.get(slot.key, 0) for slot in slots]
        granted = not any(waits) and all(
            count < slot.limit for count, slot in zip(counts, slots, strict=True)
        )
        if granted:
            for index, charge in enumerate(charges):
                bucket = charged(self._buckets.get(charge.key), charge, now)
                self._buckets[charge.key] = bucket
                spent[index] = bucket.spent
            for index, slot in enumerate(slots):
                counts[index] += 1
                self._in_flight[slot.key] = counts[index]
        else:
            for charge in charges:
                known = self._buckets.get(charge.key)
                if known is not None:
                    self._buckets[charge.key] = repaced(known, charge, now)
        self._sweep(now, len(charges) + 1)
        readings = tuple(map(read, spent, charges, waits))
        return Decision(granted, readings, tuple(counts))

    def give_back(self, corrections: Sequence[Charge], slots: Sequence[Slot], claim: str) -> None:
        """Apply signed `corrections` and free `slots`."""
        now = self._clock.monotonic()
        for charge in corrections:
            bucket = corrected(self._buckets.get(charge.key), charge, now)
            if bucket.spent > 0.0:
                self._buckets[charge.key] = bucket
            else:
                self._buckets.pop(charge.key, None)
        for slot in slots:
            count = self._in_flight.get(slot.key, 0) - 1
            if count > 0:
                self._in_flight[slot.key] = count
            else:
                self._in_flight.pop(slot.key, None)

    def _sweep(self, now: float, count: int) -> None:
        """Look at the `count` entries that were looked at longest ago; drop what has drained.

        One more than a take can add, so the store shrinks under any traffic, without a timer and
        without ever walking all of it.
        """
        for _ in range(min(count, len(self._buckets))):
            key = next(iter(self._buckets))
            if drained(self._buckets[key], now):
                del self._buckets[key]
            else:
                self._buckets.move_to_end(key)
