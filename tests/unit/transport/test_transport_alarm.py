"""The alarm: many moments, one timer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aisix.transport.alarm import Alarm


class Timer:
    """What a loop's `call_later` returns."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Timers:
    """A loop that only remembers its timers, and the clock beside it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.made: list[Timer] = []
        self.rung = 0

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.made.append(Timer(seconds, callback))
        return self.made[-1]

    def now(self) -> float:
        return self.now_s

    def ring(self) -> None:
        self.rung += 1

    @property
    def pending(self) -> list[Timer]:
        return [timer for timer in self.made if not timer.cancelled]


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def alarm(timers: Timers) -> Alarm:
    loop: Any = timers
    return Alarm(loop, now=timers.now, ring=timers.ring)


def test_later_moments_share_the_timer_of_the_earliest(alarm: Alarm, timers: Timers):
    for at in (110.0, 110.0, 120.0, 111.0):
        alarm.want(at)
    assert [timer.seconds for timer in timers.made] == [10.0]


def test_an_earlier_moment_replaces_the_timer(alarm: Alarm, timers: Timers):
    alarm.want(110.0)
    alarm.want(105.0)
    assert [timer.seconds for timer in timers.pending] == [5.0]


def test_it_rings_once_and_then_wants_nothing(alarm: Alarm, timers: Timers):
    alarm.want(110.0)
    timers.made[0].callback()
    assert timers.rung == 1
    timers.now_s = 110.0
    alarm.want(130.0)
    assert [timer.seconds for timer in timers.made] == [10.0, 20.0]


def test_a_moment_that_has_passed_rings_in_the_next_turn(alarm: Alarm, timers: Timers):
    alarm.want(99.0)
    assert timers.made[0].seconds == 0.0


def test_a_cancelled_alarm_forgets_its_moment(alarm: Alarm, timers: Timers):
    alarm.want(110.0)
    alarm.cancel()
    alarm.cancel()
    assert timers.pending == []
    alarm.want(150.0)
    assert [timer.seconds for timer in timers.pending] == [50.0]
