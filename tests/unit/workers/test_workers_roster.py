"""The shared page and the patience with children that die."""

from __future__ import annotations

import os

from aisix.workers.roster import CALM_S, Patience, Roster


def test_what_one_process_enters_another_reads():
    roster = Roster(2)
    child = os.fork()
    if not child:
        roster.enter(1, 4711)
        roster.note_ready()
        roster.note_restart()
        roster.note_restart()
        roster.note_lagged()
        os._exit(0)
    os.waitpid(child, 0)
    assert (roster.restarts, roster.lagged) == (2, 1)
    assert roster.was_ready
    assert roster.pids() == [0, 4711]
    roster.enter(1, 0)
    assert roster.pids() == [0, 0]


def test_the_first_successor_comes_at_once_and_later_ones_ever_more_slowly():
    patience = Patience()
    delays = [patience.delay_s(0.1) for _ in range(8)]
    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_long_life_is_no_reason_to_wait():
    patience = Patience()
    for _ in range(5):
        patience.delay_s(0.1)
    assert patience.delay_s(CALM_S) == 0.0
    assert patience.delay_s(0.1) == 0.25
