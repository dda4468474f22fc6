"""What every bucket store does: the one of a single process, and the one that workers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aisix.limits.buckets import NEVER, Charge, Slot
from aisix.limits.limiter import BucketStore
from aisix.limits.local import LocalBuckets
from tests.support.limited import HandClock, TakingStore, run, shared_stores


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=["local", "shared", "shared by two"])
def stores(request: pytest.FixtureRequest, clock: HandClock) -> Iterator[list[TakingStore]]:
    """Handles on the same buckets; a test takes by one and looks by the other."""
    if request.param == "local":
        store = LocalBuckets(clock)
        yield [store, store]
        return
    with shared_stores(clock, workers=2, entries=64) as (first, second):
        yield [first, first] if request.param == "shared" else [first, second]


def charge(key: str, cost: int = 1, capacity: int = 10) -> Charge:
    return Charge(key, 60.0, capacity, cost)


def remaining(store: BucketStore, *keys: str) -> list[float]:
    decision = run(store.take([charge(key, 0) for key in keys], []))
    return [reading.remaining for reading in decision.readings]


def test_a_granted_take_reads_as_it_stands_afterwards(stores):
    granted = run(stores[0].take([charge("a", 4)], [Slot("s", 3)]))
    assert granted.granted
    assert granted.readings == ((0.0, 6.0, 24.0),)
    assert granted.in_flight == (1,)
    assert remaining(stores[1], "a") == [6.0]


def test_a_refused_take_changes_nothing(stores):
    run(stores[0].take([charge("b", 10)], [Slot("s", 2)]))
    before = remaining(stores[1], "a", "b")
    held = len(stores[0])
    refused = run(stores[1].take([charge("a", 3), charge("b", 1)], [Slot("s", 2)]))
    assert not refused.granted
    assert refused.readings == ((0.0, 10.0, 0.0), (6.0, 0.0, 60.0))
    assert refused.in_flight == (1,)
    assert remaining(stores[0], "a", "b") == before
    assert len(stores[0]) <= held


def test_a_full_slot_refuses_and_takes_from_no_bucket(stores):
    run(stores[0].take([], [Slot("s", 1)]))
    refused = run(stores[1].take([charge("a", 3)], [Slot("s", 1), Slot("t", 1)]))
    assert (refused.granted, refused.in_flight) == (False, (1, 0))
    assert refused.readings[0] == (0.0, 10.0, 0.0)
    assert len(stores[0]) == 1


def test_a_limit_of_zero_refuses_with_no_end(stores):
    refused = run(stores[0].take([charge("a", 0, capacity=0)], []))
    assert (refused.granted, refused.readings[0].wait_s) == (False, NEVER)
    assert not run(stores[1].take([], [Slot("s", 0)])).granted
    assert len(stores[0]) == 0


def test_a_bucket_and_a_counter_of_one_name_are_two(stores):
    assert run(stores[0].take([charge("x", 4)], [Slot("x", 3)])).in_flight == (1,)
    assert remaining(stores[1], "x") == [6.0]


def test_what_is_spent_drains_with_time(stores, clock):
    run(stores[0].take([charge("a", 10)], []))
    clock.now += 6.0
    assert run(stores[1].take([charge("a", 1)], [])).granted
    assert not run(stores[0].take([charge("a", 1)], [])).granted
    clock.now += 60.0
    assert remaining(stores[1], "a") == [10.0]


def test_giving_everything_back_leaves_nothing_behind(stores):
    run(stores[0].take([charge("a", 4)], [Slot("s", 3)]))
    stores[0].give_back([charge("a", -4)], [Slot("s", 3)], "")
    assert len(stores[1]) == 0


def test_a_correction_may_leave_debt(stores):
    run(stores[0].take([charge("a", 4)], []))
    stores[0].give_back([charge("a", 16)], [], "")
    assert remaining(stores[1], "a") == [-10.0]


def test_a_correction_of_a_bucket_that_is_gone_is_kept_when_it_spends(stores):
    stores[0].give_back([charge("a", 3), charge("b", -3)], [], "")
    assert remaining(stores[1], "a", "b") == [7.0, 10.0]
    assert len(stores[0]) == 1


def test_a_slot_freed_too_often_does_not_make_room(stores):
    stores[0].give_back([], [Slot("s", 1)], "")
    assert run(stores[0].take([], [Slot("s", 1)])).granted
    assert not run(stores[1].take([], [Slot("s", 1)])).granted


def test_a_lowered_concurrency_limit_waits_for_those_in_flight(stores):
    for _ in range(3):
        run(stores[0].take([], [Slot("s", 5)]))
    assert not run(stores[1].take([], [Slot("s", 2)])).granted
    stores[0].give_back([], [Slot("s", 5), Slot("s", 5)], "")
    assert run(stores[1].take([], [Slot("s", 2)])).in_flight == (2,)


def test_a_changed_limit_keeps_what_is_spent_and_sets_the_pace_when_asked(stores, clock):
    run(stores[0].take([charge("a", 8)], []))
    lowered = run(stores[1].take([charge("a", 1, capacity=6)], []))
    assert not lowered.granted
    assert lowered.readings[0].wait_s == pytest.approx(30.0)
    clock.now += 30.0
    assert run(stores[0].take([charge("a", 1, capacity=6)], [])).granted


def test_nothing_to_take_is_granted(stores):
    assert run(stores[0].take([], [])) == (True, (), (), "")
