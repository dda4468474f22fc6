"""The shared table as memory: rows are found, reused, lost only when there are too few.

What its stores decide: tests/contract. Real processes: tests/integration.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from aisix.limits import shared, table
from aisix.limits.buckets import Charge, Slot
from aisix.limits.shared import SharedBuckets, SharedTable
from aisix.limits.table import MAX_WORKERS, PROBE
from tests.support.limited import HandClock, run


def charge(key: str, cost: int = 1, *, capacity: int = 10) -> Charge:
    return Charge(key, 60.0, capacity, cost)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def one_window() -> Iterator[SharedTable]:
    """The smallest table: every key may be in every one of its rows."""
    made = SharedTable.create(workers=3, entries=1)
    yield made
    made.close()


def remaining(store: SharedBuckets, key: str) -> float:
    return run(store.take([charge(key, 0)], [])).readings[0].remaining


@pytest.mark.parametrize(
    ("workers", "entries"), [(0, 8), (-1, 8), (MAX_WORKERS + 1, 8), (2, 0), (2, -5)]
)
def test_a_table_for_nobody_or_nothing_is_refused(workers, entries):
    with pytest.raises(ValueError, match="cannot be made"):
        SharedTable.create(workers=workers, entries=entries)


@pytest.mark.parametrize("worker", [-1, 3, 99])
def test_a_worker_without_a_column_is_refused(one_window, clock, worker):
    with pytest.raises(ValueError, match="no worker"):
        SharedBuckets(one_window, worker=worker, clock=clock)


def test_the_largest_table_of_workers_keeps_their_counts_apart(clock):
    made = SharedTable.create(workers=MAX_WORKERS, entries=4)
    stores = [SharedBuckets(made, worker=worker, clock=clock) for worker in (0, 1, MAX_WORKERS - 1)]
    for number, store in enumerate(stores):
        assert run(store.take([], [Slot("s", 9)])).in_flight == (number + 1,)
    made.reclaim(MAX_WORKERS - 1)
    assert run(stores[0].take([], [Slot("s", 9)])).in_flight == (3,)
    made.close()


def test_a_table_beyond_all_memory_is_refused_and_leaves_no_file_open():
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        SharedTable.create(workers=2, entries=2**50)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_closed_table_leaves_no_file_open(clock):
    before = set(os.listdir("/proc/self/fd"))
    made = SharedTable.create(workers=2)
    run(SharedBuckets(made, worker=0, clock=clock).take([charge("a")], [Slot("s", 1)]))
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_closing_twice_is_closing_once():
    made = SharedTable.create(workers=2)
    made.close()
    made.close()


def test_a_window_of_keys_lives_in_the_smallest_table(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    for number in range(PROBE):
        run(store.take([charge(str(number), number % 9 + 1)], []))
    assert [remaining(store, str(number)) for number in range(PROBE)] == [
        9.0 - number % 9 for number in range(PROBE)
    ]
    assert one_window.evictions == 0
    assert len(store) == PROBE


def test_drained_rows_serve_other_keys_without_end(one_window, clock):
    first = SharedBuckets(one_window, worker=0, clock=clock)
    second = SharedBuckets(one_window, worker=1, clock=clock)
    for number in range(50 * PROBE):
        store = (first, second)[number % 2]
        assert run(store.take([charge(f"k{number % 40}", 5)], [])).readings[0].remaining == 5.0
        clock.now += 60.0 / 2 / (PROBE - 1)
    assert one_window.evictions == 0


def test_counters_at_zero_serve_other_keys_without_end(one_window, clock):
    first = SharedBuckets(one_window, worker=0, clock=clock)
    second = SharedBuckets(one_window, worker=2, clock=clock)
    for number in range(20 * PROBE):
        slots = [Slot(f"s{number % 37}", 1)]
        assert run(first.take([], slots)).granted
        assert not run(second.take([], slots)).granted
        first.give_back([], slots, "")
    assert one_window.evictions == 0
    assert len(first) == 0


def test_a_row_that_another_worker_reused_is_not_taken_for_the_old_key(one_window, clock):
    first = SharedBuckets(one_window, worker=0, clock=clock)
    second = SharedBuckets(one_window, worker=1, clock=clock)
    run(first.take([charge("old", 10)], [Slot("old", 1)]))
    first.give_back([], [Slot("old", 1)], "")
    clock.now += 60.0
    for number in range(PROBE):
        run(second.take([charge(f"new{number}", 10)], [Slot(f"new{number}", 1)]))
    assert run(first.take([charge("old", 10)], [])).granted
    assert [remaining(second, f"new{number}") for number in range(PROBE)].count(10.0) == 1
    first.give_back([], [Slot("old", 1)], "")
    assert run(second.take([], [Slot("new0", 1)])).in_flight == (1,)


def test_in_a_full_table_the_bucket_that_would_drain_first_is_forgotten_and_counted(
    one_window, clock
):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    for number in range(PROBE):
        run(store.take([charge(str(number), 2 if number == 7 else 9)], []))
    assert run(store.take([charge("late", 4)], [])).granted
    assert one_window.evictions == 1
    assert remaining(store, "late") == 6.0
    kept = [remaining(store, str(number)) for number in range(PROBE) if number != 7]
    assert kept == [1.0] * (PROBE - 1)


def test_a_debt_without_a_pace_is_forgotten_last(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    store.give_back([charge("stuck", 5, capacity=0)], [], "")
    for number in range(PROBE):
        run(store.take([charge(str(number), 9)], []))
    assert one_window.evictions == 1
    assert remaining(store, "stuck") == 5.0


def test_in_a_full_table_the_smallest_counter_is_forgotten_and_counted(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    for number in range(PROBE):
        for _ in range(1 if number == 3 else 2):
            run(store.take([], [Slot(str(number), 9)]))
    assert run(store.take([], [Slot("late", 9)])).in_flight == (1,)
    assert one_window.evictions == 1
    store.give_back([], [Slot("3", 9)], "")
    assert run(store.take([], [Slot("4", 9)])).in_flight == (3,)


def test_a_decision_never_evicts_what_it_is_about(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    for number in range(PROBE):
        run(store.take([charge(f"old{number}", 9)], []))
    many = [charge(f"new{number}", 1) for number in range(12)]
    assert run(store.take(many, [])).granted
    assert one_window.evictions == 12
    assert [remaining(store, one.key) for one in many] == [9.0] * 12


def test_more_keys_than_a_window_in_one_decision_is_a_mistake_that_breaks_nothing(
    one_window, clock
):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    with pytest.raises(RuntimeError, match="more than 16 keys"):
        run(store.take([charge(str(number)) for number in range(PROBE + 1)], []))
    assert run(SharedBuckets(one_window, worker=1, clock=clock).take([charge("0")], [])).granted


def test_a_bucket_given_back_to_a_full_table_is_found_again(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    run(store.take([charge("a", 9)], []))
    for number in range(PROBE):
        run(store.take([charge(str(number), 9, capacity=9)], []))
    store.give_back([charge("a", 3), charge("b", -3)], [], "")
    assert remaining(store, "b") == 10.0


def test_the_slots_of_a_dead_worker_come_back_and_no_others(one_window, clock):
    first, second, third = (
        SharedBuckets(one_window, worker=worker, clock=clock) for worker in range(3)
    )
    slots = [Slot("s", 4), Slot("t", 9)]
    for store in (first, second, second, third):
        assert run(store.take([], slots)).granted
    assert not run(first.take([], slots)).granted
    one_window.reclaim(1)
    assert run(first.take([], slots)).in_flight == (3, 3)
    second.give_back([], slots, "")
    assert run(third.take([], slots)).in_flight == (4, 4)


def test_a_successor_begins_with_no_slot_held(one_window, clock):
    dead = SharedBuckets(one_window, worker=1, clock=clock)
    run(dead.take([charge("a", 4)], [Slot("s", 1)]))
    successor = SharedBuckets(one_window, worker=1, clock=clock)
    assert run(successor.take([], [Slot("s", 1)])).granted
    assert remaining(successor, "a") == 6.0


def test_half_a_name_is_a_free_row(one_window, clock):
    """What a worker leaves that is killed while it names a row."""
    store = SharedBuckets(one_window, worker=0, clock=clock)
    run(store.take([charge("a", 10)], []))
    place = table.Place("b")
    one_window.buckets.claim(place, clock.now, ())
    place.digest = place.digest[:8] + table.Place("c").digest[8:]
    one_window._memory[place.at : place.at + 16] = place.digest
    for number in range(PROBE - 1):
        assert run(store.take([charge(str(number), 10)], [])).granted
    assert one_window.evictions == 0
    assert remaining(store, "a") == 0.0


def test_a_state_that_was_not_finished_does_not_count(one_window, clock):
    """What a worker leaves that is killed while it writes a bucket."""
    store = SharedBuckets(one_window, worker=0, clock=clock)
    run(store.take([charge("a", 4)], []))
    place = table.Place("a")
    before = one_window.buckets.read(place)
    live = table.BUCKET_ROW.unpack_from(one_window._memory, place.at)[1]
    other = place.at + table.STATE_OFFSETS[1 - live]
    one_window._memory[other : other + 20] = b"\xff" * 20
    assert one_window.buckets.read(place) == before
    run(store.take([charge("a", 1)], []))
    assert remaining(store, "a") == 5.0


def test_keys_of_any_text_have_rows(one_window, clock):
    store = SharedBuckets(one_window, worker=0, clock=clock)
    for key in ("", "ü", "\ud800", "k" * 10_000):
        run(store.take([charge(key, 3)], []))
        assert remaining(store, key) == 7.0


def test_a_process_remembers_a_bounded_number_of_rows(clock):
    made = SharedTable.create(workers=1, entries=64)
    store = SharedBuckets(made, worker=0, clock=clock)
    run(store.take([charge("a", 3)], []))
    for number in range(shared.MAX_PLACES + 1):
        store._buckets[str(number)]
    assert len(store._buckets) <= shared.MAX_PLACES
    assert remaining(store, "a") == 7.0
    made.close()
