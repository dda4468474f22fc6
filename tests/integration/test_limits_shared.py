"""The shared table under real processes: exact together, and whole whoever is killed, wherever.

The order of everything that matters is fixed by reads that block, never by time.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from aisix.core.resources import LimitPolicy
from aisix.errors import LimitExceeded
from aisix.limits.buckets import Charge, Slot
from aisix.limits.limiter import TokenBucketLimiter
from aisix.limits.shared import SharedBuckets, SharedTable
from aisix.limits.table import PROBE
from tests.support.forked import Report, forked, together
from tests.support.limited import COMPLETION, HandClock, make_exchange, run, tokens

PROCESSES = 4
CAPACITY = 10**9


class RealClock:
    """CLOCK_MONOTONIC, one for all processes of the host."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


@pytest.fixture
def table() -> Iterator[SharedTable]:
    made = SharedTable.create(workers=PROCESSES + 1, entries=256)
    yield made
    made.close()


@pytest.mark.parametrize("limits", [{"rpm": 5}, {"tpm": 5}, {"rpm": 5, "tpm": 5, "rpd": 5}])
def test_four_processes_against_a_limit_of_five_admit_exactly_five(table, limits):
    def attempt(number: int, report: Report) -> None:
        store = SharedBuckets(table, worker=number, clock=RealClock())
        limiter = TokenBucketLimiter(store, assumed_output_tokens=1)
        policy = LimitPolicy(**limits)
        for _ in range(300):
            try:
                exchange = make_exchange(policy, policy, document=tokens(1), spec=COMPLETION)
                run(limiter.admit(exchange)).settle(1)
                report(b"+")
            except LimitExceeded:
                report(b"-")

    with together(attempt, count=PROCESSES) as children:
        outcomes = b"".join(child.all() for child in children)
    assert outcomes.count(b"+") == 5
    assert outcomes.count(b"-") == 4 * 300 - 5


def test_what_processes_spend_adds_up(table):
    def spend(number: int, _report: Report) -> None:
        store = SharedBuckets(table, worker=number, clock=HandClock())
        for turn in range(500):
            charges = [Charge("all", 60.0, CAPACITY, 3), Charge(f"own{number}", 60.0, CAPACITY, 1)]
            assert run(store.take(charges, [Slot("s", CAPACITY)])).granted
            if turn % 2:
                store.give_back([Charge("all", 60.0, CAPACITY, -1)], [Slot("s", CAPACITY)], "")

    with together(spend, count=PROCESSES) as children:
        for child in children:
            child.all()
    store = SharedBuckets(table, worker=PROCESSES, clock=HandClock())
    charges = [Charge(key, 60.0, CAPACITY, 0) for key in ("all", "own0", "own3")]
    decision = run(store.take(charges, [Slot("s", CAPACITY)]))
    spent = [CAPACITY - reading.remaining for reading in decision.readings]
    assert spent == [PROCESSES * (500 * 3 - 250), 500, 500]
    assert decision.in_flight == (PROCESSES * 250 + 1,)


def test_a_concurrency_limit_holds_across_processes(table):
    slots = [Slot("s", 2)]

    def enter_and_leave(number: int, report: Report) -> None:
        store = SharedBuckets(table, worker=number, clock=RealClock())
        for _ in range(2000):
            decision = run(store.take([], slots))
            assert decision.in_flight[0] <= 2
            if decision.granted:
                entered = time.monotonic_ns()
                os.sched_yield()
                left = time.monotonic_ns()
                store.give_back([], slots, "")
                report(struct.pack("=qq", entered, left))

    with together(enter_and_leave, count=PROCESSES) as children:
        stays = [pair for child in children for pair in struct.iter_unpack("=qq", child.all())]
    moves = sorted([(left, -1) for _, left in stays] + [(entered, 1) for entered, _ in stays])
    inside = most = 0
    for _, move in moves:
        inside += move
        most = max(most, inside)
    assert most <= 2
    assert len(stays) > 100
    assert table.used(0.0) == 0


class StopsInside(HandClock):
    """A clock that never answers: it is asked inside the critical section."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def monotonic(self) -> float:
        self._report(b"inside")
        while True:
            signal.pause()


def is_locked(table: SharedTable) -> bool:
    """Whether another process is inside a decision."""
    try:
        fcntl.lockf(table._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except BlockingIOError:
        return True
    table.unlock()
    return False


def test_a_process_killed_inside_a_decision_frees_the_lock(table):
    charge = Charge("a", 60.0, 1, 1)

    def hang(report: Report) -> None:
        run(SharedBuckets(table, worker=1, clock=StopsInside(report)).take([charge], []))

    store = SharedBuckets(table, worker=0, clock=HandClock())
    with forked(hang) as child:
        assert child.reports.read(6) == b"inside"
        assert is_locked(table)
        child.kill()
        assert not is_locked(table)
    assert run(store.take([charge], [])).granted


def test_a_decision_waits_for_the_one_before_it(table):
    """The waiter is let in by the death of the holder, by nothing else."""

    def hang(report: Report) -> None:
        run(SharedBuckets(table, worker=1, clock=StopsInside(report)).take([], []))

    store = SharedBuckets(table, worker=2, clock=HandClock())

    def wait(report: Report) -> None:
        report(b"?")
        run(store.take([Charge("a", 60.0, 1, 1)], []))
        report(b"!")

    with forked(hang) as holder:
        holder.reports.read(6)
        with forked(wait) as waiter:
            assert waiter.reports.read(1) == b"?"
            os.set_blocking(waiter.reports.fileno(), False)
            assert waiter.reports.read(1) is None
            os.set_blocking(waiter.reports.fileno(), True)
            holder.kill()
            assert waiter.all() == b"!"


def test_a_child_that_closes_its_copy_does_not_free_the_lock_of_another(table):
    def close(_report: Report) -> None:
        table.close()

    def look(report: Report) -> None:
        report(b"locked" if is_locked(table) else b"free")

    table.lock()
    with forked(close) as child:
        child.all()
    with forked(look) as child:
        assert child.all() == b"locked"
    table.unlock()
    with forked(look) as child:
        assert child.all() == b"free"


def test_the_slots_of_a_killed_process_come_back_when_it_is_reclaimed(table):
    slots = [Slot("s", 3)]

    def hold(report: Report) -> None:
        store = SharedBuckets(table, worker=1, clock=HandClock())
        run(store.take([], slots))
        run(store.take([], slots))
        report(b"held")
        signal.pause()

    store = SharedBuckets(table, worker=0, clock=HandClock())
    assert run(store.take([], slots)).granted
    with forked(hold) as child:
        assert child.reports.read(4) == b"held"
        assert not run(store.take([], slots)).granted
        child.kill()
        assert run(store.take([], slots)).in_flight == (3,)
        table.reclaim(1)
        assert run(store.take([], slots)).in_flight == (2,)


LINES_AT_MOST = 500
"""More lines than a take and a settlement run through; the loop ends at the first survivor."""

MODULES = ("limits/shared.py", "limits/table.py")
READERS = frozenset({"burden", "read", "_seek", "_window"})
"""Functions that change nothing: to die in them is to die in the line that calls them."""


def die_at_line(number: int) -> None:
    """SIGKILL this process when it is about to run the line of that number in `MODULES`."""
    left = number

    def trace(frame: FrameType, event: str, _value: Any) -> Any:
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith(MODULES) or code.co_name in READERS:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


@pytest.mark.parametrize("others", [pytest.param(PROBE // 2, marks=pytest.mark.soak), PROBE - 1])
@pytest.mark.parametrize("later_s", [0.0, 6.0], ids=["crowded", "drained"])
def test_a_process_killed_at_any_line_leaves_every_bucket_whole(others, later_s):
    """Its take is of a known bucket and of a new one, which finds a vacant row, one that has
    drained, or one that must be evicted; then it settles."""
    slots = [Slot("s", 9)]
    for line in range(1, LINES_AT_MOST):
        table = SharedTable.create(workers=2, entries=1)
        clock = HandClock()
        store = SharedBuckets(table, worker=0, clock=clock)
        for number in range(others):
            run(store.take([Charge(f"other{number}", 60.0, 10, 1)], []))
        run(store.take([Charge("a", 60.0, 10, 4)], slots))
        clock.now += later_s
        before = 4.0 - later_s / 6.0

        def work(
            _report: Report,
            table: SharedTable = table,
            line: int = line,
            now: float = clock.now,
        ) -> None:
            mine = SharedBuckets(table, worker=1, clock=HandClock(now))
            die_at_line(line)
            run(mine.take([Charge("a", 60.0, 10, 3), Charge("b", 60.0, 10, 5)], slots))
            mine.give_back([Charge("a", 60.0, 10, -2), Charge("b", 60.0, 10, 1)], slots, "")

        with forked(work) as child:
            status = child.wait()
        table.reclaim(1)
        looks = [Charge("a", 60.0, 10, 0), Charge("b", 60.0, 10, 0)]
        decision = run(store.take(looks, slots))
        spent = tuple(10.0 - reading.remaining for reading in decision.readings)
        assert spent in {
            (before, 0.0),
            (before + 3.0, 0.0),
            (before + 3.0, 5.0),
            (before + 1.0, 5.0),
            (before + 1.0, 6.0),
        }, line
        assert decision.in_flight == (2,)
        rest = [Charge(f"other{number}", 60.0, 10, 0) for number in range(others)]
        expected = 10.0 if later_s else 9.0
        whole = [run(store.take([one], [])).readings[0].remaining for one in rest]
        assert [left for left in whole if left != expected] in ([], [10.0])
        table.close()
        if status == 0:
            assert spent == (before + 1.0, 6.0)
            return
        assert status == -signal.SIGKILL
    pytest.fail("the child never came to an end")


def test_fifty_processes_killed_at_random_leave_an_exact_table(table):
    """The clock stands still, so what is spent is the number of takes. A take that was not reported
    before the kill may have happened, whole or in part: one at most, and never more than that."""
    chance = random.Random(20261125)
    charges = [Charge(key, 60.0, CAPACITY, 1) for key in ("a", "b", "c")]
    looks = [charge._replace(cost=0) for charge in charges]
    slots = [Slot("s", CAPACITY)]
    store = SharedBuckets(table, worker=0, clock=HandClock())

    def take_for_ever(report: Report) -> None:
        mine = SharedBuckets(table, worker=1, clock=HandClock())
        while True:
            run(mine.take(charges, slots))
            report(b".")
            mine.give_back([], slots, "")

    spent = [0.0, 0.0, 0.0]
    for _ in range(50):
        own = 0
        with forked(take_for_ever) as child:
            reported = 0
            for _ in range(chance.randrange(1, 60)):
                reported += len(child.reports.read(chance.randrange(1, 8)))
                assert run(store.take(charges, [])).granted
                own += 1
            child.kill()
            reported += len(child.reports.read())
        table.reclaim(1)
        decision = run(store.take(looks, slots))
        assert decision.in_flight == (1,)
        store.give_back([], slots, "")
        now_spent = [CAPACITY - reading.remaining for reading in decision.readings]
        lost = [new - old - own - reported for new, old in zip(now_spent, spent, strict=True)]
        assert lost in ([0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1])
        spent = now_spent
    assert table.used(1000.0) == 3
    assert table.evictions == 0
