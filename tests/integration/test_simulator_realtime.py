"""The simulator's realtime sessions: events, faults, and how they end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aisix.simulator.server import Simulator
from tests.support.azure import KEY, azure
from tests.support.frames import BINARY, CONTINUATION, PING, TEXT, text
from tests.support.front import FrontCaller
from tests.support.sessions import SessionCaller, masked

DATED = "/openai/realtime?api-version=2025-04-01-preview&deployment="


@asynccontextmanager
async def client(simulator: Simulator) -> AsyncIterator[SessionCaller]:
    """A connection straight to the simulator."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", simulator.port))
        yield SessionCaller(FrontCaller(sock))
    finally:
        sock.close()


async def opened(caller: SessionCaller, deployment: str = "rt") -> None:
    await caller.open(DATED + deployment, api_key=KEY)
    await caller.event("session.created")


@pytest.mark.gen_test
async def test_a_session_is_configured_and_answers():
    async with azure() as simulator, client(simulator) as caller:
        await opened(caller, "rt-n2-cached1")
        await caller.say(
            {"type": "session.update", "session": {"modalities": ["text"]}},
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
            {"type": "input_audio_buffer.append", "audio": "AAAA"},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        )
        kinds = [(await caller.event())["type"] for _ in range(6)]
        done = await caller.event()
        assert await caller.hang_up(4321) == 4321
    assert kinds == [
        "session.updated",
        "conversation.item.created",
        "input_audio_buffer.committed",
        "response.created",
        "response.text.delta",
        "response.text.delta",
    ]
    usage = done["response"]["usage"]
    assert usage["output_tokens"] == 2
    assert usage["input_token_details"]["cached_tokens"] == 1
    assert usage["total_tokens"] == usage["input_tokens"] + 2
    record = simulator.requests[0]
    assert (record.status, record.outcome, record.close_code) == (101, "completed", 4321)
    assert len(record.body.splitlines()) == 5


@pytest.mark.gen_test
async def test_v1_calls_its_deltas_output_and_speaks_by_default():
    async with azure() as simulator, client(simulator) as caller:
        await caller.open("/openai/v1/realtime?model=rt-n1", api_key=KEY)
        await caller.event("session.created")
        await caller.say({"type": "response.create"})
        await caller.event("response.output_audio_transcript.delta")
        await caller.event("response.output_audio.delta")
        await caller.event("response.done")


@pytest.mark.gen_test
async def test_what_it_does_not_understand_is_an_error_and_no_end():
    async with azure() as simulator, client(simulator) as caller:
        await opened(caller)
        await caller.say({"type": "session.update", "session": {"model": "other"}})
        assert (await caller.event("error"))["error"]["param"] == "session.model"
        await caller.say({"type": "session.update"}, {"type": "dance"})
        assert (await caller.event("error"))["error"]["param"] == "session"
        assert (await caller.event("error"))["error"]["param"] == "type"
        await caller.raw.send(text("no json", masked=True) + masked(BINARY, b"x"))
        await caller.event("error")
        await caller.event("error")
        await caller.raw.send(
            masked(TEXT, b'{"type":', final=False)
            + masked(PING, b"hi")
            + masked(CONTINUATION, b'"response.create"}')
        )
        assert await caller.pong() == b"hi"
        await caller.event("response.done")
        await caller.raw.send(text("{}"))  # unmasked
        assert await caller.closed() == 1002


@pytest.mark.parametrize(
    ("target", "key", "status"),
    [
        (DATED + "rt", "wrong", 401),
        (DATED + "missing-rt", KEY, 404),
        ("/openai/realtime?api-version=2024-10-21&deployment=rt", KEY, 404),
        ("/openai/realtime?deployment=rt", KEY, 404),
        ("/openai/v1/realtime?model=rt&api-version=2025-04-01-preview", KEY, 404),
        (DATED + "rt-err-calls", KEY, 429),
        (DATED + "rt-err500", KEY, 500),
    ],
)
@pytest.mark.gen_test
async def test_a_session_is_refused_like_any_request(target: str, key: str, status: int):
    async with azure() as simulator, client(simulator) as caller:
        await caller.ask(target, api_key=key)
        answer = await caller.raw.answer()
    assert answer.status == status
    assert "code" in json.loads(answer.body)["error"]


@pytest.mark.gen_test
async def test_a_request_that_is_no_handshake_is_told_so():
    async with azure() as simulator, client(simulator) as caller:
        await caller.ask(DATED + "rt", api_key=KEY, Upgrade=None, Connection=None)
        assert (await caller.raw.answer()).status == 426


@pytest.mark.parametrize("fault", ["cut2", "reset2", "half2"])
@pytest.mark.gen_test
async def test_a_session_breaks_off_as_scripted(fault: str):
    async with azure() as simulator, client(simulator) as caller:
        await opened(caller, f"rt-{fault}")
        await caller.say({"type": "response.create"})
        await caller.raw.rest()
        record = await simulator.wait_for(lambda record: record.outcome == "cut")
    assert record.events_sent == 2


@pytest.mark.gen_test
async def test_a_session_closes_as_scripted_or_never():
    async with azure() as simulator:
        async with client(simulator) as caller:
            await opened(caller, "rt-closecode4002")
            await caller.say({"type": "response.create"})
            assert await caller.closed() == 4002
            await caller.send_close(4002)
            assert await caller.raw.rest() == b""
        async with client(simulator) as caller:
            await opened(caller, "rt-mute-stall1")
            await caller.say({"type": "response.create"})
            await simulator.wait_for(lambda record: record.phase == "stalled")
            simulator.release()
            await caller.event("response.done")
            await caller.send_close(1000)
            await simulator.wait_for(lambda record: record.close_code == 1000)
            assert simulator.requests[-1].outcome == ""


@pytest.mark.gen_test
async def test_a_flood_is_as_large_as_scripted():
    async with azure() as simulator, client(simulator) as caller:
        await opened(caller, "rt-bulk2-n0")
        await caller.say({"type": "response.create"})
        size = 0
        while (event := await caller.event())["type"] != "response.done":
            size += len(event.get("delta", ""))
        assert size >= 2 * 1024 * 1024


@pytest.mark.gen_test
async def test_the_compatible_server_has_sessions_for_a_bearer():
    async with azure() as simulator:
        async with client(simulator) as caller:
            await caller.open("/v1/realtime?model=rt%2Fone", Authorization=f"Bearer {KEY}")
            await caller.event("session.created")
            assert simulator.requests[0].deployment == "rt/one"
        async with client(simulator) as caller:
            await caller.ask("/v1/realtime?model=rt", api_key=KEY, Authorization=None)
            assert (await caller.raw.answer()).status == 401
        async with client(simulator) as caller:
            await caller.ask("/v1/realtime?model=missing", Authorization=f"Bearer {KEY}")
            refused = json.loads((await caller.raw.answer()).body)["error"]
            assert refused["code"] == "model_not_found"
