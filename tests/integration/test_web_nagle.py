"""A stream's pieces leave when they are written: Nagle's algorithm must not hold them back.

Without TCP_NODELAY the second small piece waits for the caller's delayed acknowledgement, 40 ms
and more. The socket option is looked at, not the time: a timed test would fail on a busy machine.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from tests.support.front import StubPipeline, request, serve_proxy


@pytest.mark.gen_test
async def test_a_stream_is_sent_without_nagles_delay():
    options: list[int] = []

    async def look(_inbound: InboundRequest, reply: Any) -> None:
        (connection,) = front.state.inflight
        stream = connection.stream  # type: ignore[attr-defined]
        options.append(stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await reply.send(200, {}, b"")

    async with serve_proxy(StubPipeline(look)) as front, front.caller() as caller:
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.answer()).status == 200
    assert options == [1]
