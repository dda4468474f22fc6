"""When an exchange is settled: with the caller's last byte, not with the upstream's."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.builders import CHAT
from tests.support.pipeline import Harness
from tests.support.rows import DONE, delta, streamed


@pytest.mark.gen_test
async def test_a_slot_is_free_when_the_caller_has_its_last_byte_though_azure_is_not_done():
    """The rest of the transfer is the transport's alone: the exchange does not wait for it."""
    harness = Harness()
    harness.transport.script(streamed([delta(CHAT, "hi", "stop"), DONE, asyncio.Event()]))
    run = harness.start(CHAT, stream=True)
    await run.ended()
    assert run.reply.finished
    assert await harness.in_flight() == 0
    exchange = await harness.audit()
    assert (exchange.outcome, exchange.status) == ("success", 200)
    assert harness.transport.closed_early == 0
