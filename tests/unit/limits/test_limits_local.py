"""The store of one process: atomic, exact, and bounded in memory."""

from __future__ import annotations

from aisix.limits.buckets import NEVER, Charge, Slot
from aisix.limits.local import LocalBuckets
from tests.support.limited import HandClock, run


def charge(key: str, cost: int = 1, capacity: int = 10) -> Charge:
    return Charge(key, 60.0, capacity, cost)


def test_a_refused_take_changes_nothing():
    store = LocalBuckets(HandClock())
    run(store.take([charge("b", 10)], [Slot("s", 2)]))
    before = run(store.take([charge("a", 0), charge("b", 0)], []))

    refused = run(store.take([charge("a", 3), charge("b", 1)], [Slot("s", 2)]))
    assert not refused.granted
    assert refused.readings[0].wait_s == 0.0
    assert refused.readings[1].wait_s == 6.0
    assert refused.in_flight == (1,)
    assert run(store.take([charge("a", 0), charge("b", 0)], [])).readings == before.readings


def test_a_full_slot_refuses_and_takes_from_no_bucket():
    store = LocalBuckets(HandClock())
    run(store.take([], [Slot("s", 1)]))
    refused = run(store.take([charge("a", 3)], [Slot("s", 1), Slot("t", 1)]))
    assert (refused.granted, refused.in_flight) == (False, (1, 0))
    assert refused.readings[0] == (0.0, 10.0, 0.0)


def test_a_granted_take_reads_as_it_stands_afterwards():
    store = LocalBuckets(HandClock())
    granted = run(store.take([charge("a", 4)], [Slot("s", 3)]))
    assert granted.granted
    assert granted.readings == ((0.0, 6.0, 24.0),)
    assert granted.in_flight == (1,)


def test_a_limit_of_zero_refuses_with_no_end():
    store = LocalBuckets(HandClock())
    refused = run(store.take([charge("a", 0, capacity=0)], []))
    assert (refused.granted, refused.readings[0].wait_s) == (False, NEVER)
    assert len(store) == 0


def test_giving_everything_back_leaves_nothing_behind():
    store = LocalBuckets(HandClock())
    run(store.take([charge("a", 4)], [Slot("s", 3)]))
    store.give_back([charge("a", -4)], [Slot("s", 3)], "")
    assert len(store) == 0


def test_a_slot_freed_too_often_does_not_make_room():
    store = LocalBuckets(HandClock())
    store.give_back([], [Slot("s", 1)], "")
    assert run(store.take([], [Slot("s", 1)])).granted
    assert not run(store.take([], [Slot("s", 1)])).granted


def test_a_lowered_concurrency_limit_waits_for_those_in_flight():
    store = LocalBuckets(HandClock())
    for _ in range(3):
        run(store.take([], [Slot("s", 5)]))
    assert not run(store.take([], [Slot("s", 2)])).granted
    store.give_back([], [Slot("s", 5), Slot("s", 5)], "")
    assert run(store.take([], [Slot("s", 2)])).granted


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
