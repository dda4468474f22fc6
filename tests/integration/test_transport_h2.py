"""The libcurl transport over HTTP/2: one connection for many streams, each held back by itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.transport.curl import CurlTransport
from tests.support.transports import curl_transport

pytest.importorskip("h2", reason="needs the package h2 (requirements-dev.txt)")
from tests.support.h2_server import H2Server, H2Stream, h2_server

MIB = 1024 * 1024
FOR_EVER = Deadlines(5, 0, 0, 0)


@asynccontextmanager
async def made(play, *, http2: bool = True) -> AsyncIterator[tuple[H2Server, CurlTransport]]:
    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    with ca.cert_pem.tempfile() as ca_file:
        async with (
            h2_server(play, tls=tls) as server,
            curl_transport(http2=http2, ca_file=ca_file) as transport,
        ):
            yield server, transport


def call(server: H2Server, body: bytes | AsyncIterator[bytes] = b"{}") -> UpstreamCall:
    target = UpstreamTarget("POST", f"https://127.0.0.1:{server.port}/x")
    return UpstreamCall(target, [], body, FOR_EVER)


async def send_big(stream: H2Stream) -> None:
    await stream.head(200, [], end=False)
    for _ in range(24):
        await stream.send(bytes(MIB))
    await stream.finish()


async def send_small(stream: H2Stream) -> None:
    await stream.head(200, [("x-a", "1"), ("x-a", "2")], end=False)
    await stream.send(stream.request_body)
    await stream.finish()


@pytest.mark.gen_test
async def test_a_burst_of_calls_shares_one_connection():
    async def one(body: bytes) -> bool:
        async with transport.open(call(server, body)) as answer:
            assert answer.headers["x-a"] == "1, 2"
            return await answer.read_all() == body

    async with made(send_small) as (server, transport):
        assert all(await asyncio.gather(*(one(b"%d" % number) for number in range(50))))
        assert server.connections == 1


@pytest.mark.gen_test
async def test_a_slow_reader_is_held_back_and_its_neighbours_are_not():
    async def play(stream: H2Stream) -> None:
        await (send_big if stream.request_body == b"big" else send_small)(stream)

    async with (
        made(play) as (server, transport),
        transport.open(call(server, b"big")) as slow,
    ):
        for number in range(20):
            async with transport.open(call(server, b"%d" % number)) as answer:
                assert await answer.read_all() == b"%d" % number
        assert server.connections == 1
        assert server.streams[0].sent_bytes < 24 * MIB
        size = 0
        while piece := await slow.read():
            size += len(piece)
        assert size == 24 * MIB
        assert transport.stats().peak_body_bytes <= 64 * 1024


@pytest.mark.gen_test
async def test_leaving_one_stream_resets_it_alone():
    async def play(stream: H2Stream) -> None:
        await stream.head(200, [], end=False)
        await stream.send(b"x")
        await stream.silence(gate)
        await stream.finish()

    gate = asyncio.Event()
    async with made(play) as (server, transport), transport.open(call(server)) as stays:
        async with transport.open(call(server)) as leaves:
            assert await leaves.read() == b"x"
        await asyncio.wait_for(server.streams[1].left.wait(), 5)
        assert not server.streams[0].left.is_set()
        gate.set()
        assert await stays.read_all() == b"x"
        assert server.connections == 1


@pytest.mark.gen_test
async def test_an_upload_needs_no_chunks():
    async def source() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    async def play(stream: H2Stream) -> None:
        await stream.head(200, [], end=False)
        await stream.send(b"%d" % len(stream.request_body))
        await stream.finish()

    async with (
        made(play) as (server, transport),
        transport.open(call(server, source())) as answer,
    ):
        assert await answer.read_all() == b"3000000"
