"""The shared store against the one of a single process: any history, decided alike to the bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from aisix.limits.buckets import Charge, Slot
from aisix.limits.local import LocalBuckets
from tests.support.limited import HandClock, run, shared_stores

WORKERS = 3
WINDOWS = {"a": 1.0, "b": 60.0, "c": 60.0, "d": 3600.0, "e": 86400.0}
LIMITS = st.sampled_from([0, 1, 2, 5, 7, 1000])


@dataclass(frozen=True)
class Step:
    """Pause, then take (`cost`s by bucket, `slots` by counter), or end the oldest take."""

    worker: int
    pause_s: float
    charges: dict[str, tuple[int, int]]
    slots: dict[str, int]
    ends: bool
    used: int


steps = st.lists(
    st.builds(
        Step,
        worker=st.integers(0, WORKERS - 1),
        pause_s=st.sampled_from([0.0, 0.0, 0.001, 0.4, 3.0, 61.0, 100_000.0]),
        charges=st.dictionaries(st.sampled_from("abcde"), st.tuples(LIMITS, LIMITS), max_size=5),
        slots=st.dictionaries(st.sampled_from("st"), st.integers(0, 3), max_size=2),
        ends=st.booleans(),
        used=st.integers(-3, 9),
    ),
    max_size=25,
)


@settings(max_examples=4 * settings().max_examples, deadline=None)
@given(steps)
def test_workers_that_share_a_table_decide_as_one_process_would(history):
    clock = HandClock()
    reference = LocalBuckets(clock)
    with shared_stores(clock, workers=WORKERS, entries=32) as stores:
        open_takes: list[tuple[int, list[Charge], list[Slot]]] = []
        for step in history:
            clock.now += step.pause_s
            if step.ends and open_takes:
                worker, taken, slots = open_takes.pop(0)
                corrections = [one._replace(cost=step.used - one.cost) for one in taken]
                reference.give_back(corrections, slots, "")
                stores[worker].give_back(corrections, slots, "")
                continue
            charges = [
                Charge(key, WINDOWS[key], capacity, min(cost, capacity))
                for key, (capacity, cost) in step.charges.items()
            ]
            slots = [Slot(key, limit) for key, limit in step.slots.items()]
            expected = run(reference.take(charges, slots))
            assert run(stores[step.worker].take(charges, slots)) == expected
            if expected.granted:
                open_takes.append((step.worker, charges, slots))
        looks = [Charge(key, window_s, 5, 0) for key, window_s in WINDOWS.items()]
        counters = [Slot(key, 99) for key in "st"]
        for store in stores:
            assert run(store.take(looks, [])) == run(reference.take(looks, []))
            assert run(store.take([], counters)) == run(reference.take([], counters))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10), st.floats(0.0, 20.0)), max_size=60)
)
def test_a_table_that_is_too_small_forgets_but_never_invents(history):
    """Whatever is evicted, no bucket is poorer than the reference has it; counters hold too."""
    clock = HandClock()
    reference = LocalBuckets(clock)
    with shared_stores(clock, workers=2, entries=1) as stores:
        for number, (key, cost, pause_s) in enumerate(history):
            clock.now += pause_s
            charge = Charge(f"k{key}", 60.0, 10, cost)
            slot = Slot(f"s{key}", 10**6)
            shared = run(stores[number % 2].take([charge], [slot]))
            strict = run(reference.take([charge], [slot]))
            if strict.granted:
                assert shared.granted
                assert shared.readings[0].remaining >= strict.readings[0].remaining - 1e-9
            elif shared.granted:
                reference.give_back([charge], [], "")


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.integers(0, 4))
def test_slots_of_dead_workers_come_back_and_no_others(history, limit):
    """A worker enters, or dies and is followed by another of its number."""
    held: Counter[int] = Counter()
    with shared_stores(HandClock(), workers=3, entries=8) as stores:
        for worker, dies in history:
            if dies:
                stores[worker]._table.reclaim(worker)
                held[worker] = 0
            else:
                decision = run(stores[worker].take([], [Slot("s", limit)]))
                assert decision.granted == (held.total() < limit)
                held[worker] += decision.granted
                assert decision.in_flight == (held.total(),)
