"""Azure's error status outlives its body: cut or stalled, the caller learns the status."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aisix import dispatch
from aisix.errors import UpstreamBroken, UpstreamTimeout
from aisix.transport.memory import MemoryAnswer, Step
from tests.support.builders import CHAT
from tests.support.pipeline import Harness

HALF = b'{"error":{"code":"429","mess'


def throttled(*after: Step) -> MemoryAnswer:
    """A 429 whose body goes wrong."""
    headers = {"content-type": "application/json", "retry-after": "7"}
    return MemoryAnswer(status=429, headers=headers, pieces=[HALF, *after])


@pytest.mark.gen_test
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "failure", [UpstreamBroken("cut", kind="cut"), UpstreamTimeout("late", phase="idle")]
)
async def test_an_error_body_that_breaks_off_keeps_its_status(failure, stream):
    harness = Harness()
    harness.transport.script(throttled(failure))
    exchange, reply = await harness.run(CHAT, stream=stream)
    assert reply.status == 429
    assert reply.headers["retry-after"] == "7"
    assert b'"upstream rate limited"' in reply.body
    await harness.audit()
    assert await harness.spent() == (1, 0), "Azure answered: counted, tokens returned"
    assert exchange.upstream_status == 429


@pytest.mark.gen_test
async def test_an_error_body_that_never_ends_is_not_waited_for():
    assert dispatch.ERROR_BODY_S <= 5.0
    harness = Harness()
    harness = Harness(deadlines=replace(harness.deadlines, error_body_s=0.01))
    harness.transport.script(throttled(asyncio.Event()))
    _, reply = await harness.run(CHAT)
    assert reply.status == 429
    await harness.audit()


@pytest.mark.gen_test
async def test_a_caller_that_leaves_while_an_error_is_read_gets_its_tokens_back():
    harness = Harness()
    harness.transport.script(throttled(asyncio.Event()))
    run = harness.start(CHAT)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    for _ in range(3):
        await asyncio.sleep(0)
    run.reply.leave()
    await run.ended()
    exchange = await harness.audit()
    assert (exchange.status, exchange.upstream_status) == (499, 429)
    assert await harness.spent() == (1, 0)
