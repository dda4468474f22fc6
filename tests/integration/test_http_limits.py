"""What one caller, and many, can make the front hold or wait for: bytes, seconds, connections."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from aisix.web.codec import MAX_HEAD_BYTES
from aisix.web.connection import Patience
from aisix.web.server import ProxyServer
from tests.support.front import (
    BODY_LIMIT_BYTES,
    WAIT_S,
    Front,
    FrontCaller,
    StubPipeline,
    event,
    request,
    serve_proxy,
    until,
)
from tests.support.hygiene import (
    MODELS,
    PATH,
    ObligingHarness,
    chat,
    check_refusal,
    check_serving,
    chunked,
    models,
)
from tests.support.pipeline import Harness
from tests.support.rows import DONE

CHUNKED = {"Transfer-Encoding": "chunked"}
SHORT_S = 0.02
HEAD = request("POST", PATH)[:-2]
"""Without its last line."""


# ── heads ───────────────────────────────────────────────────────────────────────────────────────

PIECE = b"x" * 4_096
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a target": (b"GET /", PIECE),
    "a field": (HEAD + b"A: ", PIECE),
    "a name": (HEAD, PIECE),
    "fields": (HEAD, b"A: b\r\n" * 600),
    "fields with other names": (HEAD, b"".join(b"X-%d: b\r\n" % n for n in range(400))),
    "space": (HEAD + b"A:", b" " * 4_096),
    "empty lines": (b"", b"\r\n" * 2_048),
}


async def check_431(caller: FrontCaller) -> None:
    """A 431 in words, and the end."""
    answer = await caller.answer()
    check_refusal(answer, 431)
    assert str(MAX_HEAD_BYTES) in answer.error["message"]
    assert await caller.rest() == b""


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS)
@pytest.mark.gen_test
async def test_an_endless_head_is_cut_off(start: bytes, piece: bytes):
    """It is sent until the other side takes no more."""
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(start)
        assert await caller.send_until_refused(piece, 100_000) < 100_000
        await front.idle()
        async with front.caller() as other:
            await check_serving(other)
    assert [exchange.status for exchange in harness.recorder.ended] == [431, 200]


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS)
@pytest.mark.gen_test
async def test_a_head_over_the_limit_is_answered_in_words(start: bytes, piece: bytes):
    """As much of it as is read before the limit is noticed."""
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        await caller.send(start + piece * (2 * MAX_HEAD_BYTES // len(piece)))
        await check_431(caller)


@pytest.mark.parametrize("size", [40_000, MAX_HEAD_BYTES - 1_000])
@pytest.mark.gen_test
async def test_a_large_head_below_the_limit_is_served(size: int):
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        for _ in range(3):
            await caller.send(models(Cookie="x" * size))
            assert (await caller.answer()).status == 200


@pytest.mark.parametrize("piece_bytes", [1_000, 16_384])
@pytest.mark.gen_test
async def test_a_large_head_in_pieces_is_served(piece_bytes: int):
    wire = models(Cookie="x" * 60_000)
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        for start in range(0, len(wire), piece_bytes):
            await caller.send(wire[start : start + piece_bytes])
            await asyncio.sleep(0)
        assert (await caller.answer()).status == 200


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────

ENDLESS_BODIES: dict[str, tuple[bytes, bytes]] = {
    "an extension": (b"5;a=", PIECE),
    "a quoted extension": (b'5;a="', PIECE),
    "a chunk's size": (b"", b"0" * 4_096),
    "a trailer": (b"0\r\nA: ", PIECE),
    "trailers": (b"0\r\n", b"A: b\r\n" * 600),
}


@pytest.mark.parametrize(("start", "piece"), ENDLESS_BODIES.values(), ids=ENDLESS_BODIES)
@pytest.mark.gen_test
async def test_what_is_no_body_may_not_be_endless(start: bytes, piece: bytes):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers=CHUNKED) + start)
        await caller.send_until_refused(piece, 40)
        answer = await caller.answer()
        assert (answer.status, set(answer.error)) == (431, {"message", "type", "param", "code"})
        await caller.send_until_refused(piece, 100_000)
        assert await caller.rest() == b""
        await front.idle()
    harness.check_settled()


@pytest.mark.parametrize(
    "length", [str(BODY_LIMIT_BYTES + 1), "1" + "0" * 15, "18446744073709551615"]
)
@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}], ids=["", "expect"])
@pytest.mark.gen_test
async def test_a_declared_length_over_the_limit_is_refused_before_the_body(
    length: str, expect: dict[str, str | None]
):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={"Content-Length": length, **expect}))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert str(BODY_LIMIT_BYTES) in answer.error["message"]
        if expect:
            assert answer.headers["connection"] == "close"
            assert await caller.rest() == b""
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_body_of_the_limit_is_served_and_one_byte_more_is_not():
    harness = ObligingHarness(body_limit_bytes=BODY_LIMIT_BYTES)
    bare = chat().partition(b"\r\n\r\n")[2]
    exact = bare + b" " * (BODY_LIMIT_BYTES - len(bare))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for body, status in ((exact, 200), (exact + b" ", 413), (exact, 200)):
            await caller.send(request("POST", PATH, body))
            assert (await caller.answer()).status == status
            await caller.send(request("POST", PATH, headers=CHUNKED) + chunked(body) + b"0\r\n\r\n")
            assert (await caller.answer()).status == status
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_probe_of_odd_size_is_answered():
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", "/livez", b"x" * 60_000))
        assert (await caller.answer()).status == 200
        await check_serving(caller)


# ── patience ────────────────────────────────────────────────────────────────────────────────────

BEGUN: dict[str, tuple[bytes, ...]] = {
    "a method": (b"G",),
    "a line": (b"GET /v1/models HTTP/1.1\r\n",),
    "all but the end": (models()[:-1],),
    "behind a request": (models(), b"GET /"),
}


@pytest.mark.parametrize("pieces", BEGUN.values(), ids=BEGUN)
@pytest.mark.gen_test
async def test_a_head_that_is_not_finished_in_time_gets_a_408(pieces: tuple[bytes, ...]):
    harness = ObligingHarness()
    patience = Patience(head_s=SHORT_S)
    async with (
        serve_proxy(harness.pipeline, patience=patience) as front,
        front.caller() as caller,
    ):
        for piece in pieces[:-1]:
            await caller.send(piece)
            assert (await caller.answer()).status == 200
        await caller.send(pieces[-1])
        check_refusal(await caller.answer(), 408)
        assert await caller.rest() == b""
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_head_that_drips_has_one_deadline():
    """A byte does not buy more time."""
    wire = models(Cookie="x" * 60_000)
    patience = Patience(head_s=SHORT_S)
    async with (
        serve_proxy(ObligingHarness().pipeline, patience=patience) as front,
        front.caller() as caller,
    ):
        sent = 0
        with contextlib.suppress(ConnectionError):
            for sent in range(len(wire)):
                await caller.send(wire[sent : sent + 1])
                await asyncio.sleep(0)
        assert sent < len(wire) - 1
        assert (await caller.rest()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.gen_test
async def test_a_caller_that_says_nothing_is_hung_up_on_without_a_word():
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline, patience=Patience(head_s=SHORT_S)) as front:
        async with front.caller() as caller:
            assert await caller.rest() == b""
        async with front.caller() as caller:
            await caller.send(b"\r\n")
            assert await caller.rest() == b""
    assert not harness.paths


@pytest.mark.gen_test
async def test_an_idle_connection_is_closed_without_a_word():
    harness = ObligingHarness()
    async with (
        serve_proxy(harness.pipeline, patience=Patience(idle_s=SHORT_S)) as front,
        front.caller() as caller,
    ):
        await check_serving(caller)
        assert await caller.rest() == b""
    assert harness.paths == [MODELS]


@pytest.mark.parametrize("framing", [{"Content-Length": "50"}, CHUNKED], ids=["length", "chunks"])
@pytest.mark.parametrize("begun", [b"", b"5\r\nhe"], ids=["nothing of it", "some of it"])
@pytest.mark.gen_test
async def test_a_body_that_does_not_come_gets_a_408(framing: dict[str, str], begun: bytes):
    harness = ObligingHarness()
    async with (
        serve_proxy(harness.pipeline, patience=Patience(body_s=SHORT_S)) as front,
        front.caller() as caller,
    ):
        await caller.send(request("POST", PATH, headers=framing) + begun)
        check_refusal(await caller.answer(), 408)
        assert await caller.rest() == b""
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_caller_that_was_told_to_go_on_and_does_not_gets_a_408():
    headers = {"Expect": "100-continue", "Content-Length": "5"}
    async with (
        serve_proxy(ObligingHarness().pipeline, patience=Patience(body_s=SHORT_S)) as front,
        front.caller() as caller,
    ):
        await caller.send(request("POST", PATH, headers=headers))
        assert (await caller.head()).status == 100
        check_refusal(await caller.answer(), 408)


@pytest.mark.gen_test
async def test_a_slow_answer_uses_up_nobody_s_patience():
    """While Azure thinks, no deadline of the caller's runs."""
    gate = asyncio.Event()

    async def slow(inbound: InboundRequest, reply: Any) -> None:
        await inbound.body.read_all(0)
        await gate.wait()
        await reply.send(200, {}, b"")

    pipeline = StubPipeline(slow)
    patience = Patience(head_s=SHORT_S, body_s=SHORT_S, idle_s=30.0, swallow_s=SHORT_S)
    async with serve_proxy(pipeline, patience=patience) as front, front.caller() as caller:
        await caller.send(chat())
        await event(pipeline.started)
        async with front.caller() as other:  # its deadline passes meanwhile
            assert await other.rest() == b""
        gate.set()
        assert (await caller.answer()).status == 200


@pytest.mark.gen_test
async def test_the_patience_with_an_unwanted_body_ends():
    harness = Harness()
    headers = {"Content-Length": "9000", "Authorization": "Bearer sk-wrong"}
    async with (
        serve_proxy(harness.pipeline, patience=Patience(swallow_s=SHORT_S)) as front,
        front.caller() as caller,
    ):
        await caller.send(request("POST", PATH, headers=headers))
        assert (await caller.answer()).status == 401
        assert await caller.rest() == b""
    await harness.audit()


# ── many connections ────────────────────────────────────────────────────────────────────────────


def server_of(front: Front) -> ProxyServer:
    assert isinstance(front.server, ProxyServer)
    return front.server


@pytest.mark.gen_test
async def test_one_connection_too_many_is_told_so_and_there_is_room_again_later():
    harness = ObligingHarness()
    most = 5
    async with serve_proxy(harness.pipeline, max_connections=most) as front:
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(front.caller()) for _ in range(most)]
            for caller in callers:
                await check_serving(caller)
            for _ in range(3):
                async with front.caller() as extra:
                    answer = await extra.answer()
                    check_refusal(answer, 503)
                    assert answer.headers["retry-after"] == "1"
                    assert await extra.rest() == b""
            for caller in callers:
                await check_serving(caller)
        await until(lambda: server_of(front).open_connections == 0)
        for _ in range(2 * most):
            async with front.caller() as caller:
                await check_serving(caller)
                caller.reset()
            await until(lambda: server_of(front).open_connections == 0)
    harness.check_settled()


@pytest.mark.gen_test
async def test_one_too_many_that_asks_first_can_read_its_refusal():
    """Its request is not read; the answer must survive that."""
    async with (
        serve_proxy(ObligingHarness().pipeline, max_connections=1) as front,
        front.caller() as first,
    ):
        await check_serving(first)
        for _ in range(20):
            async with front.caller() as extra:
                with contextlib.suppress(ConnectionError):
                    await extra.send(chat())
                check_refusal(await extra.answer(), 503)


@pytest.fixture
def many_files() -> Iterator[int]:
    """Room for a few thousand sockets, both ends of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def slow_callers(front: Front, count: int) -> AsyncIterator[list[socket.socket]]:
    """So many connections that have sent part of a head."""
    loop = asyncio.get_running_loop()
    slow: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            slow.append(sock)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", front.port))
            await loop.sock_sendall(sock, b"POST /v1/chat/completions HTTP/1.1\r\nX: ")
        yield slow
    finally:
        for sock in slow:
            sock.close()


@pytest.mark.gen_test
async def test_two_thousand_slow_callers_do_not_stop_the_service(many_files: int):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front:
        async with slow_callers(front, 2_000):
            await until(lambda: server_of(front).open_connections == 2_000)
            async with front.caller() as caller:
                await caller.send(chat(stream=True) * 20)
                for _ in range(20):
                    assert (await caller.answer()).body.endswith(DONE)
        await until(lambda: server_of(front).open_connections == 0)
    assert harness.paths == [PATH] * 20
    harness.check_settled()


@pytest.mark.gen_test
async def test_the_patience_with_many_slow_callers_ends():
    harness = ObligingHarness()
    async with (
        serve_proxy(harness.pipeline, patience=Patience(head_s=0.5)) as front,
        slow_callers(front, 200) as slow,
    ):
        loop = asyncio.get_running_loop()
        for sock in slow:
            async with asyncio.timeout(WAIT_S):
                assert (await loop.sock_recv(sock, 1_000)).startswith(b"HTTP/1.1 408 ")
        await until(lambda: server_of(front).open_connections == 0)
    assert [exchange.status for exchange in harness.recorder.ended] == [408] * 200
    harness.check_settled()


# ── departures ──────────────────────────────────────────────────────────────────────────────────

LEAVE = {"close": FrontCaller.close, "reset": FrontCaller.reset, "EOF": FrontCaller.send_eof}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.parametrize("reads", [0, 1, 200], ids=["unread", "head begun", "head read"])
@pytest.mark.gen_test
async def test_a_caller_may_leave_at_any_moment(leave: Any, reads: int):
    """After every few bytes it sent, and after some that it read."""
    wire = (
        chat(stream=True) + request("POST", PATH, headers=CHUNKED) + chunked(b"{}") + b"0\r\n\r\n"
    )
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front:
        for end in range(0, len(wire) + 1, 9):
            async with front.caller() as caller:
                await caller.send(wire[:end])
                if reads and end > len(chat(stream=True)):
                    await caller.read_exactly(reads)
                leave(caller)
        await until(lambda: server_of(front).open_connections == 0)
        await front.idle()
        async with front.caller() as caller:
            await check_serving(caller)
    harness.check_settled()
    assert not [each.status for each in harness.recorder.ended if each.status >= 500]


@pytest.mark.gen_test
async def test_callers_that_leave_at_once_are_forgotten():
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline, max_connections=3) as front:
        for _ in range(100):
            async with front.caller() as caller:
                caller.reset()
        await until(lambda: server_of(front).open_connections == 0)
        async with front.caller() as caller:
            await check_serving(caller)
    assert harness.paths == [MODELS]


@pytest.mark.gen_test
async def test_whoever_ends_its_side_before_the_answer_has_departed():
    pipeline = StubPipeline(lambda _inbound, _reply: asyncio.Event().wait())
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        caller.send_eof()
        assert await caller.rest() == b""
        await front.idle()
