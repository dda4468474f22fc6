"""When an exchange is settled: with the caller's last byte, not with the upstream's."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.builders import CHAT
from tests.support.pipeline import DONE, Harness, delta, streamed


@pytest.mark.gen_test
async def test_a_slot_is_free_when_the_caller_has_its_last_byte_though_azure_is_not_done():
    harness = Harness()
    end_of_body = asyncio.Event()
    harness.transport.script(streamed([delta(CHAT, "hi", "stop"), DONE, end_of_body]))
    run = harness.start(CHAT, stream=True)
    while not run.reply.finished:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert harness.transport.closed == 0, "the connection is still wanted for the next request"
    assert await harness.in_flight() == 0
    assert len(harness.log.lines) == 1
    end_of_body.set()
    await run.ended()
    exchange = await harness.audit()
    assert exchange.outcome == "success"
    assert harness.transport.closed_early == 0


@pytest.mark.gen_test
async def test_a_caller_that_hangs_up_while_the_connection_is_saved_was_served():
    harness = Harness()
    harness.transport.script(streamed([delta(CHAT, "hi", "stop"), DONE, asyncio.Event()]))
    run = harness.start(CHAT, stream=True)
    while not run.reply.finished:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.reply.leave()
    await run.ended()
    exchange = await harness.audit()
    assert (exchange.outcome, exchange.status) == ("success", 200)
