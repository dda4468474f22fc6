"""A refused caller that never sends the rest of its body: it is not waited for without end."""

from __future__ import annotations

import pytest

from aisix.pipeline import BodyLimits
from aisix.web import body
from aisix.web.base import ProcessState
from aisix.web.connection import Patience
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from tests.support.front import Front, request, serve_application
from tests.support.pipeline import Harness

HEADERS = {"Authorization": "Bearer sk-wrong", "Content-Length": "9000"}


def front_with(swallow_s: float) -> tuple[ProxyFront, ProcessState]:
    state = ProcessState()
    front = ProxyFront(
        pipeline=Harness().pipeline,
        routes=Routes(),
        state=state,
        body_limits=BodyLimits(10_000),
        accept_request_ids=(),
        patience=Patience(swallow_s=swallow_s),
    )
    return front, state


async def refused(front: Front) -> bytes:
    """Send a head and a little of its body; what comes after the refusal, up to the end."""
    async with front.caller() as caller:
        await caller.send(request("POST", "/v1/chat/completions", headers=HEADERS), b"abc")
        answer = await caller.answer()
        assert answer.status == 401
        return await caller.rest()


@pytest.mark.gen_test
async def test_the_rest_of_a_refused_body_is_waited_for_only_so_long():
    proxy, state = front_with(0.01)
    async with serve_application(proxy, state) as front:
        assert await refused(front) == b""
        await front.idle()


@pytest.mark.gen_test
async def test_a_body_that_comes_in_time_keeps_its_connection():
    proxy, state = front_with(body.SWALLOW_S)
    async with (
        serve_application(proxy, state) as front,
        front.caller() as caller,
    ):
        for _ in range(2):
            await caller.send(request("POST", "/v1/chat/completions", headers=HEADERS), b"abc")
            assert (await caller.answer()).status == 401
            await caller.send(b"x" * 8_997)
            await front.idle()
