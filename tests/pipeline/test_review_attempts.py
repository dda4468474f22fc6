"""Found by the review: which attempts count as having reached the deployment."""

from __future__ import annotations

import asyncio

import pytest

from aisix.core.endpoints import ENDPOINTS
from aisix.errors import GatewayError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.memory import MemoryAnswer
from tests.support.pipeline import Harness

CHAT = next(spec for spec in ENDPOINTS if spec.operation == "chat_completions")


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        (UpstreamBroken("not HTTP", kind="decode"), True),
        (UpstreamTimeout("silent", phase="first_byte"), True),
        (UpstreamTimeout("no connection", phase="connect"), False),
        (UpstreamUnreachable("refused"), False),
    ],
)
@pytest.mark.gen_test
async def test_an_attempt_reached_the_deployment_when_anything_answered(
    error: GatewayError, reached: bool
) -> None:
    """The deployment's metrics and the caller's limits must agree on it."""
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[error]))
    run = harness.start(CHAT)
    await run.ended()
    await harness.audit()
    assert [attempt["reached"] for attempt in harness.recorder.attempts] == [reached]


@pytest.mark.gen_test
async def test_leaving_before_an_answer_is_an_attempt_that_is_not_known_to_have_arrived() -> None:
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    run = harness.start(CHAT)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    run.reply.leave()
    await run.ended()
    exchange = await harness.audit()
    (attempt,) = harness.recorder.attempts
    assert (attempt["reached"], attempt["status"]) == (False, None)
    assert exchange.outcome == "client_cancelled"
