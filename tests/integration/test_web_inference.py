"""The proxy's handler on a real socket: answers, refusals, departures, and what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from aisix.dispatch import DefaultDeadlines
from aisix.errors import BadRequest, BodyTooLarge, CallerDeparted, GatewayError
from aisix.transport.memory import MemoryAnswer
from aisix.web.body import SWALLOW_BYTES
from tests.support.builders import CHAT, make_request
from tests.support.front import (
    BODY_LIMIT_BYTES,
    Front,
    FrontCaller,
    StubPipeline,
    event,
    post,
    request,
    serve_proxy,
    until,
)
from tests.support.pipeline import Harness
from tests.support.rows import DONE, delta, good_answer, good_body, streamed

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
WRONG_KEY: dict[str, str | None] = {"Authorization": "Bearer sk-of-somebody-else"}
NO_DEADLINES = DefaultDeadlines(connect_s=0.0, first_byte_s=0.0, idle_s=0.0, total_s=0.0)
HEAD_ONLY = {"Transfer-Encoding": "chunked"}


def chat(**options: Any) -> bytes:
    """A whole chat completion request."""
    return post(PATH, good_body(CHAT, stream=options.pop("stream", False)), **options)


def chunked(data: bytes) -> bytes:
    """`data` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


async def never(_request: InboundRequest, _reply: Any) -> None:
    """A pipeline that waits for Azure until it is cancelled."""
    await asyncio.Event().wait()


async def after_the_body(inbound: InboundRequest, reply: Any) -> None:
    """A pipeline that reads all and says how much that was."""
    raw = await inbound.body.read_all(0)
    await reply.send(200, JSON, json.dumps(len(raw)).encode())


async def at_once(_request: InboundRequest, reply: Any) -> None:
    """A pipeline that answers without looking at the body."""
    await reply.send(401, JSON, b'{"error":{}}')


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_whole_answer_comes_with_its_length_and_ids():
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=False))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        answer = await caller.answer()
        await front.idle()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["server"].startswith("AISIX/")
    assert (await harness.audit()).outcome == "success"


@pytest.mark.gen_test
async def test_pieces_of_a_stream_leave_one_by_one():
    """Each arrives before Azure says the next."""
    gates = [asyncio.Event() for _ in range(3)]
    texts = ["one", "two", "three"]
    steps: list[Any] = []
    for gate, text in zip(gates, texts, strict=True):
        steps += [gate, delta(CHAT, text)]
    harness = Harness()
    harness.transport.script(streamed([*steps, delta(CHAT, "", "stop"), DONE]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True))
        gates[0].set()
        head = await caller.head()
        assert head.headers["content-type"].startswith("text/event-stream")
        assert head.headers["transfer-encoding"] == "chunked"
        assert b'"one"' in await caller.chunk()
        gates[1].set()
        assert b'"two"' in await caller.chunk()
        gates[2].set()
        rest = b""
        while piece := await caller.chunk():
            rest += piece
        assert rest.endswith(DONE)
        await front.idle()
    assert (await harness.audit()).outcome == "success"


@pytest.mark.gen_test
async def test_a_body_in_many_pieces_is_one_body():
    pipeline = StubPipeline(after_the_body)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers=HEAD_ONLY))
        await event(pipeline.started)
        for piece in (b"x", b"y" * 70_000, b"z" * 300_000):
            await caller.send(chunked(piece))
        await caller.send(LAST_CHUNK)
        assert (await caller.answer()).json() == 370_001


@pytest.mark.gen_test
async def test_a_connection_carries_one_exchange_after_another():
    harness = Harness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for stream in (False, True, False):
            harness.transport.script(good_answer(CHAT, stream=stream))
            await caller.send(chat(stream=stream))
            assert (await caller.answer()).status == 200
    assert [exchange.status for exchange in harness.log.lines] == [200] * 3


@pytest.mark.gen_test
async def test_pipelined_requests_are_answered_in_their_order():
    harness = Harness()
    harness.transport.script(*[good_answer(CHAT, stream=False)] * 2)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        ids = ["first", "second", "third"]
        await caller.send(
            chat(headers={"x-request-id": ids[0]})
            + request("GET", "/v1/models", headers={"x-request-id": ids[1]})
            + chat(headers={"x-request-id": ids[2]})
        )
        answers = [await caller.answer() for _ in ids]
    assert [answer.headers["x-request-id"] for answer in answers] == ids
    assert [answer.status for answer in answers] == [200] * 3


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.gen_test
async def test_connection_close_is_honoured(version: str, stream: bool):
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=stream))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=stream, version=version, headers={"Connection": "close"}))
        answer = await caller.answer()
        assert await caller.rest() == b""
    assert answer.status == 200
    assert answer.body.endswith(DONE) is stream
    assert ("transfer-encoding" in answer.headers) is (stream and version == "1.1")


@pytest.mark.gen_test
async def test_an_old_caller_that_keeps_its_connection_can_find_the_end_of_a_stream():
    """HTTP/1.0 has no chunks: the end of a stream is the end of the connection, kept or not."""
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=True))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True, version="1.0", headers={"Connection": "keep-alive"}))
        head = await caller.head()
        assert "transfer-encoding" not in head.headers
        assert (await caller.rest()).endswith(DONE)


@pytest.mark.gen_test
async def test_an_old_caller_that_keeps_its_connection_gets_whole_answers_on_it():
    harness = Harness()
    harness.transport.script(*[good_answer(CHAT, stream=False)] * 2)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for _ in range(2):
            await caller.send(chat(version="1.0", headers={"Connection": "keep-alive"}))
            assert (await caller.answer()).status == 200


# ── abort ───────────────────────────────────────────────────────────────────────────────────────


async def starts_and_aborts(inbound: InboundRequest, reply: Any) -> None:
    await inbound.body.read_all(0)
    await reply.start(200, {"Content-Type": "audio/mpeg"})
    await reply.write(b"half of ")
    reply.abort()


async def says_nothing(inbound: InboundRequest, _reply: Any) -> None:
    await inbound.body.read_all(0)


async def starts_and_forgets(inbound: InboundRequest, reply: Any) -> None:
    await inbound.body.read_all(0)
    await reply.start(200, {"Content-Type": "audio/mpeg"})
    await reply.write(b"half of ")


@pytest.mark.parametrize("story", [starts_and_aborts, starts_and_forgets])
@pytest.mark.gen_test
async def test_an_aborted_answer_is_a_cut_connection_without_an_end_mark(story: Any):
    async with serve_proxy(StubPipeline(story)) as front, front.caller() as caller:
        await caller.send(chat())
        assert (await caller.head()).status == 200
        assert await caller.rest() == b"8\r\nhalf of \r\n"
        await front.idle()


@pytest.mark.gen_test
async def test_a_pipeline_without_an_answer_is_a_cut_connection():
    async with serve_proxy(StubPipeline(says_nothing)) as front, front.caller() as caller:
        await caller.send(chat())
        assert await caller.rest() == b""
        await front.idle()


@pytest.mark.logs("aisix.web")
@pytest.mark.gen_test
async def test_a_pipeline_that_raises_is_a_500_with_hidden_text():
    """The pipeline never raises; if it did, the caller would learn nothing of it."""

    async def raises(inbound: InboundRequest, _reply: Any) -> None:
        await inbound.body.read_all(0)
        raise RuntimeError("a secret")

    async with serve_proxy(StubPipeline(raises)) as front, front.caller() as caller:
        await caller.send(chat(headers={"x-request-id": "the-id"}))
        answer = await caller.answer()
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    assert answer.error["type"] == "internal_error"
    assert answer.headers["x-request-id"] == answer.headers["x-aisix-request-id"] == "the-id"


# ── early refusals ──────────────────────────────────────────────────────────────────────────────

REFUSALS: dict[str, tuple[dict[str, str | None], int]] = {
    "wrong-key": (WRONG_KEY, 401),
    "too-large": ({}, 413),
}


@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.gen_test
async def test_a_refusal_is_there_before_the_body_and_can_be_read_after_it(why: str, framing: str):
    """Most clients read only when they have sent all: the answer must survive until then."""
    headers, status = REFUSALS[why]
    piece = b"x" * 65_536
    count = 80  # 5 MiB: more than all socket buffers between the two
    framed = {"Content-Length": str(len(piece) * count)} if framing == "length" else HEAD_ONLY
    limit = BODY_LIMIT_BYTES if status == 413 else 0
    harness = Harness(body_limit_bytes=limit)
    async with (
        serve_proxy(harness.pipeline, body_limit_bytes=limit) as front,
        front.caller() as caller,
    ):
        await caller.send(request("POST", PATH, headers={**framed, **headers}))
        for _ in range(count):
            await caller.send(piece if framing == "length" else chunked(piece))
        if framing == "chunked":
            await caller.send(LAST_CHUNK)
        answer = await caller.answer()
        assert (answer.status, set(answer.error)) == (status, {"message", "type", "param", "code"})
        await front.idle()
        harness.transport.script(good_answer(CHAT, stream=False))
        await caller.send(chat())
        assert (await caller.answer()).status == 200, "the connection is as good as new"


@pytest.mark.parametrize(("headers", "status"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.gen_test
async def test_a_refusal_needs_none_of_the_body(headers: dict[str, str | None], status: int):
    limit = BODY_LIMIT_BYTES if status == 413 else 0
    async with (
        serve_proxy(Harness().pipeline, body_limit_bytes=limit) as front,
        front.caller() as caller,
    ):
        length = {"Content-Length": str(1 << 20)}
        await caller.send(request("POST", PATH, headers={**length, **headers}))
        assert (await caller.answer()).status == status
        assert front.state.inflight, "its body is still awaited"
        await caller.send(b"x" * (1 << 20))
        await front.idle()


@pytest.mark.gen_test
async def test_a_chunked_body_is_refused_when_it_crosses_the_limit():
    harness = Harness(body_limit_bytes=BODY_LIMIT_BYTES)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers=HEAD_ONLY))
        await caller.send(chunked(b"x" * BODY_LIMIT_BYTES))
        await front.busy()
        await caller.send(chunked(b"x"))
        answer = await caller.answer()
        await caller.send(LAST_CHUNK)
        await front.idle()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert str(BODY_LIMIT_BYTES) in answer.error["message"]


@pytest.mark.gen_test
async def test_a_declared_length_beyond_all_numbers_is_too_large():
    """More digits than Python would turn into a number."""
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={"Content-Length": "9" * 5_000}))
        said = await caller.rest()
    assert said.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    assert b"internal_error" not in said


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.gen_test
async def test_an_unwanted_body_beyond_the_bound_ends_the_connection(framing: str):
    piece = b"x" * (1 << 20)
    most = 2 * SWALLOW_BYTES // len(piece)
    framed = {"Content-Length": str(len(piece) * most)} if framing == "length" else HEAD_ONLY
    pipeline = Harness().pipeline
    async with serve_proxy(pipeline, body_limit_bytes=0) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**framed, **WRONG_KEY}))
        assert (await caller.answer()).status == 401
        sent = await caller.send_until_refused(
            piece if framing == "length" else chunked(piece), most
        )
        assert (sent + 1) * len(piece) >= SWALLOW_BYTES
        assert sent < most
        await front.idle()


@pytest.mark.gen_test
async def test_a_refused_caller_that_asked_to_close_gets_its_answer_and_then_the_end():
    async with serve_proxy(StubPipeline(at_once)) as front, front.caller() as caller:
        body = b"x" * 1_000_000
        await caller.send(request("POST", PATH, body, headers={"Connection": "close"}))
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await caller.rest() == b""


# ── Expect: 100-continue ────────────────────────────────────────────────────────────────────────

EXPECT = {"Expect": "100-continue"}


@pytest.mark.gen_test
async def test_a_caller_that_waits_for_it_is_told_to_go_on():
    async with serve_proxy(StubPipeline(after_the_body)) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**EXPECT, "Content-Length": "5"}))
        assert (await caller.head()).status == 100
        await caller.send(b"hello")
        assert (await caller.answer()).json() == 5


@pytest.mark.parametrize(
    "framing", [{"Content-Length": "1000"}, HEAD_ONLY], ids=["length", "chunks"]
)
@pytest.mark.gen_test
async def test_a_caller_that_waits_is_refused_without_being_told_to_go_on(framing: dict[str, str]):
    """It will not send its body, so the connection ends, and says so."""
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**EXPECT, **framing, **WRONG_KEY}))
        answer = await caller.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
        assert await caller.rest() == b"", "no 100 after the answer"
        await front.idle()


@pytest.mark.gen_test
async def test_a_decision_that_takes_its_time_comes_before_any_100():
    """Nothing is said to the caller before the pipeline reads the body or refuses it."""
    decide = asyncio.Event()

    async def thoughtful(inbound: InboundRequest, reply: Any) -> None:
        await decide.wait()
        await at_once(inbound, reply)

    pipeline = StubPipeline(thoughtful)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**EXPECT, "Content-Length": "5"}))
        await event(pipeline.started)
        for _ in range(20):
            await asyncio.sleep(0)
        decide.set()
        assert (await caller.answer()).status == 401
        assert await caller.rest() == b""


@pytest.mark.gen_test
async def test_a_caller_that_went_on_sends_to_the_end_before_its_refusal_ends_anything():
    harness = Harness(body_limit_bytes=BODY_LIMIT_BYTES)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**EXPECT, **HEAD_ONLY}))
        assert (await caller.head()).status == 100
        for _ in range(80):
            await caller.send(chunked(b"x" * 65_536))
        await caller.send(LAST_CHUNK)
        assert (await caller.answer()).status == 413
        await front.idle()
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.answer()).status == 200


@pytest.mark.gen_test
async def test_a_caller_that_leaves_instead_of_going_on_is_gone():
    pipeline = StubPipeline(after_the_body)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={**EXPECT, "Content-Length": "5"}))
        assert (await caller.head()).status == 100
        caller.close()
        await event(pipeline.ended)
        await front.idle()


# ── departures ──────────────────────────────────────────────────────────────────────────────────

LEAVE = {
    "close": FrontCaller.close,
    "reset": FrontCaller.reset,
    "half-close": FrontCaller.send_eof,
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.gen_test
async def test_leaving_while_the_body_arrives_ends_the_exchange(leave: Any):
    harness = Harness(deadlines=NO_DEADLINES)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat()[:-10])
        await front.busy()
        leave(caller)
        await front.idle()
    assert (await harness.audit()).status == 499


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.gen_test
async def test_leaving_a_refusal_behind_ends_the_exchange(leave: Any):
    """The answer is out, the body is not in."""
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={"Content-Length": "10", **WRONG_KEY}))
        assert (await caller.answer()).status == 401
        assert front.state.inflight
        leave(caller)
        await front.idle()


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.gen_test
async def test_leaving_before_azure_has_answered_cancels_the_call(leave: Any):
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        await until(lambda: harness.transport.opened == 1)
        leave(caller)
        await front.idle()
        await until(lambda: harness.transport.closed_early == 1)
    assert (await harness.audit()).status == 499


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.gen_test
async def test_leaving_in_the_middle_of_a_stream_cancels_the_call(leave: Any):
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport.script(streamed([delta(CHAT, "hello"), asyncio.Event()]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True))
        await caller.head()
        assert await caller.chunk()
        leave(caller)
        await front.idle()
        await until(lambda: harness.transport.closed_early == 1)
    exchange = await harness.audit()
    assert (exchange.status, exchange.outcome) == (499, "client_cancelled")


@pytest.mark.gen_test
async def test_a_departure_cancels_the_task_within_a_turn_of_the_loop():
    """Counted from the moment the handler is told."""
    pipeline = StubPipeline(never)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        await event(pipeline.started)
        caller.reset()
        await until(lambda: not front.state.inflight)
        await asyncio.sleep(0)
        assert pipeline.cancelled.is_set()


@pytest.mark.gen_test
async def test_a_request_and_a_reset_in_one_go_is_a_departure():
    """Nobody waits minutes for Azure on behalf of a caller that was gone when its body was read."""
    for size in (10, 300_000, 1_000_000):
        pipeline = StubPipeline(after_the_body_never)
        async with serve_proxy(pipeline) as front, front.caller() as caller:
            await caller.send(post(PATH, b"x" * size))
            caller.reset()
            await front.idle()
            if pipeline.requests:
                await event(pipeline.ended)


async def after_the_body_never(inbound: InboundRequest, reply: Any) -> None:
    await inbound.body.read_all(0)
    await never(inbound, reply)


@pytest.mark.parametrize("size", [10, 60_000, 300_000, 1_000_000])
@pytest.mark.gen_test
async def test_a_reset_right_behind_a_later_request_is_a_departure_too(size: int):
    """The connection is watched between requests: the reset is seen together with the head."""
    harness = Harness(body_limit_bytes=0, deadlines=NO_DEADLINES)
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    document = {**good_body(CHAT), "user": "x" * size}
    async with serve_proxy(harness.pipeline, body_limit_bytes=0) as front, front.caller() as caller:
        await caller.send(request("GET", "/v1/models"))
        await caller.answer()
        await front.idle()
        await caller.send(post(PATH, document))
        caller.reset()
        await until(lambda: harness.recorder.started == 2)
        await front.idle()
        await until(lambda: len(harness.recorder.ended) == 2)
    assert harness.log.lines[1].status == 499


@pytest.mark.gen_test
async def test_whoever_still_reads_the_body_of_a_caller_that_left_is_told():
    told = asyncio.Event()

    async def stubborn(inbound: InboundRequest, _reply: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await inbound.body.read_all(0)
        with pytest.raises(CallerDeparted):
            await inbound.body.read_all(0)
        told.set()

    pipeline = StubPipeline(stubborn)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(chat()[:-10])
        await event(pipeline.started)
        caller.close()
        await event(told)


@pytest.mark.gen_test
async def test_leaving_after_the_answer_changes_nothing():
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport.script(good_answer(CHAT, stream=False))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        assert (await caller.answer()).status == 200
        caller.close()
        await front.idle()
    assert (await harness.audit()).outcome == "success"


@pytest.mark.gen_test
async def test_a_caller_that_says_nothing_leaves_no_trace():
    harness = Harness(deadlines=NO_DEADLINES)
    async with serve_proxy(harness.pipeline) as front:
        async with front.caller() as caller:
            await caller.send(chat()[:30])
        async with front.caller() as caller:
            await caller.send(request("GET", "/v1/models"))
            assert (await caller.answer()).status == 200
    assert len(harness.log.lines) == 1


@pytest.mark.gen_test
async def test_callers_that_leave_at_any_moment_leave_nothing_behind():
    """Cut after every few bytes of the request, and of the answer."""
    whole = chat(stream=True)
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport = harness.transport.__class__(harness.clock)
    async with serve_proxy(harness.pipeline) as front:
        for end in range(0, len(whole), 17):
            async with front.caller() as caller:
                await caller.send(whole[:end])
            await front.idle()
    assert harness.recorder.started == len(harness.recorder.ended) == len(harness.log.lines)
    assert {exchange.status for exchange in harness.log.lines} == {499}


# ── a caller that reads slowly ──────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_caller_that_does_not_read_stops_azure():
    """What is taken from the upstream is what the sockets hold and one piece more."""
    piece = delta(CHAT, "x" * 60_000)
    count = 1_000  # 60 MB
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport.script(streamed([*[piece] * count, delta(CHAT, "", "stop"), DONE]))
    taken = 0

    async def counting(inbound: InboundRequest, reply: Any) -> Any:
        class Counted:
            """The reply, and how often it was written to."""

            def __getattr__(self, name: str) -> Any:
                return getattr(reply, name)

            async def write(self, data: bytes) -> None:
                nonlocal taken
                taken += 1
                await reply.write(data)

        return await harness.pipeline.run(inbound, Counted())

    pipeline = StubPipeline(counting)
    async with (
        serve_proxy(pipeline) as front,
        front.caller(receive_buffer_bytes=4_096) as caller,
    ):
        await caller.send(chat(stream=True))
        await caller.head()
        await until_steady(lambda: taken)
        assert 0 < taken < count // 4
        assert not pipeline.ended.is_set()
        held = sum(stream_buffer(front))
        assert held <= 2 * len(piece), "no more than the piece that is on its way"
        received = 0
        while chunk := await caller.chunk():
            received += len(chunk)
        await front.idle()
    assert received > count * 60_000
    assert (await harness.audit()).outcome == "success"


async def until_steady(value: Any) -> None:
    """Wait until `value()` has stopped changing for many turns of the loop."""
    still = 0
    last = value()
    while still < 2_000:
        await asyncio.sleep(0)
        still = still + 1 if value() == last else 0
        last = value()


def stream_buffer(front: Front) -> list[int]:
    """Bytes that Tornado holds for each caller."""
    return [
        len(connection.stream._write_buffer)  # type: ignore[attr-defined]
        for connection in front.state.inflight
    ]


@pytest.mark.gen_test
async def test_a_caller_that_does_not_read_may_leave():
    harness = Harness(deadlines=NO_DEADLINES)
    harness.transport.script(streamed([delta(CHAT, "x" * 100_000)] * 200))
    async with (
        serve_proxy(harness.pipeline) as front,
        front.caller(receive_buffer_bytes=4_096) as caller,
    ):
        await caller.send(chat(stream=True))
        await caller.head()
        caller.close()
        await front.idle()
        await until(lambda: harness.transport.closed == 1)
    assert (await harness.audit()).status == 499


@pytest.mark.gen_test
async def test_a_whole_answer_is_in_flight_until_the_socket_has_it():
    """A drain must not cut it off."""
    body = b"x" * 20_000_000

    async def large(inbound: InboundRequest, reply: Any) -> None:
        await inbound.body.read_all(0)
        await reply.send(200, JSON, body)

    pipeline = StubPipeline(large)
    async with (
        serve_proxy(pipeline) as front,
        front.caller(receive_buffer_bytes=4_096) as caller,
    ):
        await caller.send(chat())
        await caller.head()
        assert front.state.inflight
        assert await caller.read_exactly(len(body)) == body
        await front.idle()


@pytest.mark.gen_test
async def test_a_caller_that_leaves_a_large_answer_unread_is_not_in_flight():
    async def large(_request: InboundRequest, reply: Any) -> None:
        await reply.send(200, JSON, b"x" * 20_000_000)

    pipeline = StubPipeline(large)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", "/v1/models"))
        await event(pipeline.started)
        caller.reset()
        await front.idle()
        await event(pipeline.ended)


@pytest.mark.gen_test
async def test_a_caller_that_sends_faster_than_it_is_read_is_held_back():
    """The socket is not read; the sender's fills."""
    go = asyncio.Event()

    async def slow(inbound: InboundRequest, reply: Any) -> None:
        await go.wait()
        await after_the_body(inbound, reply)

    size = 50_000_000
    pipeline = StubPipeline(slow)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(request("POST", PATH, headers={"Content-Length": str(size)}))
        sending = asyncio.ensure_future(caller.send(b"x" * size))
        await front.busy()
        (body,) = [inbound.body for inbound in pipeline.requests]
        await until_steady(lambda: body._held_bytes)  # type: ignore[attr-defined]
        assert body._held_bytes < 400_000  # type: ignore[attr-defined]
        assert not sending.done()
        go.set()
        await sending
        assert (await caller.answer()).json() == size


# ── draining ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.gen_test
async def test_while_draining_answers_close_the_connection(stream: bool):
    """They say so, and they do so."""
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=stream))
    async with serve_proxy(harness.pipeline, draining=True) as front, front.caller() as caller:
        await caller.send(chat(stream=stream))
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.rest() == b""


@pytest.mark.gen_test
async def test_while_draining_a_refusal_waits_for_the_body_before_it_closes():
    async with serve_proxy(StubPipeline(at_once), draining=True) as front, front.caller() as caller:
        await caller.send(post(PATH, b"x" * 5_000_000))
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await caller.rest() == b""


@pytest.mark.gen_test
async def test_an_exchange_that_is_cut_before_its_answer_gets_a_503():
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        await until(lambda: harness.transport.opened == 1)
        front.state.abort_all()
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        await front.idle()
    assert (await harness.audit()).status == 503


@pytest.mark.gen_test
async def test_a_stream_that_is_cut_ends_with_an_error_event():
    harness = Harness()
    harness.transport.script(streamed([delta(CHAT, "hello"), asyncio.Event()]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True))
        await caller.head()
        await caller.chunk()
        front.state.abort_all()
        last = await caller.chunk()
        assert last.startswith(b"event: error\ndata: ")
        assert await caller.chunk() == b""
        await front.idle()


@pytest.mark.gen_test
async def test_a_body_that_is_cut_while_it_arrives_gets_a_503():
    harness = Harness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat()[:-10])
        await front.busy()
        await asyncio.sleep(0)
        front.state.abort_all()
        assert (await caller.answer()).status == 503
        caller.close()
        await front.idle()


# ── methods ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "PUT", "DELETE", "GET", "TRACE"])
@pytest.mark.gen_test
async def test_another_method_is_refused_and_the_connection_lives_on(method: str):
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        await caller.send(request(method, PATH))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        await front.idle()
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.answer()).status == 200


@pytest.mark.gen_test
async def test_a_method_that_nobody_knows_ends_the_connection():
    """Where its message ends is anybody's guess."""
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        await caller.send(request("BREW", PATH))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request_error")
        assert answer.headers["connection"] == "close"
        assert await caller.rest() == b""


@pytest.mark.parametrize(("path", "status"), [(PATH, 405), ("/nowhere", 404)])
@pytest.mark.gen_test
async def test_the_answer_to_head_has_a_head_only(path: str, status: int):
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        for _ in range(2):
            await caller.send(request("HEAD", path))
            answer = await caller.answer(bodiless=True)
            assert answer.status == status
            assert int(answer.headers["content-length"]) > 0
            await front.idle()


@pytest.mark.gen_test
async def test_a_refused_method_may_have_a_body():
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        for method in ("OPTIONS", "DELETE", "PATCH"):
            await caller.send(request(method, PATH, b"x" * 100_000))
            assert (await caller.answer()).status == 405
            await front.idle()


# ── request ids ─────────────────────────────────────────────────────────────────────────────────


async def id_of(**headers: str) -> str:
    """The id an answer carries, in both places."""
    pipeline = StubPipeline(at_once)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await caller.send(request("GET", "/v1/models", headers=named))
        answer = await caller.answer()
    assert answer.headers["x-request-id"] == answer.headers["x-aisix-request-id"]
    assert answer.headers["x-request-id"] == pipeline.requests[0].request_id
    return answer.headers["x-request-id"]


@pytest.mark.parametrize("good", ["r", "a-b_c.d:e/f", "x" * 256, "!~", "{json}"])
@pytest.mark.gen_test
async def test_a_good_request_id_is_taken_over(good: str):
    assert await id_of(x_request_id=good) == good


@pytest.mark.parametrize("bad", ["", "x" * 257, "two words", "tab\there", "caf\xe9"])
@pytest.mark.gen_test
async def test_a_bad_request_id_is_replaced(bad: str):
    minted = await id_of(x_request_id=bad)
    assert str(uuid.UUID(minted)) == minted


@pytest.mark.gen_test
async def test_accepted_headers_are_asked_in_their_order():
    assert await id_of(x_correlation_id="second", x_request_id="first") == "first"
    assert await id_of(x_correlation_id="second") == "second"
    assert await id_of(x_request_id="not good", x_correlation_id="second") == "second"


@pytest.mark.gen_test
async def test_other_headers_name_no_request():
    assert re.fullmatch("[0-9a-f-]{36}", await id_of(x_other_id="mine"))


@pytest.mark.gen_test
async def test_ids_are_minted_anew_for_each_request():
    assert await id_of() != await id_of()


# ── what the pipeline is given ──────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_the_pipeline_gets_the_request_as_it_was_sent():
    pipeline = StubPipeline(after_the_body)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        target = "/openai//deployments/my%20gpt/chat/completions/?api-version=2024-10-21"
        await caller.send(post(target, b"{}", headers={"X-Custom": "v"}))
        await caller.answer()
    (inbound,) = pipeline.requests
    assert (inbound.method, inbound.spec.operation) == ("POST", "chat_completions")
    assert inbound.path_name == "my gpt"
    assert inbound.path == target.partition("?")[0]
    assert inbound.client_address == "127.0.0.1"
    assert inbound.headers.get("x-custom") == "v"
    assert inbound.headers.get("x-absent") is None
    assert inbound.refusal is None
    assert type(inbound) is type(make_request())


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (request("POST", PATH, headers={"Content-Length": "10001"}), BodyTooLarge),
        (request("GET", "/v1/models/%ff"), BadRequest),
        (request("POST", PATH, headers={"Content-Length": "10000"}), None),
    ],
    ids=["declared too long", "not UTF-8", "just within"],
)
@pytest.mark.gen_test
async def test_what_the_head_shows_already_is_a_refusal(
    sent: bytes, kind: type[GatewayError] | None
):
    pipeline = StubPipeline(at_once)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(sent)
        await caller.answer()
        caller.close()
        await front.idle()
    refusal = pipeline.requests[0].refusal
    assert type(refusal) is kind if kind else refusal is None


@pytest.mark.gen_test
async def test_the_handler_survives_answers_that_fail_in_an_error():
    """An error answer to a caller that is gone is a departure, not a crash."""

    async def late(inbound: InboundRequest, reply: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await never(inbound, reply)
        assert reply.departed
        with pytest.raises(CallerDeparted):
            await reply.send(500, JSON, b"{}")
        with pytest.raises(CallerDeparted):
            await reply.write(b"x")
        with pytest.raises(CallerDeparted):
            await reply.finish()

    pipeline = StubPipeline(late)
    async with serve_proxy(pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        await event(pipeline.started)
        caller.close()
        await front.idle()
        await event(pipeline.ended)
