"""Arithmetic of a token bucket that refills continuously. Pure: the time is an argument.

A bucket of capacity C over a window W holds what has been *spent* and not yet refilled; it drains
by C / W per second down to nothing. Storing what is spent, rather than what is left, is what makes
a changed limit keep it: under the new capacity the same amount is still spent. A bucket carries the
rate of the limit that last judged it, so a change of limit sets the pace from the first request
under it, and a drained bucket is the same as none at all: dropping it never changes a decision.

A take is granted when what is spent plus the cost stays within the capacity. Corrections are never
refused: they may spend more than the capacity (debt, paid back by time) and never make a bucket
better than full. `Charge`, `Slot`, `Reading` and `Decision` are what a bucket store is asked and
answers, wherever its buckets live. They are tuples because several are made for every request.
"""

from __future__ import annotations

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


class Bucket(NamedTuple):
    """State: `spent` at the monotonic second `stamp`, draining by `rate` per second."""

    spent: float
    stamp: float
    rate: float


def spent_at(bucket: Bucket | None, now: float) -> float:
    """What is spent at `now`; a clock that went back drains nothing."""
    if bucket is None:
        return 0.0
    elapsed = now - bucket.stamp
    if elapsed <= 0.0:
        return bucket.spent
    left = bucket.spent - elapsed * bucket.rate
    return left if left > 0.0 else 0.0


def wait_s(spent: float, charge: Charge) -> float:
    """0 when `charge` fits on top of `spent`, else the seconds until it does, or NEVER."""
    if charge.capacity <= 0 or charge.cost > charge.capacity:
        return NEVER
    excess = spent + charge.cost - charge.capacity
    if excess <= TOLERANCE:
        return 0.0
    return excess * charge.window_s / charge.capacity


def charged(bucket: Bucket | None, charge: Charge, now: float) -> Bucket:
    """The next state after a granted take; from here on the charge's limit sets the pace."""
    stamp = now if bucket is None else max(now, bucket.stamp)
    rate = charge.capacity / charge.window_s
    return Bucket(spent_at(bucket, now) + charge.cost, stamp, rate)


def repaced(bucket: Bucket, charge: Charge, now: float) -> Bucket:
    """The same spending, from now on draining at the pace of a limit that was changed.

    A refused take does this too, or the wait that it tells would be that of another pace. A limit
    of 0 has no pace.
    """
    rate = charge.capacity / charge.window_s
    if rate in (bucket.rate, 0.0):
        return bucket
    return Bucket(spent_at(bucket, now), max(now, bucket.stamp), rate)


def corrected(bucket: Bucket | None, charge: Charge, now: float) -> Bucket:
    """The next state after a correction, which may leave debt but nothing beyond full.

    A living bucket keeps its own pace: the limit may have been changed since the take.
    """
    spent = max(0.0, spent_at(bucket, now) + charge.cost)
    if bucket is None:
        return Bucket(spent, now, charge.capacity / charge.window_s)
    return Bucket(spent, max(now, bucket.stamp), bucket.rate)


def drained(bucket: Bucket, now: float) -> bool:
    """Whether nothing is spent any more, so that the bucket need not be kept."""
    return spent_at(bucket, now) <= 0.0


def read(spent: float, charge: Charge, wait: float) -> Reading:
    """How a bucket with so much `spent` stands; `wait` is what was decided about `charge`."""
    full_in = spent * charge.window_s / charge.capacity if charge.capacity > 0 else NEVER
    return Reading(wait, charge.capacity - spent, full_in)
