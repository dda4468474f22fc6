"""The store of one process is bounded in memory. What it decides: tests/contract."""

from __future__ import annotations

from aisix.limits.buckets import Charge
from aisix.limits.local import LocalBuckets
from tests.support.limited import HandClock, run


def charge(key: str, cost: int = 1, capacity: int = 10) -> Charge:
    return Charge(key, 60.0, capacity, cost)


def test_drained_buckets_of_keys_that_are_gone_are_dropped_under_any_traffic():
    clock = HandClock()
    store = LocalBuckets(clock)
    for number in range(1000):
        run(store.take([charge(f"gone-{number}", 5)], []))
    assert len(store) == 1000

    clock.now += 30.0
    for _ in range(1001):
        clock.now += 0.001
        run(store.take([charge("alive", 1, capacity=10**6)], []))
    assert len(store) == 1


def test_a_stream_of_new_keys_is_swept_as_fast_as_it_comes():
    clock = HandClock()
    store = LocalBuckets(clock)
    for number in range(2000):
        clock.now += 1.0
        run(store.take([charge(f"{kind}-{number}") for kind in "abcd"], []))
        assert len(store) <= 2 * 4 * 60


def test_buckets_that_are_not_full_survive_every_sweep():
    clock = HandClock()
    store = LocalBuckets(clock)
    run(store.take([charge("slow", 10)], []))
    for number in range(200):
        run(store.take([charge(f"other-{number}", 1)], []))
    assert run(store.take([charge("slow", 0)], [])).readings[0].remaining == 0.0


def test_a_refused_take_sweeps_too():
    clock = HandClock()
    store = LocalBuckets(clock)
    run(store.take([charge("a", 1)], []))
    clock.now += 60.0
    run(store.take([charge("b", 1, capacity=0)], []))
    assert len(store) == 0
