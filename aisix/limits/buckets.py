"""Arithmetic of a token bucket that refills continuously. Pure: the time is an argument.

A bucket of capacity C over a window W holds what has been *spent* and not yet refilled; it drains
by C / W per second down to nothing. Storing what is spent, rather than what is left, is what makes
a changed limit keep it: under the new capacity the same amount is still spent. A bucket carries the
rate of the limit that last judged it, so a change of limit sets the pace from the first request
under it, and a drained bucket is the same as none at all: dropping it never changes a decision.

A take is granted when what is spent plus the cost stays within the capacity. Corrections are never
refused: they may spend more than the capacity (debt, paid back by time) and never make a bucket
better than full. `Charge`, `Slot`, `Reading` and `Decision` are what a bucket store is asked and
answers, wherever its buckets live; `judge` decides for every store, so that all decide alike. They
are tuples because several are made for every request.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

NEVER = inf
"""The wait of a charge that no amount of waiting lets pass."""

TOLERANCE = 1e-6
"""Rounding allowance in tokens: who waits exactly as long as told must pass."""


class Charge(NamedTuple):
    """One bucket and what to take from it. As a correction, `cost` is signed: below 0 refunds."""

    key: str
    window_s: float
    capacity: int
    cost: int


class Slot(NamedTuple):
    """One place among at most `limit` exchanges at a time."""

    key: str
    limit: int


class Reading(NamedTuple):
    """How a bucket stands after a decision.

    `wait_s` is 0 when the charge fits, else the time until it would, or NEVER. `remaining` is below
    0 in debt. `full_in_s` is NEVER for a capacity of 0.
    """

    wait_s: float
    remaining: float
    full_in_s: float


class Decision(NamedTuple):
    """The answer to one request for charges and slots, in the order they were asked for.

    Granted: everything was taken and `in_flight` includes this exchange. Refused: nothing was.
    `claim` is the store's own name for the slots taken; it is handed back with them.
    """

    granted: bool
    readings: tuple[Reading, ...]
    in_flight: tuple[int, ...]
    claim: str = ""


Bucket = tuple[float, float, float]
"""State: what is spent, the monotonic second at which it was, and what drains per second."""


def spent_at(bucket: Bucket | None, now: float) -> float:
    """What is spent at `now`; a clock that went back drains nothing."""
    if bucket is None:
        return 0.0
    spent, stamp, rate = bucket
    elapsed = now - stamp
    if elapsed <= 0.0:
        return spent
    left = spent - elapsed * rate
    return left if left > 0.0 else 0.0


def wait_s(spent: float, charge: Charge) -> float:
    """0 when `charge` fits on top of `spent`, else the seconds until it does, or NEVER."""
    _, window_s, capacity, cost = charge
    if capacity <= 0 or cost > capacity:
        return NEVER
    excess = spent + cost - capacity
    if excess <= TOLERANCE:
        return 0.0
    return excess * window_s / capacity


def repaced(bucket: Bucket | None, spent: float, charge: Charge, now: float) -> Bucket | None:
    """The same spending, from now on draining at the pace of a limit that was changed.

    A refused take does this too, or the wait that it tells would be that of another pace. A limit
    of 0 has no pace, and what has drained needs none. An unchanged bucket is the same object.
    """
    rate = charge.capacity / charge.window_s
    if bucket is None or spent <= 0.0 or rate in (bucket[2], 0.0):
        return bucket
    return spent, _stamp(bucket, spent, now), rate


def corrected(bucket: Bucket | None, charge: Charge, now: float) -> Bucket:
    """The next state after a correction, which may leave debt but nothing beyond full.

    A living bucket keeps its own pace: the limit may have been changed since the take.
    """
    before = spent_at(bucket, now)
    rate = charge.capacity / charge.window_s if bucket is None or before <= 0.0 else bucket[2]
    after = before + charge.cost
    return after if after > 0.0 else 0.0, _stamp(bucket, before, now), rate


def drained(bucket: Bucket, now: float) -> bool:
    """Whether nothing is spent any more, so that the bucket need not be kept."""
    return spent_at(bucket, now) <= 0.0


def judge(
    charges: Sequence[Charge],
    buckets: Sequence[Bucket | None],
    slots: Sequence[Slot],
    counts: Sequence[int],
    now: float,
) -> tuple[bool, tuple[Reading, ...], list[Bucket | None]]:
    """Decide whether all `charges` fit their `buckets` and all `slots` their `counts`.

    Returns whether they do, how each bucket stands afterwards, and its next state: the same object
    where nothing changes. From a granted take on, the limit of its charge sets the pace.
    """
    for index, slot in enumerate(slots):
        if counts[index] >= slot.limit:
            return _refuse(charges, buckets, now)
    readings = []
    after: list[Bucket | None] = []
    for index, charge in enumerate(charges):
        bucket = buckets[index]
        spent, stamp = 0.0, now
        if bucket is not None:
            spent = spent_at(bucket, now)
            stamp = _stamp(bucket, spent, now)
        _, window_s, capacity, cost = charge
        spent += cost
        left = capacity - spent
        if left < -TOLERANCE or not 0 < capacity >= cost:
            return _refuse(charges, buckets, now)
        after.append((spent, stamp, capacity / window_s))
        # what NamedTuple does, without its Python code
        readings.append(tuple.__new__(Reading, (0.0, left, spent * window_s / capacity)))
    return True, tuple(readings), after


def _refuse(
    charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: float
) -> tuple[bool, tuple[Reading, ...], list[Bucket | None]]:
    """What `judge` answers when not everything fits: every wait, and nothing taken."""
    readings = []
    after = []
    for bucket, charge in zip(buckets, charges, strict=True):
        _, window_s, capacity, _ = charge
        spent = spent_at(bucket, now)
        full_in_s = spent * window_s / capacity if capacity > 0 else NEVER
        readings.append(Reading(wait_s(spent, charge), capacity - spent, full_in_s))
        after.append(repaced(bucket, spent, charge, now))
    return False, tuple(readings), after


def _stamp(bucket: Bucket | None, spent: float, now: float) -> float:
    """When a new state begins: now, or where it was when the clock went back."""
    if bucket is None or spent <= 0.0 or bucket[1] < now:
        return now
    return bucket[1]
