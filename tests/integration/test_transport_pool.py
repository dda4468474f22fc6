"""What the libcurl transport keeps between calls: handles, connections, and nothing of a call."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import time

import pytest
import trustme

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import (
    UpstreamBroken,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.transport.curl import CurlTransport
from aisix.transport.handles import Handle
from tests.support.raw_server import (
    CHUNKED_HEAD,
    LAST_CHUNK,
    RawConnection,
    RawRequest,
    RawServer,
    answers,
    chunk,
    raw_server,
)
from tests.support.transports import curl_transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
NONE = Deadlines(5.0, 0.0, 0.0, 0.0)
OF_LIBCURL = 1
"""The socket by which libcurl wakes itself up."""

KIB = 1024
MIB = 1024 * KIB


def target(server: RawServer, **fields) -> UpstreamTarget:
    return UpstreamTarget("POST", server.url("/x"), **fields)


async def fetch(
    transport: CurlTransport, wanted: UpstreamTarget, body=b"{}", headers=(), deadlines=NONE
) -> bytes:
    async with transport.open(UpstreamCall(wanted, headers, body, deadlines)) as answer:
        return await answer.read_all()


def ok(connection: RawConnection):
    return answers(connection, OK)


def recording(requests: list[RawRequest]):
    async def serve(connection: RawConnection) -> None:
        while (request := await connection.request()) is not None:
            requests.append(request)
            await connection.send(OK)

    return serve


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ── nothing of a call is left in a handle ───────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_reused_handle_sends_nothing_of_the_call_before():
    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        one = target(server, headers=[("api-key", "k")])
        await fetch(transport, one, b"long" * 1000, [("x-first", "1"), ("Accept", "text/x")])
        assert transport.stats().pooled_handles == 1
        await fetch(transport, one, b"", [("x-second", "2")])
        await fetch(transport, one, b"third")
        assert transport.stats().pooled_handles == 1
    first, second, third = requests
    assert (first.header("x-first"), first.header("accept")) == ("1", "text/x")
    assert second.body == b""
    assert (second.header("x-first"), second.header("x-second")) == (None, "2")
    assert second.header("accept") is None
    assert second.header("content-length") == "0"
    assert third.body == b"third"
    assert (third.header("x-first"), third.header("x-second")) == (None, None)
    assert [request.header("api-key") for request in requests] == ["k"] * 3


@pytest.mark.gen_test
async def test_a_reused_handle_answers_nothing_of_the_call_before():
    replies = iter(
        [
            b"HTTP/1.1 200 OK\r\nX-First: 1\r\nContent-Length: 3\r\n\r\none",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: 500\r\n\r\n",
            b"HTTP/1.1 103 Hints\r\nX-Hint: 1\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
        ]
    )

    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(next(replies))

    async with raw_server(serve) as server, curl_transport() as transport:
        call = UpstreamCall(target(server), deadlines=NONE)
        async with transport.open(call) as first:
            pass
        async with transport.open(call) as second:
            assert "x-first" not in second.headers
            assert await second.read_all() == b""
            assert (second.status, "x-trailer" in second.headers) == (200, False)
        async with transport.open(call) as third:
            assert (third.status, dict(third.headers)) == (404, {"content-length": "0"})
            assert await third.read_all() == b""
        assert (first.status, first.headers["x-first"], second.status) == (200, "1", 200)
        assert first.first_byte_at < second.first_byte_at < third.first_byte_at


@pytest.mark.gen_test
async def test_an_answer_that_was_left_is_not_touched_by_the_next_on_its_handle():
    async with raw_server(ok) as server, curl_transport() as transport:
        wanted = target(server)
        async with transport.open(UpstreamCall(wanted, deadlines=NONE)) as left:
            pass
        assert await fetch(transport, wanted) == b"ok"
        assert await left.read() == b"ok"
        assert await left.read() == b""


@pytest.mark.gen_test
async def test_a_rotated_credential_is_used_at_once():
    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        for key in ("old", "old", "new", "old"):
            await fetch(transport, target(server, headers=[("api-key", key)]))
        assert len(server.connections) == 1, "credentials share connections, never handles"
    assert [request.header("api-key") for request in requests] == ["old", "old", "new", "old"]


@pytest.mark.gen_test
async def test_a_reused_handle_obeys_the_deadlines_of_its_own_call():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        wanted = target(server)
        await fetch(transport, wanted, deadlines=Deadlines(0.5, 60.0, 60.0, 60.0))
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(transport, wanted, deadlines=Deadlines(60.0, 0.1, 0.0, 0.0))
        assert (caught.value.phase, caught.value.message) == (
            "first_byte",
            "upstream request timed out after 100ms",
        )
        assert transport.stats().pooled_handles == 0, "its state is not known: it is closed"


@pytest.mark.gen_test
async def test_a_reused_handle_takes_the_connect_deadline_of_its_own_call():
    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)

    async def serve(connection: RawConnection) -> None:
        if len(server.connections) > 1:
            await connection.until_gone()  # nobody shakes hands
            return
        await connection.secure(tls)
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")

    with ca.cert_pem.tempfile() as ca_file:
        async with raw_server(serve) as server, curl_transport(ca_file=ca_file) as transport:
            wanted = UpstreamTarget("POST", f"https://127.0.0.1:{server.port}/")
            assert await fetch(transport, wanted, deadlines=Deadlines(60.0, 0, 0, 0)) == b"ok"
            assert transport.stats().pooled_handles == 1
            with pytest.raises(UpstreamTimeout) as caught:
                await fetch(transport, wanted, deadlines=Deadlines(0.1, 0, 0, 0))
        assert caught.value.phase == "connect"


@pytest.mark.gen_test
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", SHORT + b"bo", b"not HTTP\r\n\r\n"])
async def test_a_handle_whose_call_failed_is_not_used_again(answer: bytes):
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(answer)

    async with raw_server(serve) as server, curl_transport() as transport:
        with pytest.raises((UpstreamBroken, UpstreamUnreachable)):
            await fetch(transport, target(server))
        assert transport.stats().pooled_handles == 0


@pytest.mark.gen_test
async def test_a_timer_that_libcurl_gave_up_does_not_swallow_the_one_after_it():
    """The first call's connect deadline rings in vain, before that of the second call."""

    async def silent(connection: RawConnection) -> None:
        await connection.until_gone()

    async with raw_server(ok) as server, raw_server(silent) as other, curl_transport() as transport:
        await fetch(transport, target(server), deadlines=Deadlines(0.1, 0, 0, 0))
        stalled = UpstreamTarget("POST", f"https://127.0.0.1:{other.port}/")
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(transport, stalled, deadlines=Deadlines(0.4, 0, 0, 3.0))
        assert caught.value.phase == "connect"


# ── nothing is leaked ───────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_thousand_cancelled_calls_leave_no_handle_and_no_descriptor():
    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(CHUNKED_HEAD, chunk(b"x" * 30_000), LAST_CHUNK)

    async def left_after(count: int) -> None:
        task = asyncio.create_task(fetch(transport, wanted))
        await turns(count)
        task.cancel()
        await asyncio.wait([task])

    async with raw_server(serve) as server, curl_transport() as transport:
        wanted = target(server)
        await fetch(transport, wanted)
        before = descriptors()
        for _ in range(20):
            await asyncio.gather(*(left_after(count % 25) for count in range(50)))
        stats = transport.stats()
        assert (stats.open_transfers, stats.watched_sockets) == (0, 0)
        assert stats.pooled_handles <= 50
        handles = sum(isinstance(known, Handle) for known in gc.get_objects())
        assert handles == stats.pooled_handles
        assert len(await fetch(transport, wanted)) == 30_000
        await transport.close()
        for connection in server.connections:
            await asyncio.wait_for(connection.closed(), 5)
        await turns(10)
        # the first connection, and the epoll
        assert descriptors() <= before


@pytest.mark.gen_test
async def test_a_transport_takes_nothing_before_its_first_call():
    """So it can be made before a fork, and used after it."""
    before = descriptors()
    transport = CurlTransport(clock=None)  # type: ignore[arg-type]
    assert descriptors() == before
    assert transport.stats().pooled_handles == 0
    await transport.close()


@pytest.mark.gen_test
async def test_a_closed_transport_has_given_everything_back():
    async with raw_server(ok) as server:
        before = descriptors()
        async with curl_transport() as transport:
            await asyncio.gather(*(fetch(transport, target(server)) for _ in range(20)))
            assert transport.stats().pooled_handles == 20
        for connection in server.connections:
            await asyncio.wait_for(connection.closed(), 5)
        await turns(10)
        assert transport.stats().pooled_handles == 0
        assert descriptors() == before
        assert not any(isinstance(known, Handle) for known in gc.get_objects())


@pytest.mark.gen_test
async def test_a_reader_that_is_slow_over_a_hundred_megabytes_costs_one_buffer():
    block = os.urandom(MIB)

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
        for _ in range(100):
            await connection.send(block)
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        call = UpstreamCall(target(server, streaming=True), deadlines=NONE)
        async with transport.open(call) as answer:
            size = largest = 0
            while piece := await answer.read():
                size += len(piece)
                largest = max(largest, len(piece))
                await turns(2)
        assert size == 100 * MIB
        assert largest <= transport.stats().peak_body_bytes <= 64 * KIB


@pytest.mark.gen_test
async def test_a_kept_connection_that_the_upstream_closes_keeps_no_processor_busy():
    cut = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        connection.cut()
        cut.set()

    async with raw_server(serve) as server, curl_transport() as transport:
        await fetch(transport, target(server))
        await cut.wait()
        await turns(5)
        before = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - before < 0.1


# ── connections ─────────────────────────────────────────────────────────────────────────────────


async def burst(transport: CurlTransport, wanted: UpstreamTarget, count: int) -> None:
    """`count` calls at once: the upstream answers none before it has all."""
    await asyncio.gather(*(fetch(transport, wanted) for _ in range(count)))


def together(count: int):
    """Answer only when `count` requests are there."""
    waiting = 0
    all_there = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        nonlocal waiting
        while await connection.request() is not None:
            waiting += 1
            if waiting == count:
                all_there.set()
            await all_there.wait()
            await connection.send(OK)

    return serve


def open_connections(server: RawServer) -> int:
    return sum(not connection.gone.is_set() for connection in server.connections)


@pytest.mark.gen_test
async def test_a_burst_keeps_no_more_connections_than_allowed():
    async with (
        raw_server(together(20)) as server,
        curl_transport(pool_max_idle_per_host=5) as transport,
    ):
        wanted = target(server)
        await burst(transport, wanted, 20)
        assert len(server.connections) == 20
        gone = [connection.gone.wait() for connection in server.connections]
        for done in asyncio.as_completed(gone, timeout=5):
            await done
            if open_connections(server) == 5:
                break
        for _ in range(5):
            await fetch(transport, wanted)
        assert len(server.connections) == 20
        assert open_connections(server) == 5


@pytest.mark.gen_test
async def test_with_a_bound_of_zero_no_connection_is_kept():
    async with raw_server(ok) as server, curl_transport(pool_max_idle_per_host=0) as transport:
        wanted = target(server)
        for count in range(1, 4):
            assert await fetch(transport, wanted) == b"ok"
            assert len(server.connections) == count
            await asyncio.wait_for(server.connections[-1].gone.wait(), 5)


@pytest.mark.gen_test
async def test_a_quiet_transport_closes_all_it_keeps_and_wakes_again():
    async with raw_server(ok) as server:
        before = descriptors()
        async with curl_transport(pool_idle_timeout_s=0.2) as transport:
            wanted = target(server)
            assert await fetch(transport, wanted) == b"ok"
            assert transport.stats().pooled_handles == 1
            await asyncio.wait_for(server.connections[0].gone.wait(), 5)
            assert transport.stats().pooled_handles == 0
            await turns(10)
            assert descriptors() == before
            assert await fetch(transport, wanted) == b"ok"
            assert len(server.connections) == 2


@pytest.mark.gen_test
async def test_a_call_that_runs_keeps_the_transport_awake():
    gate = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD)
        await gate.wait()
        await connection.send(chunk(b"late"), LAST_CHUNK)

    async with raw_server(serve) as server, curl_transport(pool_idle_timeout_s=0.1) as transport:
        asyncio.get_running_loop().call_later(0.4, gate.set)
        assert await fetch(transport, target(server)) == b"late"


@pytest.mark.gen_test
async def test_idle_connections_are_closed_while_others_work():
    """libcurl looks for them when a call begins, at most once a second."""
    async with raw_server(together(5)) as first, raw_server(ok) as second:
        async with curl_transport(pool_idle_timeout_s=1.0) as transport:
            await burst(transport, target(first), 5)
            busy = asyncio.create_task(keep_asking(transport, target(second)))
            gone = [connection.gone.wait() for connection in first.connections]
            await asyncio.wait_for(asyncio.gather(*gone), 10)
            busy.cancel()
            await asyncio.wait([busy])
            assert transport.stats().pooled_handles == 1
        assert len(second.connections) == 1


async def keep_asking(transport: CurlTransport, wanted: UpstreamTarget) -> None:
    while True:
        await fetch(transport, wanted)
        await asyncio.sleep(0.1)


# ── when an answer is handed over ───────────────────────────────────────────────────────────────


def in_two(gate: asyncio.Event, head: bytes):
    """A head, and its body after `gate`."""

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(head)
        await gate.wait()
        await connection.send(b"body")

    return serve


@pytest.mark.gen_test
async def test_a_short_answer_is_handed_over_whole():
    gate = asyncio.Event()
    async with raw_server(in_two(gate, SHORT)) as server, curl_transport() as transport:
        context = transport.open(UpstreamCall(target(server), deadlines=NONE))
        opening = asyncio.create_task(context.__aenter__())
        await asyncio.wait([opening], timeout=0.1)
        assert not opening.done()
        gate.set()
        answer = await opening
        assert transport.stats().pooled_handles == 1, "it is over before it is read"
        assert await answer.read_all() == b"body"
        assert answer.last_byte_at > answer.first_byte_at
        await context.__aexit__(None, None, None)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("head", "streaming"),
    [
        (SHORT, True),
        (SHORT.replace(b"200", b"503"), False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
    ],
    ids=["streaming", "error", "long", "unknown length"],
)
async def test_any_other_answer_is_handed_over_with_its_head(head: bytes, streaming: bool):
    gate = asyncio.Event()
    async with raw_server(in_two(gate, head)) as server, curl_transport() as transport:
        call = UpstreamCall(target(server, streaming=streaming), deadlines=NONE)
        async with transport.open(call) as answer:
            assert answer.status in {200, 503}
            gate.set()
            assert await answer.read() == b"body"


@pytest.mark.gen_test
async def test_an_answer_that_only_claims_to_be_short_is_handed_over_when_it_fills_the_buffer():
    """The chunks decide where both lengths are given; nothing may wait for an end behind them."""
    head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\n")

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(head, *[chunk(bytes(10_000))] * 100, LAST_CHUNK)

    async with raw_server(serve) as server, curl_transport() as transport:
        assert len(await fetch(transport, target(server))) == 1_000_000


@pytest.mark.gen_test
async def test_an_answer_without_the_body_that_its_length_speaks_of_is_over_at_once():
    async with raw_server(ok_head) as server, curl_transport() as transport:
        wanted = UpstreamTarget("HEAD", server.url("/x"))
        async with transport.open(UpstreamCall(wanted, deadlines=NONE)) as answer:
            assert (answer.status, answer.headers["content-length"]) == (200, "4")
            assert await answer.read() == b""


async def ok_head(connection: RawConnection) -> None:
    await answers(connection, SHORT)


@pytest.mark.gen_test
@pytest.mark.parametrize("phase", ["cut", "idle", "total"])
async def test_a_short_answer_that_stays_unfinished_is_an_answer_that_fails(phase: str):
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(SHORT, b"bo")
        if phase != "cut":
            await connection.until_gone()

    limits = Deadlines(5.0, 9.0, 0.1 if phase == "idle" else 9.0, 0.1 if phase == "total" else 9.0)
    async with raw_server(serve) as server, curl_transport() as transport:
        call = UpstreamCall(target(server), deadlines=limits)
        async with transport.open(call) as answer:
            assert answer.status == 200
            assert await answer.read() == b"bo"
            with pytest.raises((UpstreamBroken, UpstreamTimeout)) as caught:
                await answer.read()
            assert phase in (
                getattr(caught.value, "kind", ""),
                getattr(caught.value, "phase", ""),
            )


@pytest.mark.gen_test
async def test_many_deadlines_are_kept_by_one_timer_each_in_its_time():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.until_gone()

    async def late_by(seconds: float) -> float:
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await fetch(transport, wanted, deadlines=Deadlines(5.0, seconds, 0.0, 9.0))
        return time.monotonic() - began - seconds

    async with raw_server(serve) as server, curl_transport() as transport:
        wanted = target(server)
        waits = [0.3 - 0.002 * number for number in range(100)]
        late = await asyncio.gather(*(late_by(seconds) for seconds in waits))
        assert min(late) >= 0
        assert sorted(late)[50] < 0.3


# ── when a call leaves ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("calls", "sent"), [(1, 1), (2, 1), (8, 1), (9, 9), (20, 17)])
@pytest.mark.gen_test
async def test_one_that_is_alone_and_bursts_leave_before_the_turn_of_the_loop_ends(calls, sent):
    """The first goes at once, then every eighth takes those before it along."""
    async with raw_server(ok) as server, curl_transport() as transport:
        wanted = target(server)
        fetching = [asyncio.create_task(fetch(transport, wanted)) for _ in range(calls)]
        await asyncio.sleep(0)  # all have begun; what they left to the next turn has not run
        connecting = transport.stats().watched_sockets
        assert connecting - OF_LIBCURL == sent
        assert await asyncio.gather(*fetching) == [b"ok"] * calls


class Source:
    """A streamed body that knows whether it was closed."""

    closed = 0

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("url", "headers"),
    [("http://127.0.0.1:99999999/", []), ("http://127.0.0.1:1/", [("x-bad", "a\nb")])],
    ids=["ended at its start", "never started"],
)
@pytest.mark.gen_test
async def test_the_source_of_a_call_that_does_not_begin_is_closed(url, headers):
    source = Source()
    async with curl_transport() as transport:
        call = UpstreamCall(UpstreamTarget("POST", url), headers, source, NONE)
        with pytest.raises((UpstreamMisconfigured, UpstreamUnreachable)):
            async with transport.open(call):
                pass
        assert (source.closed, transport.stats().open_transfers) == (1, 0)
