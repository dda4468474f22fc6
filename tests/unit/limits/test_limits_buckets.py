"""The arithmetic of one bucket, case by case."""

from __future__ import annotations

import pytest

from aisix.limits.buckets import (
    NEVER,
    Bucket,
    Charge,
    Reading,
    Slot,
    corrected,
    drained,
    judge,
    repaced,
    spent_at,
    wait_s,
)


def charge(cost: int = 1, capacity: int = 60, window_s: float = 60.0) -> Charge:
    return Charge("b", window_s, capacity, cost)


def taken(bucket: Bucket | None, cost: Charge, now: float) -> Bucket:
    granted, _, (after,) = judge([cost], [bucket], [], [], now)
    assert granted
    assert after is not None
    return after


def read(bucket: Bucket | None, now: float, limit: Charge) -> Reading:
    """How `bucket` stands under a limit, seen by a request that costs nothing."""
    return judge([limit._replace(cost=0)], [bucket], [], [], now)[1][0]


def asked(bucket: Bucket | None, cost: Charge, now: float) -> Bucket | None:
    return repaced(bucket, spent_at(bucket, now), cost, now)


def test_a_bucket_that_never_was_is_full():
    assert spent_at(None, 5.0) == 0.0
    assert wait_s(0.0, charge(cost=60)) == 0.0


def test_a_full_bucket_gives_its_whole_capacity_and_no_more():
    bucket = taken(None, charge(cost=60), 0.0)
    assert wait_s(spent_at(bucket, 0.0), charge()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("elapsed", "left"), [(0.0, 60.0), (0.5, 59.5), (30.0, 30.0), (60.0, 0.0), (1e6, 0.0)]
)
def test_what_is_spent_drains_evenly_over_the_window(elapsed, left):
    assert spent_at((60.0, 10.0, 1.0), 10.0 + elapsed) == pytest.approx(left)


def test_a_clock_that_goes_back_drains_nothing_and_does_not_move_the_stamp():
    bucket = (10.0, 100.0, 1.0)
    assert spent_at(bucket, 50.0) == 10.0
    assert taken(bucket, charge(), 50.0)[1] == 100.0
    assert corrected(bucket, charge(), 50.0)[1] == 100.0


def test_who_waits_exactly_as_long_as_told_passes():
    for now in (0.0, 1.1e6):
        bucket = taken(None, charge(cost=7, capacity=7, window_s=86400.0), now)
        wait = wait_s(spent_at(bucket, now), charge(capacity=7, window_s=86400.0))
        later = spent_at(bucket, now + wait)
        assert wait_s(later, charge(capacity=7, window_s=86400.0)) == 0.0


def test_a_capacity_of_zero_is_never_passed():
    assert wait_s(0.0, charge(cost=0, capacity=0)) == NEVER
    assert read(None, 0.0, charge(capacity=0)) == (NEVER, 0.0, NEVER)


def test_a_cost_above_the_capacity_is_never_passed():
    assert wait_s(0.0, charge(cost=61)) == NEVER


def test_a_correction_may_leave_debt_that_time_pays_back():
    bucket = corrected(taken(None, charge(cost=60), 0.0), charge(cost=30), 0.0)
    assert read(bucket, 0.0, charge()).remaining == -30.0
    assert wait_s(spent_at(bucket, 0.0), charge()) == pytest.approx(31.0)
    assert wait_s(spent_at(bucket, 31.0), charge()) == 0.0


def test_a_refund_makes_a_bucket_full_at_most():
    bucket = corrected(taken(None, charge(cost=10), 0.0), charge(cost=-50), 0.0)
    assert bucket[0] == 0.0
    assert read(bucket, 0.0, charge()).remaining == 60.0


def test_a_debt_in_a_bucket_that_is_gone_drains_at_the_pace_of_the_charge():
    assert corrected(None, charge(cost=30, capacity=120), 5.0) == (30.0, 5.0, 2.0)


@pytest.mark.parametrize(
    ("new_limit", "remaining"), [(100, 60.0), (60, 20.0), (40, 0.0), (10, -30.0)]
)
def test_a_changed_limit_keeps_what_is_spent(new_limit, remaining):
    bucket = taken(None, charge(cost=40), 0.0)
    assert read(bucket, 0.0, charge(capacity=new_limit)).remaining == remaining


def test_a_changed_limit_drains_at_the_old_pace_until_it_is_asked():
    bucket = taken(None, charge(cost=40), 0.0)
    assert spent_at(bucket, 10.0) == 30.0
    bucket = taken(bucket, charge(capacity=120), 10.0)
    assert spent_at(bucket, 20.0) == pytest.approx(31.0 - 20.0)


def test_a_correction_leaves_the_pace_to_the_limit_in_force():
    bucket = taken(None, charge(cost=40, capacity=120), 0.0)
    assert corrected(bucket, charge(cost=5, capacity=60), 0.0)[2] == 2.0


def test_a_correction_of_a_drained_bucket_is_that_of_none_at_all():
    bucket = taken(None, charge(cost=40, capacity=120), 0.0)
    late = charge(cost=5)
    assert corrected(bucket, late, 100.0) == corrected(None, late, 100.0) == (5.0, 100.0, 1.0)
    assert taken(bucket, late, 100.0) == taken(None, late, 100.0)


def test_a_drained_bucket_needs_no_other_pace():
    bucket = taken(None, charge(cost=40), 0.0)
    assert asked(bucket, charge(capacity=6), 100.0) is bucket
    assert asked(None, charge(), 0.0) is None


def test_a_bucket_is_drained_when_nothing_is_spent():
    bucket = taken(None, charge(cost=6), 0.0)
    assert not drained(bucket, 5.9)
    assert drained(bucket, 6.0)


def test_a_reading_tells_when_the_bucket_will_be_full():
    assert read((15.0, 0.0, 1.0), 0.0, charge()) == (0.0, 45.0, 15.0)


def test_a_changed_pace_keeps_what_is_spent():
    bucket = taken(None, charge(cost=40), 0.0)
    slower = asked(bucket, charge(capacity=6), 10.0)
    assert spent_at(slower, 10.0) == 30.0
    assert spent_at(slower, 20.0) == pytest.approx(29.0)


def test_an_unchanged_limit_and_a_limit_of_zero_keep_the_pace():
    bucket = taken(None, charge(cost=40), 0.0)
    assert asked(bucket, charge(), 10.0) is bucket
    assert asked(bucket, charge(capacity=0), 10.0) is bucket


def test_a_judgement_takes_all_or_tells_every_wait():
    buckets = [taken(None, charge(cost=60), 0.0), None]
    granted, readings, after = judge([charge(), charge(cost=3)], buckets, [], [], 0.0)
    assert not granted
    assert readings == ((1.0, 0.0, 60.0), (0.0, 60.0, 0.0))
    assert after[0] is buckets[0]
    assert after[1] is None
    granted, readings, after = judge([charge(), charge(cost=3)], buckets, [], [], 1.0)
    assert granted
    assert readings == ((0.0, 0.0, 60.0), (0.0, 57.0, 3.0))
    assert after == [(60.0, 1.0, 1.0), (3.0, 1.0, 1.0)]


@pytest.mark.parametrize(("count", "granted"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_judgement_needs_room_in_every_slot(count, granted):
    slots = [Slot("s", 2), Slot("t", 9)]
    assert judge([], [], slots, [count, 0], 0.0)[0] is granted
