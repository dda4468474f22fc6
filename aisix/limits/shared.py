"""Buckets and concurrency counters that all workers of a host share. Exact across them.

One store per worker, over one `SharedTable` that was made before the fork. A decision is one turn
under the table's lock, and what it decides is `judge`'s, as in `LocalBuckets`. The clock has to be
the same in all processes (CLOCK_MONOTONIC is); it is read under the lock, so no decision sees time
go back. The lock is waited for inside the event loop: it is held for microseconds, never across an
await.

A worker that is killed takes its slots with it until its column is reclaimed, and its reservations
stay spent until they drain. Killed inside a decision, it may have charged some of the buckets of
that one request and not the others; no more is ever lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from aisix.core.ports import Clock
from aisix.limits.buckets import Bucket, Charge, Decision, Slot, corrected, judge
from aisix.limits.table import NOWHERE, Place, SharedTable

__all__ = ["SharedBuckets", "SharedTable"]

MAX_PLACES = 65_536
"""Keys whose rows one process remembers; beyond it they are looked for again."""


class SharedBuckets:
    """The bucket store of one worker; `worker` is its number, which a successor takes over."""

    def __init__(self, table: SharedTable, *, worker: int, clock: Clock) -> None:
        """Begin with no slot held: what a dead predecessor had is taken back. Raises ValueError."""
        table.reclaim(worker)
        self._table = table
        self._worker = worker
        self._clock = clock
        self._buckets = _Places()
        self._counters = _Places()

    def __len__(self) -> int:
        """Rows of the whole table that hold something. Walks all of it."""
        return self._table.used(self._clock.monotonic())

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        """Take all `charges` and `slots`, whose keys are distinct, or nothing."""
        table = self._table
        places, seats = self._find(charges, slots)
        read_bucket, read_count = table.buckets.read, table.counters.read
        table.lock()
        try:
            now = self._clock.monotonic()
            buckets, counts = [], []
            for place in places:
                buckets.append(read_bucket(place))
            for seat in seats:
                counts.append(read_count(seat))
            granted, readings, after = judge(charges, buckets, slots, counts, now)
            for index, bucket in enumerate(after):
                if bucket is not None and bucket is not buckets[index]:
                    self._write(places[index], bucket, places, now=now)
            if granted:
                for index, seat in enumerate(seats):
                    if seat.at == NOWHERE:
                        table.counters.claim(seat, now, {other.at for other in seats})
                    table.counters.enter(seat.at, self._worker)
                    counts[index] += 1
        finally:
            table.unlock()
        return Decision(granted, readings, tuple(counts))

    def give_back(self, corrections: Sequence[Charge], slots: Sequence[Slot], claim: str) -> None:
        """Apply signed `corrections` and free `slots` that this worker took."""
        table = self._table
        places, seats = self._find(corrections, slots)
        table.lock()
        try:
            now = self._clock.monotonic()
            for index, place in enumerate(places):
                bucket = corrected(table.buckets.read(place), corrections[index], now)
                self._write(place, bucket, places, now=now)
            for seat in seats:
                if table.counters.read(seat) > 0:
                    table.counters.leave(seat.at, self._worker)
        finally:
            table.unlock()

    def _find(
        self, charges: Sequence[Charge], slots: Sequence[Slot]
    ) -> tuple[list[Place], list[Place]]:
        """Where the rows of `charges` and `slots` may be. Loops: a comprehension is a call more."""
        places, seats = [], []
        for charge in charges:
            places.append(self._buckets[charge.key])
        for slot in slots:
            seats.append(self._counters[slot.key])
        return places, seats

    def _write(self, place: Place, bucket: Bucket, busy: Sequence[Place], *, now: float) -> None:
        """Keep `bucket` at `place`; if it needs a row and has none, in one not of `busy`."""
        rows = self._table.buckets
        if place.at == NOWHERE:
            if bucket[0] <= 0.0:
                return
            rows.claim(place, now, {other.at for other in busy})
        rows.write(place.at, bucket)


class _Places(dict[str, Place]):
    """Places by key, made when first asked for."""

    def __missing__(self, key: str) -> Place:
        if len(self) >= MAX_PLACES:
            self.clear()
        place = self[key] = Place(key)
        return place
