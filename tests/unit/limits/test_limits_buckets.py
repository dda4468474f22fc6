"""The arithmetic of one bucket, case by case."""

from __future__ import annotations

import pytest

from aisix.limits.buckets import (
    NEVER,
    Bucket,
    Charge,
    charged,
    corrected,
    drained,
    read,
    repaced,
    spent_at,
    wait_s,
)


def charge(cost: int = 1, capacity: int = 60, window_s: float = 60.0) -> Charge:
    return Charge("b", window_s, capacity, cost)


def test_a_bucket_that_never_was_is_full():
    assert spent_at(None, 5.0) == 0.0
    assert wait_s(0.0, charge(cost=60)) == 0.0


def test_a_full_bucket_gives_its_whole_capacity_and_no_more():
    bucket = charged(None, charge(cost=60), 0.0)
    assert wait_s(spent_at(bucket, 0.0), charge()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("elapsed", "left"), [(0.0, 60.0), (0.5, 59.5), (30.0, 30.0), (60.0, 0.0), (1e6, 0.0)]
)
def test_what_is_spent_drains_evenly_over_the_window(elapsed, left):
    assert spent_at(Bucket(60.0, 10.0, 1.0), 10.0 + elapsed) == pytest.approx(left)


def test_a_clock_that_goes_back_drains_nothing_and_does_not_move_the_stamp():
    bucket = Bucket(10.0, 100.0, 1.0)
    assert spent_at(bucket, 50.0) == 10.0
    assert charged(bucket, charge(), 50.0).stamp == 100.0
    assert corrected(bucket, charge(), 50.0).stamp == 100.0


def test_who_waits_exactly_as_long_as_told_passes():
    for now in (0.0, 1.1e6):
        bucket = charged(None, charge(cost=7, capacity=7, window_s=86400.0), now)
        wait = wait_s(spent_at(bucket, now), charge(capacity=7, window_s=86400.0))
        later = spent_at(bucket, now + wait)
        assert wait_s(later, charge(capacity=7, window_s=86400.0)) == 0.0


def test_a_capacity_of_zero_is_never_passed():
    assert wait_s(0.0, charge(cost=0, capacity=0)) == NEVER
    assert read(0.0, charge(capacity=0), NEVER) == (NEVER, 0.0, NEVER)


def test_a_cost_above_the_capacity_is_never_passed():
    assert wait_s(0.0, charge(cost=61)) == NEVER


def test_a_correction_may_leave_debt_that_time_pays_back():
    bucket = corrected(charged(None, charge(cost=60), 0.0), charge(cost=30), 0.0)
    assert read(bucket.spent, charge(), 0.0).remaining == -30.0
    assert wait_s(spent_at(bucket, 0.0), charge()) == pytest.approx(31.0)
    assert wait_s(spent_at(bucket, 31.0), charge()) == 0.0


def test_a_refund_makes_a_bucket_full_at_most():
    bucket = corrected(charged(None, charge(cost=10), 0.0), charge(cost=-50), 0.0)
    assert bucket.spent == 0.0
    assert read(bucket.spent, charge(), 0.0).remaining == 60.0


def test_a_debt_in_a_bucket_that_is_gone_drains_at_the_pace_of_the_charge():
    assert corrected(None, charge(cost=30, capacity=120), 5.0) == Bucket(30.0, 5.0, 2.0)


@pytest.mark.parametrize(
    ("new_limit", "remaining"), [(100, 60.0), (60, 20.0), (40, 0.0), (10, -30.0)]
)
def test_a_changed_limit_keeps_what_is_spent(new_limit, remaining):
    bucket = charged(None, charge(cost=40), 0.0)
    changed = charge(capacity=new_limit)
    spent = spent_at(bucket, 0.0)
    assert read(spent, changed, wait_s(spent, changed)).remaining == remaining


def test_a_changed_limit_drains_at_the_old_pace_until_it_is_asked():
    bucket = charged(None, charge(cost=40), 0.0)
    assert spent_at(bucket, 10.0) == 30.0
    bucket = charged(bucket, charge(capacity=120), 10.0)
    assert spent_at(bucket, 20.0) == pytest.approx(31.0 - 20.0)


def test_a_correction_leaves_the_pace_to_the_limit_in_force():
    bucket = charged(None, charge(cost=40, capacity=120), 0.0)
    assert corrected(bucket, charge(cost=5, capacity=60), 0.0).rate == 2.0


def test_a_bucket_is_drained_when_nothing_is_spent():
    bucket = charged(None, charge(cost=6), 0.0)
    assert not drained(bucket, 5.9)
    assert drained(bucket, 6.0)


def test_a_reading_tells_when_the_bucket_will_be_full():
    assert read(15.0, charge(), 2.5) == (2.5, 45.0, 15.0)


def test_a_changed_pace_keeps_what_is_spent():
    bucket = charged(None, charge(cost=40), 0.0)
    slower = repaced(bucket, charge(capacity=6), 10.0)
    assert spent_at(slower, 10.0) == 30.0
    assert spent_at(slower, 20.0) == pytest.approx(29.0)


def test_an_unchanged_limit_and_a_limit_of_zero_keep_the_pace():
    bucket = charged(None, charge(cost=40), 0.0)
    assert repaced(bucket, charge(), 10.0) is bucket
    assert repaced(bucket, charge(capacity=0), 10.0) is bucket
