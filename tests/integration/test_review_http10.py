"""HTTP/1.0 callers (old proxies): an answer without a length must end with the connection."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.netutil import bind_sockets

from aisix.pipeline import BodyLimits
from aisix.web.base import ProcessState
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from aisix.web.server import ProxyServer
from tests.support.builders import CHAT
from tests.support.pipeline import CALLER_TOKEN, Harness
from tests.support.rows import good_answer, good_body

WAIT_S = 5.0


async def talk(harness: Harness, *, stream: bool, until_end: bool) -> bytes:
    """Ask as HTTP/1.0 with keep-alive; everything up to the connection's end, or one read."""
    front = ProxyFront(
        pipeline=harness.pipeline,
        routes=Routes(),
        state=ProcessState(),
        body_limits=BodyLimits(10_000),
        accept_request_ids=(),
    )
    server = ProxyServer(front)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
    try:
        body = json.dumps(good_body(CHAT, stream=stream)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\n"
            f"Authorization: Bearer {CALLER_TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        async with asyncio.timeout(WAIT_S):
            return await (reader.read() if until_end else reader.readuntil(b"}]}"))
    finally:
        writer.close()
        await writer.wait_closed()
        server.stop()
        await server.close_all_connections()
        await front.state.wait_idle()


@pytest.mark.gen_test
async def test_a_stream_to_an_http_1_0_caller_ends_with_its_connection():
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=True))
    answer = await talk(harness, stream=True, until_end=True)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"data: [DONE]\n\n")
    await harness.audit()


@pytest.mark.gen_test
async def test_a_whole_answer_keeps_the_connection_of_an_http_1_0_caller():
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=False))
    answer = await talk(harness, stream=False, until_end=False)
    assert b"\r\nConnection: Keep-Alive\r\n" in answer
    await harness.audit()
