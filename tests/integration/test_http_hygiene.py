"""HTTP/1.1 on a real socket: order, persistence, bodies, malformed heads, smuggling, upgrades."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pycurl
import pytest

from aisix.core.request import InboundRequest
from aisix.web.codec import MAX_WAITING
from tests.data.http.malformed import ACCEPTED, REFUSED
from tests.data.http.smuggling import (
    AMBIGUOUS_HEADS,
    BROKEN_CHUNKS,
    OLD_CHUNKED,
    SMUGGLED,
    SOUND_CHUNKS,
)
from tests.support.front import (
    FrontAnswer,
    FrontCaller,
    StubPipeline,
    event,
    request,
    serve_proxy,
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
from tests.support.messages import cut_up
from tests.support.pipeline import CALLER_TOKEN
from tests.support.rows import DONE

AUTHORIZED = f"Authorization: Bearer {CALLER_TOKEN}\r\n".encode()
CHUNKED = {"Transfer-Encoding": "chunked"}
LAST_CHUNK = b"0\r\n\r\n"


async def echo(inbound: InboundRequest, reply: Any) -> None:
    """Answer with the body that came."""
    if inbound.refusal is not None:
        await reply.send(inbound.refusal.status, {}, b"")
        return
    await reply.send(200, {}, await inbound.body.read_all(0))


def authorized(wire: bytes) -> bytes:
    """`wire` with a good credential in its first head."""
    line, _, rest = wire.partition(b"\r\n")
    return line + b"\r\n" + AUTHORIZED + rest


# ── pipelining ──────────────────────────────────────────────────────────────────────────────────


def kinds(name: str) -> list[tuple[bytes, int]]:
    """A request of every kind, named so, and its status."""
    ids: dict[str, str | None] = {"x-request-id": name}
    framed = {**ids, **CHUNKED}
    return [
        (request("GET", MODELS, headers=ids), 200),
        (chat(headers=ids), 200),
        (chat(stream=True, headers=ids), 200),
        (request("HEAD", MODELS, headers=ids), 405),
        (request("GET", "/nowhere", headers=ids), 404),
        (request("GET", "/livez", headers=ids), 200),
        (request("POST", PATH, headers=framed) + chunked(b"not json") + LAST_CHUNK, 400),
        (request("POST", PATH, b"{}", headers={**ids, "Authorization": None}), 401),
        (request("HEAD", "/livez", headers=ids), 200),
        (request("POST", MODELS, b"x" * 2_000, headers=ids), 405),
    ]


def pipelined(count: int) -> list[tuple[str, bytes, int]]:
    """So many requests of all kinds: name, bytes, status."""
    found = []
    for place in range(count):
        name = f"number-{place}"
        wire, status = kinds(name)[place % len(kinds(name))]
        found.append((name, wire, status))
    return found


async def check_answers(caller: FrontCaller, requests: list[tuple[str, bytes, int]]) -> None:
    """Each answer is that of its own request, in order."""
    for name, wire, status in requests:
        answer = await caller.answer(bodiless=wire.startswith(b"HEAD "))
        probe = b" /livez " in wire
        assert answer.status == status
        assert answer.headers["x-request-id"] == name or probe
        if b'"stream"' in wire:
            assert answer.body.endswith(DONE)


@pytest.mark.parametrize("piece_bytes", [0, 61], ids=["at once", "in pieces"])
@pytest.mark.parametrize("count", [2, 10, 16, 17, 33, 60])
@pytest.mark.gen_test
async def test_requests_sent_ahead_are_answered_in_their_order(count: int, piece_bytes: int):
    harness = ObligingHarness()
    requests = pipelined(count)
    wire = b"".join(wire for _, wire, _ in requests)
    cuts = range(0, len(wire), piece_bytes) if piece_bytes else ()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for piece in cut_up(wire, cuts):
            await caller.send(piece)
            await asyncio.sleep(0)
        await check_answers(caller, requests)
        await check_serving(caller)
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_caller_that_is_ever_some_requests_ahead_is_served_for_ever():
    harness = ObligingHarness()
    requests = pipelined(300)
    ahead = 30
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(b"".join(wire for _, wire, _ in requests[:ahead]))
        for start in range(0, len(requests), ahead):
            following = requests[start + ahead : start + 2 * ahead]
            await caller.send(b"".join(wire for _, wire, _ in following))
            await check_answers(caller, requests[start : start + ahead])
    harness.check_settled()


@pytest.mark.gen_test
async def test_a_caller_that_is_too_far_ahead_is_answered_and_then_refused():
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(models() * (3 * MAX_WAITING))
        answered = 0
        while (answer := await caller.answer()).status == 200:
            answered += 1
        check_refusal(answer, 400)
        assert MAX_WAITING <= answered < 3 * MAX_WAITING
        assert await caller.rest() == b""
        await front.idle()
    harness.check_settled()


@pytest.mark.gen_test
async def test_one_exchange_at_a_time():
    """The second request is not begun before the first has its answer."""
    gates = [asyncio.Event(), asyncio.Event()]
    running: list[int] = []

    async def held(inbound: InboundRequest, reply: Any) -> None:
        place = len(pipeline.requests) - 1
        running.append(place)
        await gates[place].wait()
        running.remove(place)
        await reply.send(200, {}, str(place).encode())

    pipeline = StubPipeline(held)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(models() * 2)
        for place, gate in enumerate(gates):
            await front.busy()
            assert running == [place]
            gate.set()
            assert (await caller.answer()).body == str(place).encode()


@pytest.mark.gen_test
async def test_requests_behind_one_that_departs_are_not_begun():
    started = asyncio.Event()

    async def never(_inbound: InboundRequest, _reply: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    pipeline = StubPipeline(never)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(models() * 3)
        await event(started)
        caller.reset()
        await front.idle()
        await event(pipeline.ended)
    assert len(pipeline.requests) == 1


# ── persistence ─────────────────────────────────────────────────────────────────────────────────

PERSISTENCE: list[tuple[str, str | None, bool, str | None]] = [
    ("1.1", None, True, None),
    ("1.1", "keep-alive", True, None),
    ("1.1", "close", False, "close"),
    ("1.1", "Close", False, "close"),
    ("1.1", "x, CLOSE", False, "close"),
    ("1.1", "keep-alive, close", False, "close"),
    ("1.1", "closed", True, None),
    ("1.0", None, False, "close"),
    ("1.0", "close", False, "close"),
    ("1.0", "keep-alive", True, "keep-alive"),
    ("1.0", "Keep-Alive, x", True, "keep-alive"),
]


@pytest.mark.parametrize(("version", "wish", "kept", "said"), PERSISTENCE, ids=str)
@pytest.mark.parametrize("target", [MODELS, "/nowhere", "/livez"])
@pytest.mark.gen_test
async def test_a_connection_ends_when_it_should_and_says_so(
    target: str, version: str, wish: str | None, kept: bool, said: str | None
):
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", target, headers={"Connection": wish}, version=version))
        answer = await caller.answer()
        told = answer.headers.get("connection")
        assert (told.lower() if told else None) == said
        if kept:
            await check_serving(caller)
        else:
            assert await caller.rest() == b""


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.gen_test
async def test_nothing_is_served_behind_the_last_request(version: str):
    harness = ObligingHarness()
    last = request("GET", MODELS, headers={"Connection": "close"}, version=version)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(last + models())
        assert (await caller.answer()).status == 200
        assert await caller.rest() == b""
    assert harness.paths == [MODELS]


@pytest.mark.gen_test
async def test_a_stream_to_an_old_caller_is_its_last_answer():
    """HTTP/1.0 has no chunks, so the connection's end is the stream's; what waits is not begun."""
    harness = ObligingHarness()
    wire = chat(stream=True, version="1.0", headers={"Connection": "keep-alive"})
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(wire + models())
        answer = await caller.answer()
        assert answer.body.endswith(DONE)
        assert "transfer-encoding" not in answer.headers
    assert harness.paths == [PATH]


@pytest.mark.gen_test
async def test_an_old_caller_without_a_length_has_no_body():
    pipeline = StubPipeline(echo)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, version="1.0") + b"behind")
        assert (await caller.answer()).body == b""
        assert await caller.rest() == b""
    assert len(pipeline.requests) == 1


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunks", SOUND_CHUNKS.values(), ids=SOUND_CHUNKS)
@pytest.mark.gen_test
async def test_a_chunked_body_is_one_body(chunks: bytes):
    wire = request("POST", PATH, headers=CHUNKED) + chunks
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        await caller.send(wire * 3)
        for _ in range(3):
            assert (await caller.answer()).body == b"hello"
        for piece in cut_up(wire, range(len(wire))):
            await caller.send(piece)
            await asyncio.sleep(0)
        assert (await caller.answer()).body == b"hello"


@pytest.mark.gen_test
async def test_every_cut_of_a_chunked_body_is_the_same_body():
    head = request("POST", PATH, headers=CHUNKED)
    wire = head + SOUND_CHUNKS["an extension in quotes"]
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        for cut in range(len(head) - 4, len(wire)):
            await caller.send(wire[:cut])
            await front.busy() if cut >= len(head) else await asyncio.sleep(0)
            await caller.send(wire[cut:])
            assert (await caller.answer()).body == b"hello"


# ── Expect ──────────────────────────────────────────────────────────────────────────────────────

EXPECT = {"Expect": "100-continue"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FRAMED = {"length": {"Content-Length": "9"}, "chunks": CHUNKED}


async def said(front: Any, caller: FrontCaller) -> bytes:
    """What the caller is told by the end of a connection that it leaves once nothing runs."""
    await front.idle()
    caller.send_eof()
    return await caller.rest()


@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("word", ["100-continue", "100-Continue", "100-CONTINUE"])
@pytest.mark.gen_test
async def test_whoever_waits_is_told_once_to_go_on(word: str, framing: str):
    head = request("POST", PATH, headers={"Expect": word, **FRAMED[framing]})
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        for _ in range(2):
            await caller.send(head)
            assert await caller.read_exactly(len(CONTINUE)) == CONTINUE
            for piece in (b"one", b"two", b"six"):
                await caller.send(piece if framing == "length" else chunked(piece))
                await asyncio.sleep(0)
            if framing == "chunks":
                await caller.send(LAST_CHUNK)
            assert (await caller.answer()).body == b"onetwosix"
        assert await said(front, caller) == b""


@pytest.mark.gen_test
async def test_whoever_did_not_wait_is_told_nothing():
    """The body has come: 100 would be noise, and the connection goes on."""
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, b"hello", headers=EXPECT) * 2)
        for _ in range(2):
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"hello")
            assert "connection" not in answer.headers
        assert await said(front, caller) == b""


@pytest.mark.parametrize(
    ("headers", "version"),
    [(EXPECT, "1.0"), ({"Expect": "200-ok"}, "1.1"), ({"Expect": "100-continue-please"}, "1.1")],
    ids=["HTTP/1.0", "another expectation", "nearly"],
)
@pytest.mark.gen_test
async def test_whoever_may_not_wait_is_told_nothing(headers: dict[str, str], version: str):
    pipeline = StubPipeline(echo)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        fields = {**headers, "Content-Length": "5"}
        await caller.send(request("POST", PATH, headers=fields, version=version))
        await event(pipeline.started)
        await caller.send(b"hello")
        assert (await caller.answer()).body == b"hello"


@pytest.mark.gen_test
async def test_an_expectation_without_a_body_changes_nothing():
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(models(Expect="100-continue"))
        assert (await caller.answer()).status == 200
        await check_serving(caller)


@pytest.mark.gen_test
async def test_each_of_two_callers_in_a_row_is_told_in_its_turn():
    """The second head was sent ahead; its 100 comes after the first answer."""
    head = request("POST", PATH, headers={**EXPECT, "Content-Length": "5"})
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        await caller.send(models() + head)
        assert (await caller.answer()).body == b""
        assert await caller.read_exactly(len(CONTINUE)) == CONTINUE
        await caller.send(b"hello")
        assert (await caller.answer()).body == b"hello"


# ── heads ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED)
@pytest.mark.gen_test
async def test_what_is_not_http_1_1_gets_a_400_and_the_end(wire: bytes):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front:
        async with front.caller() as caller:
            await caller.send(wire + models())
            check_refusal(await caller.answer(), 400)
            assert await caller.rest() == b""
        assert [exchange.status for exchange in harness.recorder.ended] == [400]
        async with front.caller() as caller:
            await check_serving(caller)
    harness.check_settled()


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED)
@pytest.mark.gen_test
async def test_requests_before_a_malformed_one_are_answered(wire: bytes):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True) + models() + wire)
        assert [(await caller.answer()).status for _ in range(2)] == [200, 200]
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
    harness.check_settled()


@pytest.mark.parametrize(("wire", "status"), ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.gen_test
async def test_what_is_odd_and_in_order_is_answered(wire: bytes, status: int):
    harness = ObligingHarness()
    lines = wire.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + AUTHORIZED)
    lines = lines.replace(b"HTTP/1.0\r\n", b"HTTP/1.0\r\n" + AUTHORIZED)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(lines)
        answer = await caller.answer()
        assert answer.status == status
        if answer.headers.get("connection") != "close":
            await check_serving(caller)
    harness.check_settled()


@pytest.mark.parametrize(
    "rest", [b"\r\n", b"A: b\r\n\r\n", b"A\r\n"], ids=["bare", "field", "word"]
)
@pytest.mark.gen_test
async def test_http_0_9_is_not_served(rest: bytes):
    """Its request is one line; the answer comes when the line behind it is none of a head."""
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(b"GET /v1/models\r\n" + rest)
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
    assert MODELS not in harness.paths


@pytest.mark.parametrize("body", [b"", b"\x16\x03\x01"], ids=["bare", "with bytes behind"])
@pytest.mark.gen_test
async def test_no_tunnel_is_opened(body: bytes):
    harness = ObligingHarness()
    wire = authorized(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(wire + body + models())
        answer = await caller.answer()
        assert answer.status in (400, 404, 405)
        assert answer.headers["connection"] == "close"
        assert await caller.rest() == b""
    assert len(harness.paths) == 1


# ── smuggling ───────────────────────────────────────────────────────────────────────────────────


HIDDEN = f"GET {SMUGGLED} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
HIDING: dict[str, tuple[dict[str, str], bytes]] = {
    "length": ({"Content-Length": str(len(HIDDEN))}, HIDDEN),
    "chunks": (CHUNKED, chunked(HIDDEN) + LAST_CHUNK),
}
UNREAD: dict[str, tuple[str, str, dict[str, str], int]] = {
    "a list": ("GET", MODELS, {}, 200),
    "no such route": ("POST", "/nowhere", {}, 404),
    "a probe": ("GET", "/livez", {}, 200),
    "no such method": ("DELETE", PATH, {}, 405),
    "a wrong key": ("POST", PATH, {"Authorization": "Bearer sk-wrong"}, 401),
}
"""Requests whose answer does not depend on a body: method, target, fields, status."""


def check_no_smuggling(harness: ObligingHarness) -> None:
    """One exchange was seen, and it was not the hidden one."""
    assert len(harness.paths) == 1
    assert SMUGGLED not in harness.paths
    harness.check_settled()


@pytest.mark.parametrize("wire", AMBIGUOUS_HEADS.values(), ids=AMBIGUOUS_HEADS)
@pytest.mark.parametrize("line", [f"POST {PATH}", f"GET {MODELS}", "POST /livez"])
@pytest.mark.gen_test
async def test_a_head_of_two_readings_is_refused_and_hides_nothing(line: str, wire: bytes):
    harness = ObligingHarness()
    head = f"{line} HTTP/1.1\r\nHost: x\r\n".encode() + AUTHORIZED
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(head + wire)
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
        await front.idle()
    check_no_smuggling(harness)


@pytest.mark.gen_test
async def test_chunks_of_an_old_caller_are_refused_and_hide_nothing():
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(b"POST %b HTTP/1.0\r\n" % PATH.encode() + AUTHORIZED + OLD_CHUNKED)
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
    check_no_smuggling(harness)


@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.gen_test
async def test_a_broken_body_is_refused_and_hides_nothing(wire: bytes):
    harness = ObligingHarness()
    head = request("POST", PATH)[:-2]
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(head + wire)
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
        await front.idle()
    check_no_smuggling(harness)


@pytest.mark.parametrize("late", [False, True], ids=["with the head", "after the answer"])
@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.gen_test
async def test_a_broken_body_that_nobody_reads_ends_the_connection(wire: bytes, late: bool):
    harness = ObligingHarness()
    head, _, body = (request("GET", MODELS)[:-2] + wire).partition(b"\r\n\r\n")
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        answer: FrontAnswer | None = None
        await caller.send(head + b"\r\n\r\n")
        if late:
            answer = await caller.answer()
        await caller.send(body)
        answer = answer or await caller.answer()
        assert answer.status in (200, 400)
        assert await caller.rest() == b""
        await front.idle()
    check_no_smuggling(harness)


@pytest.mark.parametrize("wire", AMBIGUOUS_HEADS.values(), ids=AMBIGUOUS_HEADS)
@pytest.mark.gen_test
async def test_an_ambiguous_head_behind_a_stream_hides_nothing(wire: bytes):
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True) + request("POST", PATH)[:-2] + wire)
        assert (await caller.answer()).body.endswith(DONE)
        check_refusal(await caller.answer(), 400)
        assert await caller.rest() == b""
        await front.idle()
    assert len(harness.paths) == 2
    assert SMUGGLED not in harness.paths


@pytest.mark.parametrize("late", [False, True], ids=["with the head", "after the answer"])
@pytest.mark.parametrize("framing", HIDING)
@pytest.mark.parametrize("why", UNREAD)
@pytest.mark.gen_test
async def test_a_sound_body_that_nobody_reads_hides_nothing(why: str, framing: str, late: bool):
    """CL.0 and TE.0: a server that forgets the body takes it for the next request. Three times,
    because a head that its connection repeats is not parsed again."""
    method, target, fields, status = UNREAD[why]
    framed, body = HIDING[framing]
    head = request(method, target, headers={**framed, **fields})
    probe = target == "/livez"
    seen = [] if probe else [target]
    harness = ObligingHarness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for count in range(1, 4):
            answer: FrontAnswer | None = None
            await caller.send(head if late else head + body)
            if late and probe:
                await front.busy()  # a probe has its answer when the body is whole
            elif late:
                answer = await caller.answer()
            if late:
                await caller.send(body)
            answer = answer or await caller.answer()
            assert answer.status == status
            assert "connection" not in answer.headers
            await front.idle()
            assert harness.paths == seen * count
        await check_serving(caller)
        assert await said(front, caller) == b""
        async with front.caller() as another:
            await check_serving(another)
    assert harness.paths == [*seen * 3, MODELS, MODELS]
    harness.check_settled()


# ── what only Tornado minds ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", [",", "a,b", "a:1,b"])
@pytest.mark.gen_test
async def test_a_probe_whose_host_tornado_cannot_read_is_refused_in_words(host: str):
    """A comma is legal in a host's name; Tornado takes it for two of them."""
    async with serve_proxy(ObligingHarness().pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", "/livez", headers={"Host": host}))
        answer = await caller.answer()
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert answer.error["message"].startswith("the request is malformed: ")
        await caller.send(request("GET", "/livez"))
        assert (await caller.answer()).status == 200
        await check_serving(caller)


# ── upgrades ────────────────────────────────────────────────────────────────────────────────────

UPGRADES: dict[str, dict[str, str | None]] = {
    "curl": {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA",
    },
    "Java": {
        "Connection": "Upgrade, HTTP2-Settings",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        "Upgrade": "h2c",
    },
    "TLS": {"Connection": "upgrade", "Upgrade": "TLS/1.2"},
    "several": {"Connection": "Upgrade", "Upgrade": "h2c, websocket, foo/1"},
    "nothing": {"Connection": "Upgrade", "Upgrade": ""},
    "a websocket, by POST": {"Connection": "Upgrade", "Upgrade": "websocket"},
}


@pytest.mark.parametrize("wish", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.gen_test
async def test_an_upgrade_we_do_not_know_is_a_request_like_any_other(
    wish: dict[str, str | None],
):
    """With every body, and others behind it."""
    document = json.loads(chat().partition(b"\r\n\r\n")[2])
    body = json.dumps(document).encode()
    harness = ObligingHarness()
    wires = [
        chat(headers=wish),
        chat(stream=True, headers=wish),
        request("POST", PATH, headers={**wish, **CHUNKED}) + chunked(body) + LAST_CHUNK,
        models(),
        request("GET", MODELS, headers=wish),
        request("POST", "/nowhere", body, headers=wish),
        models(),
    ]
    if wish["Upgrade"] == "websocket":
        wires = [wire for wire in wires if not wire.startswith(b"GET") or b"Upgrade" not in wire]
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(b"".join(wires))
        statuses = [(await caller.answer()).status for _ in wires]
        assert statuses == [404 if b"/nowhere" in wire else 200 for wire in wires]
        for wire in wires:
            for piece in cut_up(wire, range(0, len(wire), 13)):
                await caller.send(piece)
                await asyncio.sleep(0)
            await caller.answer()
    assert len(harness.paths) == 2 * len(wires)
    harness.check_settled()


@pytest.mark.parametrize("wish", [UPGRADES["curl"], UPGRADES["Java"]], ids=["curl", "Java"])
@pytest.mark.gen_test
async def test_an_upgrade_we_do_not_know_may_wait_to_be_told_to_go_on(
    wish: dict[str, str | None],
):
    headers = {**wish, **EXPECT, "Content-Length": "5"}
    async with serve_proxy(StubPipeline(echo)) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers=headers))
        assert await caller.read_exactly(len(CONTINUE)) == CONTINUE
        await caller.send(b"hello")
        assert (await caller.answer()).body == b"hello"
        await caller.send(request("POST", PATH, b"again"))
        assert (await caller.answer()).body == b"again"


@pytest.mark.gen_test
async def test_a_caller_that_asked_for_h2c_can_depart_while_it_waits():
    pipeline = StubPipeline(lambda _inbound, _reply: asyncio.Event().wait())
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(chat(headers=UPGRADES["curl"]))
        await event(pipeline.started)
        caller.send_eof()
        await front.idle()
        assert pipeline.cancelled.is_set()


@pytest.mark.gen_test
async def test_curl_asks_for_http_2_and_is_served_over_http_1_1():
    """The real client, with a body large enough for it to wait for 100."""
    document = json.loads(chat().partition(b"\r\n\r\n")[2])
    large = json.dumps({**document, "user": "x" * 2_000_000}).encode()
    harness = ObligingHarness(body_limit_bytes=0)

    def ask(port: int, body: bytes, connection: pycurl.Curl) -> tuple[int, int]:
        answer = io.BytesIO()
        connection.setopt(pycurl.URL, f"http://127.0.0.1:{port}{PATH}")
        connection.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_0)
        fields = [f"Authorization: Bearer {CALLER_TOKEN}", "Content-Type: application/json"]
        connection.setopt(pycurl.HTTPHEADER, fields)
        connection.setopt(pycurl.POSTFIELDS, body)
        connection.setopt(pycurl.WRITEDATA, answer)
        connection.setopt(pycurl.PROXY, "")
        connection.setopt(pycurl.TIMEOUT, 10)
        connection.perform()
        assert b"choices" in answer.getvalue(), answer.getvalue()[:300]
        return (
            connection.getinfo(pycurl.RESPONSE_CODE),
            connection.getinfo(pycurl.INFO_HTTP_VERSION),
        )

    connection = pycurl.Curl()
    async with serve_proxy(harness.pipeline, body_limit_bytes=0) as front:
        for body in (json.dumps(document).encode(), large):
            found = await asyncio.to_thread(ask, front.port, body, connection)
            assert found == (200, pycurl.CURL_HTTP_VERSION_1_1)
    connection.close()
    harness.check_settled()
