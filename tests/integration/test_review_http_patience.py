"""Found by the review: patience with a caller must not run while its body waits for us."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from aisix.web.connection import Patience
from aisix.web.server import SWEEP_S
from tests.support.front import StubPipeline, event, request, serve_proxy, until
from tests.support.hygiene import PATH


@pytest.mark.gen_test
async def test_a_slow_reader_of_a_body_uses_up_nobody_s_patience():
    """The deadline was armed by each piece that came, and ran on while nobody read them."""
    gate = asyncio.Event()

    async def slow(inbound: InboundRequest, reply: Any) -> None:
        chunks = inbound.body.chunks()
        size = len(await anext(chunks))
        await gate.wait()
        async for piece in chunks:
            size += len(piece)
        await reply.send(200, {}, str(size).encode())

    pipeline = StubPipeline(slow)
    body = b"x" * 2_000_000
    head = request("POST", PATH, headers={"Content-Length": str(len(body))})
    patience = Patience(body_s=0.02)
    async with (
        serve_proxy(pipeline, body_limit_bytes=0, patience=patience) as front,
        front.caller() as caller,
    ):
        await caller.send(head)
        await event(pipeline.started)
        sending = asyncio.ensure_future(caller.send(body))
        passed = asyncio.get_running_loop().time() + 3 * SWEEP_S
        await until(lambda: asyncio.get_running_loop().time() > passed)
        gate.set()
        answer = await caller.answer()
        assert (answer.status, answer.body) == (200, b"2000000")
        await sending
        await check_serving_by(caller, pipeline)


async def check_serving_by(caller: Any, pipeline: StubPipeline) -> None:
    """The connection goes on."""
    await caller.send(request("POST", PATH, b"again"))
    assert (await caller.answer()).body == b"5"
    assert len(pipeline.requests) == 2
