"""Found by the review of the HTTP/1.1 side: bodies of probes, upgrades, patience, memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from aisix.web.body import HIGH_WATER_BYTES
from aisix.web.connection import Patience
from aisix.web.intake import READ_BYTES
from tests.data.http.smuggling import BROKEN_CHUNKS, SMUGGLED
from tests.support.front import Front, FrontCaller, StubPipeline, event, request, serve_proxy
from tests.support.handing import HANDSHAKE, Stand, check_echo
from tests.support.hygiene import (
    PATH,
    ObligingHarness,
    chat,
    check_refusal,
    check_serving,
    chunked,
    models,
)
from tests.support.messages import COMPLETE, parsed, taken

CHUNKED = {"Transfer-Encoding": "chunked"}
BODY = b"5\r\nhello\r\n0\r\n\r\n"


# ── probes ──────────────────────────────────────────────────────────────────────────────────────

PROBE_BODIES: dict[str, tuple[bytes, int]] = {
    "too large": (request("POST", "/livez", b"x" * 70_000), 413),
    "too large, in chunks": (
        request("POST", "/livez", headers=CHUNKED) + chunked(b"x" * 70_000),
        413,
    ),
    "broken": (request("GET", "/livez", headers=CHUNKED) + b"zz\r\n", 400),
    "slow": (request("GET", "/readyz", headers={"Content-Length": "5"}), 408),
}


@pytest.mark.parametrize(("wire", "status"), PROBE_BODIES.values(), ids=PROBE_BODIES)
@pytest.mark.gen_test
async def test_a_probe_with_a_bad_body_is_refused_in_words(wire: bytes, status: int):
    """It was an error in the log and a connection without an answer."""
    patience = Patience(body_s=0.01, swallow_s=0.01)
    async with (
        serve_proxy(ObligingHarness().pipeline, patience=patience) as front,
        front.caller() as caller,
    ):
        await caller.send(wire)
        answer = await caller.answer()
        assert answer.status == status
        assert set(answer.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.gen_test
async def test_a_probe_with_a_broken_body_hides_nothing(wire: bytes):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", "/livez")[:-2] + wire)
        assert (await caller.answer()).status in (400, 405)
        assert await caller.rest() == b""
    assert SMUGGLED not in harness.paths


# ── upgrades ────────────────────────────────────────────────────────────────────────────────────

H2C = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


def test_a_coding_with_a_tab_behind_it_is_no_exception_beside_an_upgrade():
    """llhttp refuses it, and did so when the head was replayed to it, out of `feed`."""
    wire = b"POST / HTTP/1.1\r\nHost: x\r\n" + H2C + b"Transfer-Encoding: chunked\t\r\n\r\n" + BODY
    (seen,) = taken(parsed(wire))
    assert (seen.body, seen.end) == (b"hello", COMPLETE) or seen.end.startswith("400 ")


@pytest.mark.gen_test
async def test_a_websocket_that_is_not_served_is_the_last_request_and_is_told_so():
    """What came behind it was dropped in silence, on a connection that was said to go on."""
    harness = ObligingHarness()
    wish = models(Connection="Upgrade", Upgrade="websocket")
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(wish + models())
        answer = await caller.answer()
        if answer.headers.get("connection") == "close":
            assert await caller.rest() == b""
        else:
            assert (await caller.answer()).status == 200


@pytest.mark.gen_test
async def test_a_websocket_is_opened_behind_requests_that_wait():
    """The read that watched the first caller was still pending: Tornado took no second one."""
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/whole") * 3 + request("GET", "/echo", headers=HANDSHAKE))
        assert [(await caller.answer()).body for _ in range(3)] == [b"whole"] * 3
        await check_echo(caller)
        caller.reset()
        await event(stand.events.closed)


@pytest.mark.gen_test
async def test_a_websocket_is_opened_behind_a_stream_that_runs():
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/streamed"))
        await event(stand.events.begun)
        await caller.send(request("GET", "/echo", headers=HANDSHAKE))
        for _ in range(20):
            await asyncio.sleep(0)
        stand.events.go_on.set()
        assert (await caller.answer()).body == b"onetwothree"
        await check_echo(caller)
        caller.reset()
        await event(stand.events.closed)


@pytest.mark.gen_test
async def test_a_caller_that_wanted_a_websocket_can_depart_while_it_waits():
    pipeline = StubPipeline(lambda _inbound, _reply: asyncio.Event().wait())
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(models(Connection="Upgrade", Upgrade="websocket"))
        await event(pipeline.started)
        caller.reset()
        await front.idle()


# ── fields ──────────────────────────────────────────────────────────────────────────────────────


def test_a_host_may_have_space_behind_it():
    """RFC 9110 §5.5 again: it was refused as not valid."""
    for space in (b" ", b"\t", b" \t "):
        (seen,) = taken(parsed(b"GET / HTTP/1.1\r\nHost: x" + space + b"\r\n\r\n"))
        assert seen.refusal == ""


def test_a_value_has_no_space_behind_it():
    """RFC 9110 §5.5: whitespace around a value is no part of it. llhttp leaves what is behind."""
    (seen,) = taken(parsed(b"GET / HTTP/1.1\r\nHost: x\r\nA: \t b \t \r\nA: c \r\n\r\n"))
    assert dict(seen.headers)["a"].replace(" ", "").replace("\t", "") == "b,c"
    assert dict(seen.headers)["a"].endswith("c")


@pytest.mark.parametrize("space", [" ", "\t", "  \t "])
@pytest.mark.gen_test
async def test_a_credential_with_space_behind_it_is_good(space: str):
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        await caller.send(models().replace(b"\r\n\r\n", space.encode() + b"\r\n\r\n"))
        assert (await caller.answer()).status == 200
        await caller.send(chat(headers={"Content-Type": "application/json" + space}))
        assert (await caller.answer()).status == 200


# ── a body that breaks while it is read ─────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_body_that_breaks_late_ends_the_connection_and_is_told_so():
    """The answer did not say `close`, and the connection stayed until the patience for unwanted
    bodies ended; a request that the caller sent on it was dropped."""
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers=CHUNKED))
        await front.busy()
        await caller.send(b"zz\r\n")
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.gen_test
async def test_the_body_of_a_request_sent_ahead_waits_in_the_caller_s_socket(framing: str):
    """Only the body of the current request stopped the reading: any amount was held behind it."""
    gate = asyncio.Event()

    async def held(inbound: InboundRequest, reply: Any) -> None:
        if inbound.method == "GET":
            await gate.wait()
        await reply.send(200, {}, b"%d" % len(await inbound.body.read_all(0)))

    pipeline = StubPipeline(held)
    piece = b"x" * 500_000
    count = 100
    framed = {"Content-Length": str(len(piece) * count)} if framing == "length" else CHUNKED
    async with serve_proxy(pipeline, body_limit_bytes=0) as front, front.caller() as caller:
        await caller.send(models() + request("POST", PATH, headers=framed))
        await event(pipeline.started)
        sending = asyncio.ensure_future(send_all(caller, piece, count, framing))
        await until_steady(front)
        (connection,) = front.state.inflight
        held_bytes = sum(
            message.body._held_bytes
            for message in connection._parser.messages  # type: ignore[attr-defined]
        )
        assert held_bytes <= HIGH_WATER_BYTES + READ_BYTES
        assert not sending.done()
        gate.set()
        assert (await caller.answer()).status == 200
        await sending
        assert (await caller.answer()).json() == len(piece) * count
        await check_serving(caller)


async def send_all(caller: FrontCaller, piece: bytes, count: int, framing: str) -> None:
    for _ in range(count):
        await caller.send(piece if framing == "length" else chunked(piece))
    if framing == "chunks":
        await caller.send(b"0\r\n\r\n")


async def until_steady(front: Front) -> None:
    """Wait until what is held behind the current request has stopped growing."""
    (connection,) = front.state.inflight

    def held() -> int:
        messages = connection._parser.messages  # type: ignore[attr-defined]
        return sum(message.body._held_bytes for message in messages)

    still, last = 0, held()
    while still < 500:
        await asyncio.sleep(0)
        still = still + 1 if held() == last else 0
        last = held()
