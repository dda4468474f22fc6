"""Over any history: no bucket gives more than its capacity and what flowed back meanwhile."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from aisix.limits.buckets import TOLERANCE, Charge, Slot
from aisix.limits.local import LocalBuckets
from tests.support.limited import HandClock, run

WINDOW_S = 60.0

capacities = st.integers(1, 10_000)
fractions = st.floats(0.0, 1.0)
pauses = st.floats(0.0, 200.0) | st.sampled_from([0.0, 0.0, 1e-6, 60.0])


@dataclass(frozen=True)
class Step:
    """Pause, then take a share of the capacity, or refund one of the takes so far in part."""

    pause_s: float
    share: float
    refund: bool = False


steps = st.lists(st.builds(Step, pauses, fractions, st.booleans()), max_size=30)


@given(capacities, steps)
def test_in_any_window_at_most_capacity_and_refill_is_taken(capacity, history):
    """Taken, less what was given back, between any two moments."""
    clock = HandClock()
    store = LocalBuckets(clock)
    ledger: list[tuple[float, float]] = []
    outstanding: list[int] = []
    for step in history:
        clock.now += step.pause_s
        if step.refund and outstanding:
            part = round(outstanding.pop() * step.share)
            store.give_back([Charge("b", WINDOW_S, capacity, -part)], [], "")
            ledger.append((clock.now, -part))
        else:
            cost = round(capacity * step.share)
            if run(store.take([Charge("b", WINDOW_S, capacity, cost)], [])).granted:
                ledger.append((clock.now, cost))
                outstanding.append(cost)
    for first, last in itertools.combinations_with_replacement(range(len(ledger)), 2):
        elapsed = ledger[last][0] - ledger[first][0]
        taken = sum(cost for _, cost in ledger[first : last + 1])
        assert taken <= capacity + elapsed * capacity / WINDOW_S + 2 * TOLERANCE


@given(capacities, capacities, st.lists(st.tuples(pauses, fractions), max_size=20))
def test_who_waits_as_long_as_told_is_admitted_and_not_a_moment_sooner(capacity, scale, history):
    clock = HandClock()
    store = LocalBuckets(clock)
    window_s = WINDOW_S * scale
    for pause, share in history:
        clock.now += pause
        charge = Charge("b", window_s, capacity, max(1, round(capacity * share)))
        wait = run(store.take([charge], [])).readings[0].wait_s
        if wait > 0.0:
            told_at = clock.now
            clock.now = told_at + wait * 0.99 - 2 * TOLERANCE * window_s / capacity
            if clock.now > told_at:
                assert not run(store.take([charge], [])).granted
            clock.now = told_at + wait
            assert run(store.take([charge], [])).granted


@given(capacities, st.lists(st.tuples(pauses, fractions), max_size=20), fractions)
def test_a_take_given_back_at_once_leaves_no_trace(capacity, history, share):
    clock = HandClock()
    store = LocalBuckets(clock)
    for pause, part in history:
        clock.now += pause
        run(store.take([Charge("b", WINDOW_S, capacity, round(capacity * part))], []))
    cost = round(capacity * share)
    before = run(store.take([Charge("b", WINDOW_S, capacity, 0)], [])).readings
    if run(store.take([Charge("b", WINDOW_S, capacity, cost)], [])).granted:
        store.give_back([Charge("b", WINDOW_S, capacity, -cost)], [], "")
    after = run(store.take([Charge("b", WINDOW_S, capacity, 0)], [])).readings
    assert abs(before[0].remaining - after[0].remaining) < TOLERANCE


@given(
    st.lists(st.tuples(st.sampled_from("abc"), pauses, fractions), max_size=30),
    st.integers(1, 50),
)
def test_dropping_drained_buckets_never_changes_a_decision(history, capacity):
    """The same history, once with a sweep at every step and once with each bucket alone."""
    clock = HandClock()
    shared = LocalBuckets(clock)
    alone = {key: LocalBuckets(clock) for key in "abc"}
    for key, pause, share in history:
        clock.now += pause
        charge = Charge(key, WINDOW_S, capacity, round(capacity * share))
        assert run(shared.take([charge], [])) == run(alone[key].take([charge], []))


@given(st.integers(0, 5), st.lists(st.booleans(), max_size=40))
def test_concurrency_stays_between_zero_and_its_limit(limit, history):
    store = LocalBuckets(HandClock())
    slot = Slot("s", limit)
    held = 0
    for enter in history:
        if enter:
            decision = run(store.take([], [slot]))
            assert decision.granted == (held < limit)
            held += decision.granted
            assert decision.in_flight == (held,)
        elif held:
            store.give_back([], [slot], "")
            held -= 1
        assert 0 <= held <= limit
    assert len(store) == (held > 0)
