"""Tunnels of the libcurl transport: a WebSocket's bytes in both directions, as they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.body import HIGH_WATER_BYTES
from aisix.transport.request import Proxy
from tests.support.proxy import forward_proxy
from tests.support.raw_server import RawConnection, raw_server
from tests.support.tls import local_tls
from tests.support.transports import curl_transport, wired

plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
OWN = [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Protocol", "realtime")]
MIB = 1024 * 1024
WAIT_S = 10.0


class Source:
    """What the caller sends: pieces from a queue, for as long as somebody asks."""

    def __init__(self, *pieces: bytes) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.asked = 0
        for piece in pieces:
            self.queue.put_nowait(piece)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.asked += 1
        return await self.queue.get()


def tunnel(url: str, source: AsyncIterator[bytes], **deadlines: float) -> UpstreamCall:
    target = UpstreamTarget("GET", url.replace("http", "ws", 1), [("api-key", "k")], streaming=True)
    off = {"connect_s": 5.0, "first_byte_s": 0.0, "idle_s": 0.0}
    return UpstreamCall(target, OWN, source, Deadlines(**{**off, **deadlines}))


async def steady(figure: Callable[[], int]) -> None:
    """Wait until `figure()` has stood still for a quarter of a second."""
    before, still = figure(), 0
    while still < 25:
        await asyncio.sleep(0.01)
        still = still + 1 if figure() == before and before else 0
        before = figure()


async def everything(answer) -> bytes:
    pieces = []
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)


@plain_and_tls
@pytest.mark.gen_test
async def test_bytes_pass_in_both_directions_as_they_are(tls: bool):
    ahead, masked, unmasked = b"\x81\x02hi", b"\x81\x83abcd\x01\x02\x03", b"\x89\x00\xff\xfe"
    heads: list[tuple[str, str, list[tuple[str, str]]] | None] = []
    got: list[bytes] = []

    async def serve(connection: RawConnection) -> None:
        heads.append(await connection.head())
        await connection.send(SWITCHED + ahead)
        got.append(await connection.receive(len(masked + unmasked)))
        await connection.send(b"\x88\x02\x03\xe8")

    source = Source(masked, unmasked)
    async with (
        wired(serve, tls=tls) as (server, transport),
        transport.open(tunnel(server.url("/rt?a=1"), source)) as answer,
    ):
        assert answer.status == 101
        assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert await everything(answer) == ahead + b"\x88\x02\x03\xe8"
    assert got == [masked + unmasked]
    assert heads[0] is not None
    method, target, headers = heads[0]
    fields = dict(headers)
    assert (method, target) == ("GET", "/rt?a=1")
    assert len(fields) == len(headers)
    assert {name: fields[name] for name in fields if name not in ("host", "user-agent")} == {
        "accept-encoding": "identity",
        "api-key": "k",
        "connection": "Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-protocol": "realtime",
        "sec-websocket-version": "13",
        "upgrade": "websocket",
    }


@pytest.mark.parametrize("status", [200, 301, 401, 404, 429, 503])
@pytest.mark.gen_test
async def test_a_refusal_has_its_status_and_its_headers_and_no_body(status: int):
    body = b'{"error":{"code":"DeploymentNotFound"}}'

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(
            b"HTTP/1.1 %d Because\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n"
            % (status, len(body)),
            body,
        )
        await connection.until_gone()

    source = Source()
    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(tunnel(server.url(), source)) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (status, "7")
            assert await answer.read_all() == b""
        assert transport.stats().open_transfers == 0


@plain_and_tls
@pytest.mark.gen_test
async def test_megabytes_cross_in_both_directions_at_once(tls: bool):
    up, down = os.urandom(3 * MIB), os.urandom(3 * MIB)
    got: list[bytes] = []

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(SWITCHED)

        async def write() -> None:
            for at in range(0, len(down), 50_000):
                await connection.send(down[at : at + 50_000])

        writing = asyncio.create_task(write())
        got.append(await connection.receive(len(up)))
        await writing

    source = Source(*(up[at : at + 65_000] for at in range(0, len(up), 65_000)))
    async with wired(serve, tls=tls) as (server, transport):
        async with transport.open(tunnel(server.url(), source)) as answer:
            assert await everything(answer) == down
        assert transport.stats().peak_body_bytes <= 2 * HIGH_WATER_BYTES
    assert got == [up]


@plain_and_tls
@pytest.mark.gen_test
async def test_a_reader_that_does_not_read_holds_the_upstream_but_not_the_other_direction(
    tls: bool,
):
    total = 32 * MIB
    heard = asyncio.Event()
    sent: list[RawConnection] = []

    async def serve(connection: RawConnection) -> None:
        sent.append(connection)
        await connection.head()
        await connection.send(SWITCHED)

        async def write() -> None:
            for _ in range(total // MIB):
                await connection.send(bytes(MIB))

        writing = asyncio.create_task(write())
        assert await connection.receive(5) == b"hello"
        heard.set()
        await writing

    source = Source()
    async with (
        wired(serve, tls=tls) as (server, transport),
        transport.open(tunnel(server.url(), source)) as answer,
    ):
        await steady(lambda: sent[0].sent_bytes)
        assert sent[0].sent_bytes < total
        assert transport.stats().peak_body_bytes <= 2 * HIGH_WATER_BYTES
        source.queue.put_nowait(b"hello")
        async with asyncio.timeout(WAIT_S):
            await heard.wait()
        assert len(await everything(answer)) == total


@pytest.mark.gen_test
async def test_an_upstream_that_does_not_read_holds_the_source_but_not_the_other_direction():
    piece = bytes(64 * 1024)
    count = 512

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(SWITCHED)
        await go_on.wait()
        await connection.send(b"down")
        await read.wait()
        await connection.receive(count * len(piece))

    go_on, read = asyncio.Event(), asyncio.Event()
    source = Source(*[piece] * count)
    async with (
        raw_server(serve) as server,
        curl_transport() as transport,
        transport.open(tunnel(server.url(), source)) as answer,
    ):
        await steady(lambda: source.asked)
        assert source.asked < count
        go_on.set()
        assert await answer.read() == b"down"
        read.set()
        assert await answer.read() == b""
        assert source.queue.empty()


@pytest.mark.gen_test
async def test_leaving_closes_the_connection_at_once():
    gone = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(SWITCHED + b"x")
        await connection.until_gone()
        gone.set()

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(tunnel(server.url(), Source())) as answer:
            assert await answer.read() == b"x"
        assert transport.stats().open_transfers == 0
        async with asyncio.timeout(WAIT_S):
            await gone.wait()


@pytest.mark.gen_test
async def test_a_reset_is_a_cut():
    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(SWITCHED + b"x")
        await connection.receive(1)
        connection.reset()

    source = Source()
    async with (
        raw_server(serve) as server,
        curl_transport() as transport,
        transport.open(tunnel(server.url(), source)) as answer,
    ):
        assert await answer.read() == b"x"
        source.queue.put_nowait(b"y")
        with pytest.raises(UpstreamBroken) as caught:
            await answer.read()
    assert caught.value.kind == "cut"


@pytest.mark.gen_test
async def test_nothing_of_the_source_is_sent_before_the_upstream_agrees():
    after: list[bytes] = []

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        assert not await connection.has_sent_within(0.1)
        await connection.send(SWITCHED)
        after.append(await connection.receive(5))

    async with (
        raw_server(serve) as server,
        curl_transport() as transport,
        transport.open(tunnel(server.url(), Source(b"early"))) as answer,
    ):
        assert await everything(answer) == b""
    assert after == [b"early"]


@pytest.mark.gen_test
async def test_deadlines_hold_for_the_handshake():
    async def silent(connection: RawConnection) -> None:
        await connection.head()
        await connection.until_gone()

    async def closing(connection: RawConnection) -> None:
        await connection.head()

    async with raw_server(silent) as server, curl_transport() as transport:
        with pytest.raises(UpstreamTimeout) as caught:
            async with transport.open(tunnel(server.url(), Source(), first_byte_s=0.05)):
                pass
        assert caught.value.phase == "first_byte"
    async with raw_server(closing) as server, curl_transport() as transport:
        with pytest.raises(UpstreamUnreachable):
            async with transport.open(tunnel(server.url(), Source())):
                pass


@plain_and_tls
@pytest.mark.gen_test
async def test_a_proxy_is_asked_to_connect_and_sees_nothing_else(tls: bool):
    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(SWITCHED)
        assert await connection.receive(2) == b"up"
        await connection.send(b"down")

    async with AsyncExitStack() as stack:
        context, ca_file = stack.enter_context(local_tls()) if tls else (None, None)
        server = await stack.enter_async_context(raw_server(serve, tls=context))
        proxy = await stack.enter_async_context(forward_proxy(server.port))
        transport = await stack.enter_async_context(
            curl_transport(proxy=Proxy(proxy.url), ca_file=ca_file)
        )
        call = tunnel(server.url("/rt"), Source(b"up"))
        async with transport.open(call) as answer:
            assert await everything(answer) == b"down"
        (asked,) = proxy.seen
    assert (asked.method, asked.target) == ("CONNECT", f"127.0.0.1:{server.port}")
    assert "api-key" not in asked.headers


@pytest.mark.gen_test
async def test_a_tunnel_speaks_http_1_1_even_where_http2_is_wished_for():
    async def serve(connection: RawConnection) -> None:
        head = await connection.head()
        assert head is not None
        assert dict(head[2])["upgrade"] == "websocket"
        await connection.send(SWITCHED + b"ok")

    async with (
        raw_server(serve) as server,
        curl_transport(http2=True) as transport,
        transport.open(tunnel(server.url(), Source())) as answer,
    ):
        assert await everything(answer) == b"ok"
