"""Realtime sessions through the proxy: what passes, who is let in, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aisix.core.resources import LimitPolicy
from aisix.core.websocket import KEY_PROTOCOL, accept_of
from aisix.errors import UpstreamBroken
from aisix.relay.session import SessionPatience
from aisix.simulator.server import Simulator
from aisix.transport.body import HIGH_WATER_BYTES
from tests.support.azure import azure
from tests.support.frames import BINARY, CLOSE, PING, TEXT, Frame, close, text
from tests.support.front import request, until
from tests.support.pipeline import CALLER_TOKEN, ENTRA
from tests.support.raw_server import RawConnection, raw_server
from tests.support.sessions import (
    ALIAS,
    DEPLOYMENT,
    HANDSHAKE,
    NONCE,
    SessionCaller,
    SessionProxy,
    masked,
    session_proxy,
)

SHORT = SessionPatience(closing_s=0.05, flush_s=0.05)
MIB = 1024 * 1024
CREATED = {"type": "session.created", "session": {"id": "s", "model": "gpt-realtime-2025"}}
RESPONSE = {"type": "response.create"}
USAGE = {
    "total_tokens": 30,
    "input_tokens": 20,
    "output_tokens": 10,
    "input_token_details": {"cached_tokens": 5},
}


def agreement(*, nonce: str = NONCE, extra: str = "", status: str = "101 Switching") -> bytes:
    """An upstream's answer to a handshake."""
    return (
        f"HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_of(nonce)}\r\n{extra}\r\n"
    ).encode()


@asynccontextmanager
async def talk(**script: str) -> AsyncIterator[tuple[Simulator, SessionProxy, SessionCaller]]:
    """A simulator, a proxy before it, and a caller."""
    async with (
        azure(**script) as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        yield simulator, proxy, caller


async def steady(figure) -> None:
    """Wait until `figure()` has stood still for a quarter of a second."""
    before, still = figure(), 0
    while still < 25:
        await asyncio.sleep(0.01)
        still = still + 1 if figure() == before and before else 0
        before = figure()


async def greeted(caller: SessionCaller, *args: bytes, **headers: str | None) -> None:
    await caller.open(f"/v1/realtime?model={ALIAS}", *args, **headers)
    await caller.event("session.created")


# ── what passes ──


@pytest.mark.parametrize("api_version", ["2024-10-01-preview", "2025-04-01-preview", "v1"])
@pytest.mark.parametrize(
    "target",
    [
        f"/v1/realtime?model={ALIAS}",
        f"/openai/v1/realtime?model={ALIAS}&intent=transcription",
        f"/openai/realtime?api-version=2024-10-01-preview&deployment={ALIAS}&model=other",
        f"//openai//realtime/?deployment={ALIAS}&api-version=whatever",
    ],
)
@pytest.mark.gen_test
async def test_a_session_talks_in_both_directions(target: str, api_version: str):
    async with (
        azure() as simulator,
        session_proxy(simulator.url, api_version=api_version) as proxy,
        proxy.caller() as caller,
    ):
        head = await caller.open(target)
        assert head.headers["x-aisix-call-id"] == head.headers["x-request-id"]
        assert "apim-request-id" in head.headers
        assert "x-ratelimit-limit-requests" in head.headers
        created = await caller.event("session.created")
        assert created["session"]["model"] == ALIAS
        await caller.say({"type": "session.update", "session": {"model": ALIAS, "voice": "ash"}})
        updated = await caller.event("session.updated")
        assert (updated["session"]["model"], updated["session"]["voice"]) == (ALIAS, "ash")
        await caller.say(RESPONSE)
        done = await caller.event("response.done")
        assert await caller.hang_up() == 1000
        exchange = await proxy.settled()
    record = simulator.azure_requests[0]
    named = {"api-version": api_version, "deployment": DEPLOYMENT}
    if api_version == "v1":
        named = {"model": DEPLOYMENT}
    if "intent" in target:
        named["intent"] = "transcription"
    assert record.query == named
    assert record.path == ("/openai/v1/realtime" if api_version == "v1" else "/openai/realtime")
    assert json.loads(record.body.splitlines()[0])["session"]["model"] == DEPLOYMENT
    assert record.close_code == 1000
    assert exchange.usage is not None
    assert exchange.usage.total_tokens == done["response"]["usage"]["total_tokens"]
    assert not exchange.usage.estimated
    assert (exchange.status, exchange.outcome, exchange.error) == (101, "success", None)
    assert (exchange.closed_by, exchange.close_code) == ("caller", 1000)
    assert exchange.served_model == "gpt-4o-realtime-preview-2024-12-17"
    assert exchange.timings.first_token > exchange.timings.first_out > exchange.timings.arrived


@pytest.mark.gen_test
async def test_frames_pass_as_they_are():
    """Fragments, pings within them, binary messages, masks and codes: byte for byte."""
    down = b"".join(
        (
            Frame(TEXT, b'{"type":', final=False).encode(),
            Frame(PING, b"are you there").encode(),
            Frame(0, b'"error"}').encode(),
            Frame(BINARY, os.urandom(70_000)).encode(),
            close(4321, "because"),
        )
    )
    up = masked(TEXT, b"a" * 126, final=False) + masked(PING, b"x" * 125) + masked(0, b"")
    got: list[bytes] = []

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(agreement())
        got.append(await connection.receive(len(up)))
        await connection.send(down)
        got.append(await connection.receive(len(close(4321, masked=True))))

    async with (
        raw_server(serve) as server,
        session_proxy(server.url("").rstrip("/")) as proxy,
        proxy.caller() as caller,
    ):
        await caller.open()
        await caller.raw.send(up)
        assert await caller.raw.read_exactly(len(down)) == down
        await caller.send_close(4321)
        assert await caller.raw.rest() == b""
        exchange = await proxy.settled()
    assert got == [up, close(4321, masked=True)]
    assert (exchange.closed_by, exchange.close_code) == ("upstream", 4321)
    assert (exchange.status, exchange.outcome) == (101, "success")


@pytest.mark.gen_test
async def test_what_is_sent_behind_the_handshake_is_not_lost():
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller, text(json.dumps(RESPONSE), masked=True), masked(PING, b"early"))
        await caller.event("response.done")
        assert await caller.pong() == b"early"
        await caller.hang_up()
        await proxy.settled()


@pytest.mark.gen_test
async def test_a_message_of_a_megabyte_crosses_in_one_frame():
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        audio = {"type": "input_audio_buffer.append", "audio": "A" * MIB}
        await caller.say(audio, audio, {"type": "input_audio_buffer.commit"})
        await caller.event("input_audio_buffer.committed")
        await caller.hang_up()
        await proxy.settled()
    assert simulator.azure_requests[0].body_bytes > 2 * MIB


@pytest.mark.gen_test
async def test_usage_is_the_sum_of_all_responses():
    async with talk(script="n4-cached3") as (_, proxy, caller):
        await greeted(caller)
        seen = []
        for _ in range(3):
            await caller.say(RESPONSE)
            seen.append((await caller.event("response.done"))["response"]["usage"])
        await caller.hang_up()
        usage = (await proxy.settled()).usage
    assert usage is not None
    assert usage.prompt_tokens == sum(each["input_tokens"] for each in seen)
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert usage.cached_tokens == 9


@pytest.mark.gen_test
async def test_a_response_that_was_cut_off_is_estimated_by_its_text():
    async with (
        azure(script="stall5-size40") as simulator,
        session_proxy(simulator.url) as proxy,
    ):
        async with proxy.caller() as caller:
            await greeted(caller)
            await caller.say(RESPONSE)
            await simulator.wait_for(lambda record: record.phase == "stalled")
            await caller.event("response.audio_transcript.delta")
            await caller.event("response.audio_transcript.delta")
        exchange = await proxy.settled()
    assert exchange.usage is not None
    assert exchange.usage.estimated
    assert exchange.usage.completion_tokens == 20
    assert (exchange.outcome, exchange.closed_by) == ("client_cancelled", "caller")


# ── who is let in ──


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (f"/v1/realtime?model={ALIAS}", {"Authorization": f"Bearer {CALLER_TOKEN}"}),
        (f"/openai/realtime?deployment={ALIAS}", {"api_key": CALLER_TOKEN}),
        (f"/v1/realtime?model={ALIAS}", {"x_api_key": CALLER_TOKEN}),
        (f"/v1/realtime?model={ALIAS}&api-key={CALLER_TOKEN}", {}),
    ],
    ids=["bearer", "api-key", "x-api-key", "query"],
)
@pytest.mark.gen_test
async def test_a_key_opens_the_door_and_goes_no_further(target: str, headers: dict[str, str]):
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await caller.open(target, **{"Authorization": None, **headers})
        await caller.hang_up()
        await proxy.settled()
    record = simulator.azure_requests[0]
    assert CALLER_TOKEN not in repr(record)
    assert "api-key" not in record.query


@pytest.mark.parametrize(
    ("offered", "passed", "answered"),
    [
        (f"realtime, {KEY_PROTOCOL}{{key}}, openai-beta.realtime-v1", True, "realtime"),
        (f"{KEY_PROTOCOL}{{key}}, openai-beta.realtime-v1", True, "openai-beta.realtime-v1"),
        (f"{KEY_PROTOCOL}{{key}}", False, None),
    ],
)
@pytest.mark.gen_test
async def test_a_browser_sends_its_key_as_a_subprotocol(
    offered: str, passed: bool, answered: str | None
):
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        head = await caller.open(
            f"/v1/realtime?model={ALIAS}",
            Authorization=None,
            Sec_WebSocket_Protocol=offered.format(key=CALLER_TOKEN),
        )
        assert head.headers.get("sec-websocket-protocol") == answered
        await caller.hang_up()
        await proxy.settled()
    record = simulator.azure_requests[0]
    assert CALLER_TOKEN not in repr(record)
    assert ("sec-websocket-protocol" in record.headers) == passed


@pytest.mark.parametrize(
    ("target", "headers", "status", "param"),
    [
        ("/v1/realtime", {}, 400, "model"),
        ("/v1/realtime?model=", {}, 400, "model"),
        ("/v1/realtime?model=a&model=b", {}, 400, "model"),
        ("/v1/realtime?model=nobody", {}, 404, "model"),
        (f"/v1/realtime?model={ALIAS}&intent=mischief", {}, 400, "intent"),
        (f"/v1/realtime?model={ALIAS}&" + "&".join(f"a{n}=" for n in range(99)), {}, 400, None),
        (f"/v1/realtime?model={ALIAS}", {"Authorization": None}, 401, None),
        (f"/v1/realtime?model={ALIAS}", {"Authorization": "Bearer wrong"}, 401, None),
        (f"/v1/realtime?model={ALIAS}&api-key={CALLER_TOKEN}", {"Authorization": "x"}, 401, None),
        (
            f"/v1/realtime?model={ALIAS}",
            {"Authorization": None, "Sec_WebSocket_Protocol": f"{KEY_PROTOCOL}wrong"},
            401,
            None,
        ),
        (f"/v1/realtime?model={ALIAS}", {"Upgrade": None}, 426, None),
        (f"/v1/realtime?model={ALIAS}", {"Upgrade": "h2c"}, 426, None),
        (f"/v1/realtime?model={ALIAS}", {"Connection": None}, 426, None),
        (f"/v1/realtime?model={ALIAS}", {"Sec_WebSocket_Version": "8"}, 426, None),
        (f"/v1/realtime?model={ALIAS}", {"Sec_WebSocket_Version": None}, 426, None),
        (f"/v1/realtime?model={ALIAS}", {"Sec_WebSocket_Key": None}, 400, None),
        (f"/v1/realtime?model={ALIAS}", {"Sec_WebSocket_Key": "c2hvcnQ="}, 400, None),
        (f"/v1/realtime?model={ALIAS}", {"Content_Length": "3"}, 400, None),
    ],
)
@pytest.mark.gen_test
async def test_a_handshake_is_refused_in_words(
    target: str, headers: dict[str, str | None], status: int, param: str | None
):
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {**HANDSHAKE, **{key.replace("-", "_"): val for key, val in sent.items()}}
        fields = {name.replace("-", "_"): value for name, value in fields.items()}
        await caller.ask(target, **fields)
        answer = await caller.raw.answer()
        assert (answer.status, answer.error["param"]) == (status, param)
        assert CALLER_TOKEN not in answer.body.decode()
        if status == 426:
            assert answer.headers["upgrade"] == "websocket"
        await proxy.settled()
    assert simulator.azure_requests == []


@pytest.mark.gen_test
async def test_a_post_is_told_to_get():
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await caller.raw.send(b"POST /v1/realtime HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        answer = await caller.raw.answer()
        assert (answer.status, answer.headers["allow"]) == (405, "GET")
        await proxy.settled()


@pytest.mark.gen_test
async def test_an_old_caller_is_told_that_it_is_too_old():
    async with talk() as (_, proxy, caller):
        fields = {name.lower(): value for name, value in HANDSHAKE.items()}
        target = f"/v1/realtime?model={ALIAS}"
        await caller.raw.send(request("GET", target, headers=fields, version="1.0"))
        answer = await caller.raw.answer()
        assert (answer.status, "HTTP/1.1" in answer.error["message"]) == (400, True)
        await proxy.settled()


@pytest.mark.gen_test
async def test_half_a_handshake_opens_nothing():
    async with azure() as simulator, session_proxy(simulator.url) as proxy:
        async with proxy.caller() as caller:
            await caller.raw.send(b"GET /v1/realtime?model=voice HTTP/1.1\r\nHost: x\r\nUpgra")
        await proxy.front.idle()
        assert proxy.recorder.started == 0
    assert simulator.requests == []


@pytest.mark.gen_test
async def test_a_disabled_key_opens_no_session():
    async with (
        azure() as simulator,
        session_proxy(simulator.url, key_fields={"disabled": True}) as proxy,
        proxy.caller() as caller,
    ):
        await caller.ask()
        answer = await caller.raw.answer()
        assert (answer.status, answer.error["code"]) == (401, "api_key_disabled")
        await proxy.settled()


@pytest.mark.gen_test
async def test_a_session_holds_its_slot_until_it_ends():
    limits = LimitPolicy(concurrency=1, tpm=100_000, rpm=100)
    async with (
        azure() as simulator,
        session_proxy(simulator.url, key_fields={"limits": limits}) as proxy,
        proxy.caller() as first,
        proxy.caller() as second,
        proxy.caller() as third,
    ):
        await greeted(first)
        await second.ask()
        refused = await second.raw.answer()
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        await first.hang_up()
        await proxy.settled(2)
        await greeted(third)
        await third.hang_up()
        await proxy.settled(3)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("err-key", 401, None),
        ("err-deployment", 404, None),
        ("err-calls", 429, None),
        ("err500", 502, None),
        ("err-html503", 502, None),
        ("err302", 502, None),
    ],
)
@pytest.mark.gen_test
async def test_a_refusal_of_the_upstream_is_an_ordinary_error(
    script: str, status: int, code: str | None
):
    async with (
        azure(script=script) as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await caller.ask()
        answer = await caller.raw.answer()
        assert answer.status == status
        assert answer.error["type"] == "upstream_error"
        if status == 429:
            assert int(answer.headers["retry-after"]) > 0
        exchange = await proxy.settled()
        assert exchange.usage is None
    assert simulator.azure_requests[0].status == exchange.upstream_status


@pytest.mark.parametrize(
    "answer",
    [
        agreement(nonce="AAAAAAAAAAAAAAAAAAAAAA=="),
        agreement(extra="Sec-WebSocket-Protocol: surprise\r\n"),
        agreement(extra="Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
@pytest.mark.gen_test
async def test_an_upstream_that_agrees_to_something_else_is_refused(answer: bytes):
    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(answer)
        await connection.until_gone()

    async with (
        raw_server(serve) as server,
        session_proxy(server.url("").rstrip("/")) as proxy,
        proxy.caller() as caller,
    ):
        await caller.ask()
        refused = await caller.raw.answer()
        assert (refused.status, refused.error["code"]) == (502, "upstream_decode_error")
        await proxy.settled()


@pytest.mark.gen_test
async def test_a_refused_token_is_renewed_once_and_nothing_said_is_lost():
    tokens: list[str | None] = []

    async def serve(connection: RawConnection) -> None:
        head = await connection.head()
        assert head is not None
        tokens.append(dict(head[2]).get("authorization"))
        if len(tokens) == 1:
            await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            return
        await connection.send(agreement())
        heard.append(await connection.receive(len(early)))
        await connection.send(close(1000))
        await connection.receive(len(close(1000, masked=True)))

    early = masked(TEXT, b"early")
    heard: list[bytes] = []
    async with (
        raw_server(serve) as server,
        session_proxy(server.url("").rstrip("/"), credential=ENTRA) as proxy,
        proxy.caller() as caller,
    ):
        await caller.open(f"/v1/realtime?model={ALIAS}", early)
        assert await caller.closed() == 1000
        await caller.send_close(1000)
        await proxy.settled()
    assert tokens == ["Bearer token-1", "Bearer token-2"]
    assert heard == [early]


# ── how it ends ──


@pytest.mark.gen_test
async def test_a_caller_that_hangs_up_ends_the_upstream_at_once():
    async with azure() as simulator, session_proxy(simulator.url) as proxy:
        async with proxy.caller() as caller:
            await greeted(caller)
        record = await simulator.wait_for(lambda record: record.outcome == "client_closed")
        exchange = await proxy.settled()
    assert record.close_code is None
    assert (exchange.status, exchange.outcome) == (499, "client_cancelled")
    assert (exchange.closed_by, exchange.close_code) == ("caller", 1006)
    assert exchange.usage is not None
    assert exchange.usage.total_tokens == 0


@pytest.mark.gen_test
async def test_a_caller_that_leaves_while_the_upstream_is_asked_ends_the_asking():
    async with azure(script="hang") as simulator, session_proxy(simulator.url) as proxy:
        async with proxy.caller() as caller:
            await caller.ask()
            await simulator.wait_for(lambda record: record.phase == "hanging")
        await simulator.wait_for(lambda record: record.outcome == "client_closed")
        assert (await proxy.settled()).status == 499


@pytest.mark.gen_test
async def test_the_code_of_a_caller_that_does_not_wait_for_an_answer_arrives():
    async with azure() as simulator, session_proxy(simulator.url) as proxy:
        async with proxy.caller() as caller:
            await greeted(caller)
            await caller.send_close(3456)
        record = await simulator.wait_for(lambda record: record.close_code == 3456)
        exchange = await proxy.settled()
    assert record.close_code == 3456
    assert (exchange.status, exchange.outcome) == (101, "success")
    assert (exchange.closed_by, exchange.close_code) == ("caller", 3456)


@pytest.mark.gen_test
async def test_the_upstreams_code_arrives_and_the_answer_to_it_too():
    async with talk(script="closecode4002") as (simulator, proxy, caller):
        await greeted(caller)
        await caller.say(RESPONSE)
        assert await caller.closed() == 4002
        await caller.say(*[{"type": "input_audio_buffer.append", "audio": "A" * 1000}] * 50)
        await caller.send_close(4002)
        assert await caller.raw.rest() == b""
        exchange = await proxy.settled()
        record = await simulator.wait_for(lambda record: record.close_code == 4002)
    assert record.outcome == "completed"
    assert (exchange.closed_by, exchange.close_code) == ("upstream", 4002)


@pytest.mark.parametrize("fault", ["cut3", "reset3"])
@pytest.mark.gen_test
async def test_an_upstream_that_breaks_off_is_a_1011(fault: str):
    async with (
        azure(script=fault) as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        await caller.say(RESPONSE)
        assert await caller.closed() == 1011
        await caller.send_close(1011)
        assert await caller.raw.rest() == b""
        exchange = await proxy.settled()
    assert isinstance(exchange.error, UpstreamBroken)
    assert exchange.outcome == "upstream_error"
    assert (exchange.closed_by, exchange.close_code) == ("upstream", 1006)


@pytest.mark.gen_test
async def test_an_upstream_that_breaks_off_within_a_frame_leaves_no_place_for_a_close():
    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(agreement() + text("x" * 1000)[:500])

    async with (
        raw_server(serve) as server,
        session_proxy(server.url("").rstrip("/")) as proxy,
        proxy.caller() as caller,
    ):
        await caller.open()
        assert await caller.raw.rest() == text("x" * 1000)[:500]
        assert isinstance((await proxy.settled()).error, UpstreamBroken)


@pytest.mark.gen_test
async def test_a_caller_that_never_answers_a_close_is_left():
    async with (
        azure(script="closecode1000") as simulator,
        session_proxy(simulator.url, patience=SHORT) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        await caller.say(RESPONSE)
        assert await caller.closed() == 1000
        assert await caller.raw.rest() == b""
        await proxy.settled()


@pytest.mark.gen_test
async def test_an_upstream_that_never_answers_a_close_is_left():
    async with (
        azure(script="mute") as simulator,
        session_proxy(simulator.url, patience=SHORT) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        assert await caller.hang_up(4999) == 4999
        assert (await proxy.settled()).close_code == 4999
        await simulator.wait_for(lambda record: record.outcome == "client_closed")


@pytest.mark.gen_test
async def test_a_silent_session_is_closed_by_the_gateway():
    async with (
        azure() as simulator,
        session_proxy(simulator.url, patience=SessionPatience(idle_s=0.1)) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        frame = await caller.frame()
        assert (frame.opcode, frame.code) == (CLOSE, 1001)
        await caller.send_close(1001)
        assert await caller.raw.rest() == b""
        exchange = await proxy.settled()
        await simulator.wait_for(lambda record: record.close_code == 1001)
    assert (exchange.closed_by, exchange.close_code) == ("gateway", 1001)
    assert (exchange.status, exchange.error) == (101, None)
    assert proxy.health.level(ALIAS) == 0


@pytest.mark.gen_test
async def test_pings_are_life():
    async with (
        azure() as simulator,
        session_proxy(simulator.url, alias_fields={"stream_timeout_s": 0.3}) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        for number in range(8):
            await asyncio.sleep(0.1)
            await caller.raw.send(masked(PING, b"%d" % number))
            assert await caller.pong() == b"%d" % number
        await caller.hang_up()
        await proxy.settled()


@pytest.mark.gen_test
async def test_a_session_that_is_cut_at_the_end_of_the_process_is_told_so():
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        proxy.front.state.abort_all()
        frame = await caller.frame()
        assert (frame.opcode, frame.code) == (CLOSE, 1012)
        await caller.send_close(1012)
        assert await caller.raw.rest() == b""
        exchange = await proxy.settled()
        await simulator.wait_for(lambda record: record.close_code == 1012)
    assert (exchange.closed_by, exchange.close_code) == ("gateway", 1012)


@pytest.mark.gen_test
async def test_unmasked_frames_are_the_upstreams_to_refuse():
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)
        await caller.raw.send(text("unmasked"))
        assert await caller.closed() == 1002
        await caller.send_close(1002)
        await proxy.settled()


# ── backpressure ──


@pytest.mark.gen_test
async def test_a_caller_that_does_not_read_is_held_back_with_its_upstream():
    async with azure(script="bulk32") as simulator, session_proxy(simulator.url) as proxy:
        async with proxy.caller(receive_buffer_bytes=16 * 1024) as caller:
            await greeted(caller)
            await caller.say(RESPONSE)
            record = simulator.azure_requests[0]
            await steady(lambda: record.bytes_sent)
            assert record.bytes_sent < 24 * MIB
            assert proxy.transport.stats().peak_body_bytes <= 2 * HIGH_WATER_BYTES
            size = 0
            while (event := await caller.event())["type"] != "response.done":
                size += len(event.get("delta", ""))
            assert size >= 32 * MIB
            await caller.hang_up()
        await proxy.settled()


@pytest.mark.gen_test
async def test_an_upstream_that_does_not_read_holds_the_caller_back():
    piece = masked(BINARY, bytes(64 * 1024))
    read = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(agreement())
        await read.wait()
        await connection.until_gone()

    async with raw_server(serve) as server, session_proxy(server.url("").rstrip("/")) as proxy:
        async with proxy.caller() as caller:
            await caller.open()
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while True:
                    await caller.raw.send(piece)
                    sent += 1

            flooding = asyncio.create_task(flood())
            await steady(lambda: sent)
            assert sent * len(piece) < 24 * MIB
            read.set()
            before = sent
            await until(lambda: sent > before + 100)
            flooding.cancel()
            await asyncio.wait([flooding])
        await proxy.settled()


@pytest.mark.gen_test
async def test_a_flood_of_pings_is_answered_by_the_upstream_at_its_pace():
    count = 3000
    async with (
        azure() as simulator,
        session_proxy(simulator.url) as proxy,
        proxy.caller() as caller,
    ):
        await greeted(caller)

        async def flood() -> None:
            for number in range(count):
                await caller.raw.send(masked(PING, b"%d" % number))

        flooding = asyncio.create_task(flood())
        for number in range(count):
            assert await caller.pong() == b"%d" % number
        await flooding
        await caller.hang_up()
        await proxy.settled()
