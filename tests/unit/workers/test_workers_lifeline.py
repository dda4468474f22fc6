"""Orders and the end of a supervisor, through the pipe."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aisix.lifecycle import Shutdown
from aisix.workers.lifeline import Lifeline

pytestmark = pytest.mark.gen_test


async def requested(shutdown: Shutdown) -> None:
    async with asyncio.timeout(10):
        await shutdown.requested.wait()


def watched() -> tuple[Lifeline, Shutdown]:
    lifeline, shutdown = Lifeline(), Shutdown()
    lifeline.watch(shutdown.on_signal, shutdown.on_orphaned)
    return lifeline, shutdown


async def test_an_order_is_a_signal():
    lifeline, shutdown = watched()
    lifeline.order(signal.SIGTERM)
    await requested(shutdown)
    assert not shutdown.skip_wait
    lifeline.order(signal.SIGINT)
    assert await shutdown.wait_at_once(10)
    lifeline.let_go()
    lifeline.unwatch()


async def test_two_orders_at_once_are_two():
    lifeline, shutdown = watched()
    lifeline.order(signal.SIGINT)
    lifeline.order(signal.SIGTERM)
    await requested(shutdown)
    assert shutdown.skip_wait
    assert shutdown.at_once.is_set()
    lifeline.let_go()
    lifeline.unwatch()


async def test_the_end_of_the_supervisor_asks_for_a_drain():
    lifeline, shutdown = watched()
    lifeline.let_go()
    await requested(shutdown)
    assert shutdown.skip_wait
    assert not shutdown.at_once.is_set()
    lifeline.unwatch()


async def test_the_end_of_the_supervisor_cuts_no_drain_short():
    lifeline, shutdown = watched()
    lifeline.order(signal.SIGTERM)
    await requested(shutdown)
    lifeline.let_go()
    assert not await shutdown.wait_at_once(0.05)
    lifeline.unwatch()


async def test_a_dead_child_hears_nothing():
    lifeline = Lifeline()
    lifeline.drop()
    lifeline.order(signal.SIGTERM)
    lifeline.let_go()
