"""The libcurl transport over HTTP/2: one connection for many streams, each held back by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.curl import CurlTransport
from tests.support.tls import local_tls
from tests.support.transports import curl_transport

pytest.importorskip("h2", reason="needs the package h2 (requirements-dev.txt)")
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import StreamEnded

from tests.support.h2_server import H2Server, H2Stream, h2_server

MIB = 1024 * 1024
FOR_EVER = Deadlines(5, 0, 0, 0)


@asynccontextmanager
async def made(play, *, http2: bool = True) -> AsyncIterator[tuple[H2Server, CurlTransport]]:
    with local_tls() as (tls, ca_file):
        async with (
            h2_server(play, tls=tls) as server,
            curl_transport(http2=http2, ca_file=ca_file) as transport,
        ):
            yield server, transport


def call(
    server: H2Server,
    body: bytes | AsyncIterator[bytes] = b"{}",
    *,
    deadlines: Deadlines = FOR_EVER,
    streaming: bool = False,
) -> UpstreamCall:
    target = UpstreamTarget("POST", f"https://127.0.0.1:{server.port}/x", streaming=streaming)
    return UpstreamCall(target, [], body, deadlines)


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


# ── resets ──────────────────────────────────────────────────────────────────────────────────────


DATA = [b"one", b"two", b"three"]
BROKEN = b"to be reset"


def resetting(frames: int, headers: Sequence[tuple[str, str]] = ()):
    """Answer whole, but BROKEN with so many frames only, the head among them, and RST_STREAM."""

    async def play(stream: H2Stream) -> None:
        if stream.request_body != BROKEN:
            await send_small(stream)
            return
        await stream.head(200, headers, end=False)
        for piece in DATA[: frames - 1]:
            await stream.send(piece)
        await stream.reset()

    return play


@pytest.mark.gen_test
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize(
    ("frames", "headers"),
    [
        *((frames, []) for frames in (1, 2, 3, 4)),
        # with a length, the last piece is the end of the answer
        *((frames, [("content-length", "11")]) for frames in (1, 2, 3)),
    ],
)
async def test_an_answer_reset_after_any_frame_gives_what_came_and_breaks(
    frames, headers, streaming
):
    got = b""
    async with made(resetting(frames, headers)) as (server, transport):
        with pytest.raises(UpstreamBroken) as caught:
            async with transport.open(call(server, BROKEN, streaming=streaming)) as answer:
                assert answer.status == 200
                while piece := await answer.read():
                    got += piece
        assert got == b"".join(DATA[: frames - 1])
        error = caught.value
        assert (error.kind, error.code, error.status) == ("cut", "stream_aborted", 502)
        assert "127.0.0.1" not in error.message
        stats = transport.stats()
        assert (stats.open_transfers, stats.pooled_handles) == (0, 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
async def test_the_connection_of_a_reset_answer_serves_its_neighbour_and_the_next(frames):
    async def play(stream: H2Stream) -> None:
        if stream.request_body == b"neighbour":
            await stream.head(200, [], end=False)
            await stream.silence(gate)
            await stream.send(b"whole")
            await stream.finish()
            return
        await resetting(frames)(stream)

    gate = asyncio.Event()
    async with (
        made(play) as (server, transport),
        transport.open(call(server, b"neighbour", streaming=True)) as neighbour,
    ):
        for _ in range(3):
            with pytest.raises(UpstreamBroken):
                async with transport.open(call(server, BROKEN)) as answer:
                    await answer.read_all()
            async with transport.open(call(server, b"next")) as answer:
                assert await answer.read_all() == b"next"
        gate.set()
        assert await neighbour.read_all() == b"whole"
        assert server.connections == 1


# ── interim answers ─────────────────────────────────────────────────────────────────────────────


async def hint(stream: H2Stream) -> None:
    await stream.head(103, [("link", "</x>"), ("x-hint", "1")], end=False)


@pytest.mark.gen_test
async def test_an_interim_head_is_skipped_and_the_last_head_counts():
    async def play(stream: H2Stream) -> None:
        await hint(stream)
        await stream.head(201, [("x-a", "1")], end=False)
        await stream.send(b"ok")
        await stream.finish()

    async with (
        made(play) as (server, transport),
        transport.open(call(server)) as answer,
    ):
        assert answer.status == 201
        assert dict(answer.headers) == {"x-a": "1"}
        assert await answer.read_all() == b"ok"


@pytest.mark.gen_test
async def test_an_interim_head_does_not_satisfy_the_first_byte_deadline():
    async def play(stream: H2Stream) -> None:
        await hint(stream)
        await stream.silence(asyncio.Event())

    async with made(play) as (server, transport):
        wanted = call(server, deadlines=Deadlines(5.0, 0.2, 0.0, 0.0))
        with pytest.raises(UpstreamTimeout) as caught:
            async with transport.open(wanted):
                pytest.fail("there was no answer")
        assert caught.value.phase == "first_byte"


@pytest.mark.gen_test
async def test_a_reset_after_an_interim_head_is_a_reset_before_the_answer():
    async def play(stream: H2Stream) -> None:
        if stream.request_body != BROKEN:
            await send_small(stream)
            return
        await hint(stream)
        await stream.reset()

    async with made(play) as (server, transport):
        with pytest.raises(UpstreamUnreachable):
            async with transport.open(call(server, BROKEN)):
                pytest.fail("there was no answer")
        assert transport.stats().open_transfers == 0
        async with transport.open(call(server, b"next")) as answer:
            assert await answer.read_all() == b"next"
        assert server.connections == 1


@asynccontextmanager
async def wanting_http1(frames: int) -> AsyncIterator[tuple[int, CurlTransport, list[str]]]:
    """A server that answers over HTTP/2 with so many frames, then wants HTTP/1.1: its port, and the
    protocol of each request."""
    spoken: list[str] = []

    async def over_h2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        while data := await reader.read(65536):
            for ended in [one for one in h2.receive_data(data) if isinstance(one, StreamEnded)]:
                spoken.append("h2")
                if frames:
                    h2.send_headers(ended.stream_id, [(":status", "200")])
                for piece in DATA[: max(0, frames - 1)]:
                    h2.send_data(ended.stream_id, piece)
                writer.write(h2.data_to_send())
                await writer.drain()
                h2.reset_stream(ended.stream_id, error_code=ErrorCodes.HTTP_1_1_REQUIRED)
            writer.write(h2.data_to_send())
            await writer.drain()

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            if writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                await over_h2(reader, writer)
            else:
                await reader.readuntil(b"\r\n\r\n")
                spoken.append("h1")
                writer.write(b"HTTP/1.1 201 OK\r\nContent-Length: 5\r\n\r\nagain")
                await writer.drain()
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # of a connection that the other end broke off
                await writer.wait_closed()

    with local_tls() as (tls, ca_file):
        tls.set_alpn_protocols(["h2", "http/1.1"])
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        async with server:
            async with curl_transport(http2=True, ca_file=ca_file) as transport:
                yield server.sockets[0].getsockname()[1], transport, spoken
            await asyncio.gather(*[task for task in serving if task is not None])


@pytest.mark.gen_test
async def test_a_wish_for_http1_before_an_answer_is_granted():
    async with wanting_http1(0) as (port, transport, spoken):
        target = UpstreamTarget("POST", f"https://127.0.0.1:{port}/x")
        async with transport.open(UpstreamCall(target, [], b"{}", FOR_EVER)) as answer:
            assert (answer.status, await answer.read_all()) == (201, b"again")
    assert spoken == ["h2", "h1"]


@pytest.mark.gen_test
@pytest.mark.parametrize("frames", [1, 2])
async def test_a_wish_for_http1_behind_a_head_never_joins_two_answers(frames):
    got = b""
    async with wanting_http1(frames) as (port, transport, _):
        target = UpstreamTarget("POST", f"https://127.0.0.1:{port}/x", streaming=True)
        with pytest.raises(UpstreamBroken) as caught:
            async with transport.open(UpstreamCall(target, [], b"{}", FOR_EVER)) as answer:
                while piece := await answer.read():
                    got += piece
                    assert answer.status == 200
        assert (caught.value.kind, answer.status) == ("cut", 200)
        assert got == b"".join(DATA[: frames - 1])
        assert transport.stats().open_transfers == 0
