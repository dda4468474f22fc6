"""Buckets and concurrency counters in the memory of this process. No I/O.

One `take` is atomic because it never awaits: everything is checked before anything is committed, so
a request that one limit refuses consumes none of the others. Memory is bounded by the live buckets:
each take looks at a few entries in turn and drops those that have drained, which is how the buckets
of deleted keys go away. A counter at zero is not kept either.
"""

from __future__ import annotations

from collections.abc import Sequence

from aisix.core.ports import Clock
from aisix.limits.buckets import Bucket, Charge, Decision, Slot, corrected, drained, judge


class LocalBuckets:
    """The bucket store of a gateway that is one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._in_flight: dict[str, int] = {}
        self._unswept: list[str] = []

    def __len__(self) -> int:
        """Entries held: buckets that are not full, and counters that are not zero."""
        return len(self._buckets) + len(self._in_flight)

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        """Take all `charges` and `slots`, whose keys are distinct, or nothing."""
        now = self._clock.monotonic()
        held = self._buckets
        before = len(held)
        buckets = []
        for charge in charges:  # loops: a comprehension is a call more
            buckets.append(held.get(charge.key))
        counts = []
        for slot in slots:
            counts.append(self._in_flight.get(slot.key, 0))
        granted, readings, after = judge(charges, buckets, slots, counts, now)
        for index, bucket in enumerate(after):
            if bucket is not None:
                held[charges[index].key] = bucket
        if granted:
            for index, slot in enumerate(slots):
                counts[index] += 1
                self._in_flight[slot.key] = counts[index]
        self._sweep(now, len(held) - before + 1)
        return Decision(granted, readings, tuple(counts))

    def give_back(self, corrections: Sequence[Charge], slots: Sequence[Slot], claim: str) -> None:
        """Apply signed `corrections` and free `slots`."""
        now = self._clock.monotonic()
        for charge in corrections:
            bucket = corrected(self._buckets.get(charge.key), charge, now)
            if bucket[0] > 0.0:
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
        """Look at the next `count` entries, one more than the take added; drop what has drained.

        So the store shrinks under any traffic, without a timer and without ever walking all of it.
        """
        for _ in range(count):
            if not self._unswept:
                self._unswept = list(self._buckets)
                if not self._unswept:
                    return
            key = self._unswept.pop()
            bucket = self._buckets.get(key)
            if bucket is not None and drained(bucket, now):
                del self._buckets[key]
