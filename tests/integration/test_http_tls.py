"""The same over TLS: order, streams, departures, and callers that do not speak TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tornado.netutil import bind_sockets

from aisix.core.request import InboundRequest
from aisix.pipeline import BodyLimits
from aisix.web.base import ProcessState
from aisix.web.connection import Patience
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from aisix.web.server import ProxyServer
from tests.support.front import PATIENCE, WAIT_S, StubPipeline, event, until
from tests.support.hygiene import ObligingHarness, chat, models
from tests.support.rows import DONE
from tests.support.tls import make_certificate


@dataclass
class TlsStand:
    """A listening proxy, and what a caller of it needs."""

    port: int
    server: ProxyServer
    context: ssl.SSLContext

    @asynccontextmanager
    async def caller(
        self, *, tls: bool = True
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, over TLS or not."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context if tls else None
        )
        try:
            yield reader, writer
        finally:
            writer.close()


@asynccontextmanager
async def serve_tls(
    folder: Path, pipeline: object, *, patience: Patience = PATIENCE, max_connections: int = 0
) -> AsyncIterator[TlsStand]:
    """The proxy over `pipeline` with a certificate for 127.0.0.1."""
    certificate = make_certificate(folder, "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    state = ProcessState()
    front = ProxyFront(
        pipeline=pipeline,  # type: ignore[arg-type]
        routes=Routes(),
        state=state,
        body_limits=BodyLimits(),
        accept_request_ids=(),
        patience=patience,
        max_connections=max_connections,
    )
    server = ProxyServer(front, tls=context)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    trusting = ssl.create_default_context(cafile=str(certificate.authority))
    try:
        yield TlsStand(sockets[0].getsockname()[1], server, trusting)
        async with asyncio.timeout(WAIT_S):
            await state.wait_idle()
    finally:
        server.stop()
        state.abort_all()
        async with asyncio.timeout(WAIT_S):
            await server.close_all_connections()


async def until_closed(stand: TlsStand) -> None:
    """Wait until the server has forgotten everybody."""
    await until(lambda: stand.server.open_connections == 0)


@pytest.mark.gen_test
async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path):
    harness = ObligingHarness()
    last = models(Connection="close")
    async with serve_tls(tmp_path, harness.pipeline) as stand, stand.caller() as (reader, writer):
        writer.write((models() + chat() + chat(stream=True)) * 10 + last)
        async with asyncio.timeout(WAIT_S):
            said = await reader.read()
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 31
    assert said.count(DONE) == 10
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_large_body_comes_in(tmp_path: Path):
    async def measure(inbound: InboundRequest, reply: object) -> None:
        size = len(await inbound.body.read_all(0))
        await reply.send(200, {}, str(size).encode())  # type: ignore[attr-defined]

    body = b"x" * 5_000_000
    head = models(Content_Length=str(len(body)), Connection="close").replace(b"GET", b"POST")
    async with (
        serve_tls(tmp_path, StubPipeline(measure)) as stand,
        stand.caller() as (reader, writer),
    ):
        writer.write(head + body)
        async with asyncio.timeout(WAIT_S):
            assert (await reader.read()).endswith(b"\r\n\r\n5000000")


def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


def cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("leave", [hang_up, cut])
@pytest.mark.gen_test
async def test_a_departure_ends_the_exchange(
    tmp_path: Path, leave: Callable[[asyncio.StreamWriter], None]
):
    pipeline = StubPipeline(lambda _inbound, _reply: asyncio.Event().wait())
    async with serve_tls(tmp_path, pipeline) as stand, stand.caller() as (_, writer):
        writer.write(chat())
        await event(pipeline.started)
        leave(writer)
        await event(pipeline.cancelled)
        await until_closed(stand)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00"], ids=["nothing", "half a hello"])
@pytest.mark.gen_test
async def test_a_handshake_that_does_not_end_is_not_waited_for(tmp_path: Path, said: bytes):
    patience = Patience(head_s=0.02)
    async with (
        serve_tls(tmp_path, ObligingHarness().pipeline, patience=patience) as stand,
        stand.caller(tls=False) as (reader, writer),
    ):
        writer.write(said)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        await until_closed(stand)


@pytest.mark.logs("SSL Error on")  # said by Tornado, for each
@pytest.mark.gen_test
async def test_plain_http_on_a_tls_port_is_hung_up_on(tmp_path: Path):
    harness = ObligingHarness()
    async with serve_tls(tmp_path, harness.pipeline) as stand:
        for wire in (models(), b"\x00" * 100):
            async with stand.caller(tls=False) as (reader, writer):
                writer.write(wire)
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(WAIT_S):
                        assert b"HTTP/1.1" not in await reader.read()
        await until_closed(stand)
        async with stand.caller() as (reader, writer):
            writer.write(models(Connection="close"))
            async with asyncio.timeout(WAIT_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert len(harness.paths) == 1


@pytest.mark.gen_test
async def test_one_too_many_is_told_so_over_tls(tmp_path: Path):
    harness = ObligingHarness()
    async with (
        serve_tls(tmp_path, harness.pipeline, max_connections=1) as stand,
        stand.caller() as (reader, writer),
    ):
        async with stand.caller() as (extra, _):
            async with asyncio.timeout(WAIT_S):
                assert (await extra.read()).startswith(b"HTTP/1.1 503 ")
        writer.write(models(Connection="close"))
        async with asyncio.timeout(WAIT_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
