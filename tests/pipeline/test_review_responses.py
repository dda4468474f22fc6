"""What a response costs that did not come to its end."""

from __future__ import annotations

from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS
from aisix.errors import UpstreamBroken
from tests.support.pipeline import Harness
from tests.support.rows import ALIAS, delta, response, streamed, typed

(CREATE,) = (spec for spec in ENDPOINTS if spec.operation == "create_response")
LARGE = {"model": ALIAS, "input": "hello", "stream": True, "max_output_tokens": 50_000}
CUT = UpstreamBroken("upstream broke off", kind="cut")


def created(*, background: bool) -> bytes:
    fields: dict[str, Any] = {"status": "in_progress", "background": background, "usage": None}
    return typed("response.created", response=response(**fields, output=[]))


@pytest.mark.gen_test
@pytest.mark.parametrize("background", [False, True])
async def test_a_rate_limit_inside_a_success_gives_its_tokens_back(background: bool) -> None:
    failed = response(status="failed", error={"code": "rate_limit_exceeded", "message": "slow"})
    harness = Harness()
    harness.transport.script(
        streamed([created(background=background), typed("response.failed", response=failed)])
    )
    _, reply = await harness.run(CREATE, body={**LARGE, "background": background}, stream=True)
    assert reply.status == 429
    assert (await harness.spent())[1] == 0
    await harness.audit()


@pytest.mark.gen_test
async def test_a_stream_that_breaks_off_is_settled_by_what_came() -> None:
    harness = Harness()
    harness.transport.script(streamed([created(background=False), delta(CREATE, "hello"), CUT]))
    await harness.run(CREATE, body=LARGE, stream=True)
    exchange = await harness.audit()
    assert exchange.usage is not None
    assert (await harness.spent())[1] == exchange.usage.total_tokens


@pytest.mark.gen_test
async def test_a_background_stream_that_breaks_off_keeps_its_reservation() -> None:
    harness = Harness()
    harness.transport.script(streamed([created(background=True), delta(CREATE, "hello"), CUT]))
    await harness.run(CREATE, body={**LARGE, "background": True}, stream=True)
    assert (await harness.spent())[1] > 50_000
    await harness.audit()
