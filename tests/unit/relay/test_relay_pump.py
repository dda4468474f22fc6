"""The relay at work: commit point, heartbeats, backpressure, ends and failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.core.exchange import Exchange, Payload, Phase, Timings
from aisix.core.request import InboundRequest
from aisix.core.snapshot import Snapshot
from aisix.errors import CallerDeparted, UpstreamBroken, UpstreamTimeout
from aisix.relay.keepalive import HEARTBEAT, HELD_BYTES
from aisix.relay.pump import Relay, error_event
from aisix.relay.rewrite import DONE
from aisix.usage.meter import UsageMeter
from tests.support.azure_streams import (
    annotation,
    delta,
    frame,
    prompt_annotation,
    to_event,
    usage_block,
)

CHAT = ENDPOINTS[0]
SSE = "text/event-stream"
ROLE = to_event(delta({"role": "assistant", "content": ""}))
WORD = to_event(delta({"content": "hi"}))
STOP = to_event(delta({}, finish_reason="stop"))
IN_BAND = b'data: {"error":{"code":"429","message":"slow"}}\n\n'
LONG_S = 60.0
SHORT_S = 0.01


class TickingClock:
    """Every look at the clock is a second later."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def time(self) -> float:
        return self.now


class ScriptedAnswer:
    """An answer whose pieces come one per read; a Gate waits, an exception is raised."""

    def __init__(
        self, *script: bytes | Exception | asyncio.Event, content_type: str | None = SSE
    ) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {"content-type": content_type} if content_type else {}
        self.first_byte_at = 5.0
        self.last_byte_at = 9.0
        self.may_end_s = 0.0
        self.reads = 0
        self.cancelled_reads = 0
        self._script = list(script)

    async def read(self) -> bytes:
        self.reads += 1
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, asyncio.Event):
                try:
                    await step.wait()
                except asyncio.CancelledError:
                    self.cancelled_reads += 1
                    raise
            elif isinstance(step, Exception):
                raise step
            else:
                return step
        return b""

    def let_end(self, within_s: float) -> None:
        self.may_end_s = within_s

    async def read_all(self, limit: int = 0) -> bytes:
        body = b""
        while piece := await self.read():
            body += piece
        return body


class RecordedReply:
    """Records what is sent. `gate` holds writes back; `fail_at` names the write that fails."""

    def __init__(self, *, fail_at: int = 0) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.writes: list[bytes] = []
        self.finished = False
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_at = fail_at
        self.wrote = asyncio.Condition()
        self._writing = False

    @property
    def committed(self) -> bool:
        return self.status != 0

    @property
    def ended(self) -> bool:
        return self.finished

    @property
    def departed(self) -> bool:
        return False

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    async def switch(self, headers: Mapping[str, str]) -> None:
        await self.start(101, headers)

    async def wait_departed(self) -> None:
        await asyncio.Event().wait()

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        await self.start(status, headers)
        await self.write(body)
        await self.finish()

    async def start(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        assert not self.committed
        self.status, self.headers = status, headers
        self.started.set()

    async def write(self, data: bytes) -> None:
        assert self.committed
        assert not self.finished
        assert not self._writing, "two writers at a time"
        assert data, "an empty write says nothing"
        self._writing = True
        try:
            await self.gate.wait()
            if len(self.writes) + 1 == self.fail_at:
                raise CallerDeparted
            self.writes.append(data)
        finally:
            self._writing = False
        async with self.wrote:
            self.wrote.notify_all()

    async def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        raise AssertionError("the relay never aborts")

    async def until(self, count: int) -> None:
        async with self.wrote:
            await self.wrote.wait_for(lambda: len(self.writes) >= count)


class NoBody:
    async def read_all(self, limit: int) -> bytes:
        raise AssertionError("the relay reads no request")

    def chunks(self) -> Any:
        raise AssertionError("the relay reads no request")


def make_exchange(
    spec: EndpointSpec = CHAT,
    *,
    stream: bool = True,
    include_usage: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    request = InboundRequest("r1", spec, "POST", "/v1/x", dict(headers or {}), NoBody())
    exchange = Exchange(request=request, snapshot=Snapshot(), timings=Timings(arrived=1.0))
    exchange.payload = Payload(
        document={}, requested="my-gpt", stream=stream, include_usage=include_usage
    )
    exchange.phase = Phase.DISPATCHED
    return exchange


class Case:
    """One relay run and all that takes part in it."""

    def __init__(
        self,
        answer: ScriptedAnswer,
        *,
        keepalive_s: float = LONG_S,
        exchange: Exchange | None = None,
        reply: RecordedReply | None = None,
    ) -> None:
        self.answer = answer
        self.exchange = exchange or make_exchange()
        self.reply = reply or RecordedReply()
        self.meter = UsageMeter(self.exchange.request.spec)
        self._relay = Relay(clock=TickingClock(), keepalive_s=keepalive_s)

    async def run(self) -> None:
        before = asyncio.all_tasks()
        try:
            await self._relay.relay(
                self.exchange,
                self.answer,
                self.reply,
                headers={"x-aisix-call-id": "r1"},
                meter=self.meter,
            )
        finally:
            assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


async def turns(count: int) -> None:
    """Let all that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def documents(wire: bytes) -> list[Any]:
    lines = [line for line in wire.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_stream_is_relayed_with_its_head_marks_and_end() -> None:
    usage = to_event(frame(choices=[], usage=usage_block(4, 2)))
    case = Case(ScriptedAnswer(to_event(prompt_annotation()), ROLE, WORD, STOP, usage, DONE))
    await case.run()
    assert case.reply.status == case.exchange.status == 200
    assert case.reply.headers == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "x-aisix-call-id": "r1",
    }
    assert len(case.reply.writes) == 4
    assert {document["model"] for document in documents(case.reply.body)} == {"my-gpt"}
    assert case.reply.body.endswith(DONE)
    assert case.reply.finished
    assert case.exchange.phase is Phase.COMMITTED
    assert case.meter.usage(0).total_tokens == 6
    timings = case.exchange.timings
    assert (timings.upstream_first_byte, timings.upstream_last_byte) == (5.0, 9.0)
    assert timings.first_out < timings.first_token


@pytest.mark.gen_test
async def test_what_one_read_brought_goes_out_in_one_write() -> None:
    case = Case(ScriptedAnswer(ROLE + WORD + WORD[:20], WORD[20:] + STOP + DONE))
    await case.run()
    assert [write.count(b"data: ") for write in case.reply.writes] == [2, 3]


@pytest.mark.gen_test
async def test_the_usage_chunk_passes_when_asked_for() -> None:
    usage = to_event(frame(choices=[], usage=usage_block(4, 2)))
    case = Case(ScriptedAnswer(WORD, STOP, usage, DONE), exchange=make_exchange(include_usage=True))
    await case.run()
    assert documents(case.reply.body)[-1]["usage"] == usage_block(4, 2)


@pytest.mark.gen_test
async def test_the_request_header_keeps_extensions() -> None:
    exchange = make_exchange(headers={"x-aisix-azure-extensions": " Keep"})
    case = Case(ScriptedAnswer(WORD, to_event(annotation()), STOP, DONE), exchange=exchange)
    await case.run()
    assert b"content_filter_offsets" in case.reply.body


@pytest.mark.gen_test
async def test_an_error_that_comes_first_is_raised_before_the_commit_point() -> None:
    case = Case(ScriptedAnswer(b": hello\n\n", to_event(prompt_annotation()), IN_BAND))
    with pytest.raises(UpstreamBroken) as caught:
        await case.run()
    assert caught.value.status == 429
    assert not case.reply.committed
    assert case.exchange.phase is Phase.DISPATCHED
    assert case.exchange.status == 0


@pytest.mark.gen_test
async def test_an_error_in_the_first_read_wins_over_what_came_before_it() -> None:
    case = Case(ScriptedAnswer(ROLE + IN_BAND))
    with pytest.raises(UpstreamBroken):
        await case.run()
    assert not case.reply.committed


@pytest.mark.gen_test
async def test_a_late_error_is_raised_after_the_events_before_it() -> None:
    case = Case(ScriptedAnswer(ROLE, WORD + IN_BAND))
    with pytest.raises(UpstreamBroken):
        await case.run()
    assert case.exchange.phase is Phase.COMMITTED
    assert documents(case.reply.body)[-1]["choices"][0]["delta"] == {"content": "hi"}
    assert not case.reply.finished


@pytest.mark.gen_test
async def test_a_comment_waits_for_the_first_event() -> None:
    case = Case(ScriptedAnswer(b": hello\n\n", WORD, STOP, DONE))
    await case.run()
    assert case.reply.writes[0].startswith(b": hello\n\ndata: ")


@pytest.mark.gen_test
async def test_comments_without_end_commit_the_stream() -> None:
    comment = b": " + b"x" * (HELD_BYTES // 2) + b"\n\n"
    case = Case(ScriptedAnswer(comment, comment, IN_BAND))
    with pytest.raises(UpstreamBroken):
        await case.run()
    assert case.reply.writes == [comment * 2]


@pytest.mark.gen_test
async def test_a_complete_stream_without_end_mark_is_given_one() -> None:
    case = Case(ScriptedAnswer(WORD, STOP))
    await case.run()
    assert case.reply.body.endswith(DONE)
    assert case.reply.finished


@pytest.mark.gen_test
async def test_a_connection_cut_after_the_last_finish_reason_is_an_end() -> None:
    case = Case(ScriptedAnswer(WORD, STOP + b"data: {", UpstreamBroken("cut", kind="cut")))
    await case.run()
    assert case.reply.body.endswith(b"\n\n" + DONE)


@pytest.mark.parametrize(
    "failure",
    [None, UpstreamBroken("cut", kind="cut"), UpstreamTimeout("idle", phase="idle")],
)
@pytest.mark.gen_test
async def test_a_stream_that_breaks_off_is_a_failure_without_end_mark(
    failure: Exception | None,
) -> None:
    case = Case(ScriptedAnswer(WORD, *([failure] if failure else [])))
    with pytest.raises((UpstreamBroken, UpstreamTimeout)):
        await case.run()
    assert DONE not in case.reply.body
    assert not case.reply.finished
    assert case.exchange.timings.upstream_last_byte == 9.0


@pytest.mark.gen_test
async def test_an_empty_stream_becomes_an_error_status() -> None:
    case = Case(ScriptedAnswer())
    with pytest.raises(UpstreamBroken) as caught:
        await case.run()
    assert caught.value.type == "stream_aborted"
    assert not case.reply.committed


@pytest.mark.gen_test
async def test_an_end_mark_alone_passes() -> None:
    case = Case(ScriptedAnswer(DONE))
    await case.run()
    assert case.reply.body == DONE


@pytest.mark.gen_test
async def test_a_stream_of_comments_alone_is_ended_on_an_endpoint_without_end_rule() -> None:
    case = Case(ScriptedAnswer(b":\n\n"), exchange=make_exchange(OTHER))
    await case.run()
    assert case.reply.writes == [b":\n\n"]
    assert case.reply.finished


@pytest.mark.gen_test
async def test_an_empty_stream_stays_empty_on_an_endpoint_without_end_rule() -> None:
    case = Case(ScriptedAnswer(), exchange=make_exchange(OTHER))
    await case.run()
    assert case.reply.status == 200
    assert case.reply.writes == []
    assert case.reply.finished


@pytest.mark.parametrize(
    "after", [b"", WORD, UpstreamBroken("cut", kind="cut"), UpstreamTimeout("idle", phase="idle")]
)
@pytest.mark.gen_test
async def test_nothing_is_read_behind_the_end_mark(after: bytes | Exception) -> None:
    case = Case(ScriptedAnswer(WORD, STOP + DONE, after))
    await case.run()
    assert case.reply.body.endswith(DONE)
    assert case.answer.reads == 2
    assert case.answer.may_end_s > 0, "the upstream may still end its answer properly"


@pytest.mark.gen_test
async def test_a_stream_that_broke_is_not_let_to_end() -> None:
    case = Case(ScriptedAnswer(WORD, UpstreamBroken("cut", kind="cut")))
    with pytest.raises(UpstreamBroken):
        await case.run()
    assert case.answer.may_end_s == 0


@pytest.mark.gen_test
async def test_nothing_is_read_while_a_write_waits() -> None:
    case = Case(ScriptedAnswer(ROLE, WORD, STOP, DONE), keepalive_s=SHORT_S)
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    loop = asyncio.get_running_loop()
    later = asyncio.Event()
    loop.call_later(5 * SHORT_S, later.set)
    await later.wait()
    assert case.answer.reads == 1
    case.reply.gate.set()
    await running
    assert HEARTBEAT not in case.reply.writes[0]
    assert case.reply.finished


# ── heartbeats ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_silence_before_the_first_event_commits_with_a_heartbeat() -> None:
    gate = asyncio.Event()
    answer = ScriptedAnswer(b": up\n\n", gate, WORD, STOP, DONE)
    case = Case(answer, keepalive_s=SHORT_S)
    running = asyncio.create_task(case.run())
    await case.reply.until(2)
    assert case.reply.writes[:2] == [b": up\n\n" + HEARTBEAT, HEARTBEAT]
    assert case.exchange.phase is Phase.COMMITTED
    assert case.exchange.status == 200
    gate.set()
    await running
    assert answer.cancelled_reads == 0
    assert case.reply.body.endswith(DONE)


@pytest.mark.gen_test
async def test_silence_between_events_is_filled() -> None:
    gate = asyncio.Event()
    answer = ScriptedAnswer(WORD, gate, STOP, DONE)
    case = Case(answer, keepalive_s=SHORT_S)
    running = asyncio.create_task(case.run())
    await case.reply.until(4)
    assert case.reply.writes[1:4] == [HEARTBEAT] * 3
    gate.set()
    await running
    assert answer.cancelled_reads == 0
    assert len(documents(case.reply.body)) == 2


@pytest.mark.gen_test
async def test_a_stream_that_talks_gets_no_heartbeat() -> None:
    case = Case(ScriptedAnswer(WORD, STOP, DONE), keepalive_s=LONG_S)
    await case.run()
    assert HEARTBEAT not in case.reply.writes


@pytest.mark.gen_test
async def test_no_keepalive_time_means_no_heartbeat() -> None:
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(5 * SHORT_S, gate.set)
    case = Case(ScriptedAnswer(WORD, gate, STOP, DONE), keepalive_s=0)
    await case.run()
    assert HEARTBEAT not in case.reply.writes


@pytest.mark.parametrize("fail_at", [1, 2])
@pytest.mark.gen_test
async def test_a_heartbeat_that_finds_the_caller_gone_ends_the_wait(fail_at: int) -> None:
    script = [WORD] * (fail_at - 1)
    case = Case(
        ScriptedAnswer(*script, asyncio.Event()),
        keepalive_s=SHORT_S,
        reply=RecordedReply(fail_at=fail_at),
    )
    with pytest.raises(CallerDeparted):
        await case.run()
    assert case.answer.cancelled_reads == 1
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.gen_test
async def test_an_event_waits_for_the_heartbeat_that_is_being_written() -> None:
    gate = asyncio.Event()
    case = Case(ScriptedAnswer(gate, WORD, STOP, DONE), keepalive_s=SHORT_S)
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()  # the heartbeat has sent the head and is held at the gate
    gate.set()
    await turns(5)
    case.reply.gate.set()
    await running
    assert case.reply.writes[0] == HEARTBEAT
    assert case.reply.body.endswith(DONE)


@pytest.mark.gen_test
async def test_an_event_behind_a_heartbeat_that_fails_is_not_written() -> None:
    gate = asyncio.Event()
    case = Case(ScriptedAnswer(gate, WORD), keepalive_s=SHORT_S, reply=RecordedReply(fail_at=1))
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()
    gate.set()
    await turns(5)
    case.reply.gate.set()
    with pytest.raises(CallerDeparted):
        await running
    assert case.reply.writes == []


@pytest.mark.gen_test
async def test_an_event_that_arrives_as_a_heartbeat_fails_is_not_written() -> None:
    gate = asyncio.Event()
    case = Case(ScriptedAnswer(gate, WORD), keepalive_s=SHORT_S, reply=RecordedReply(fail_at=1))
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()
    case.reply.gate.set()
    asyncio.get_running_loop().call_soon(gate.set)  # right behind the failing heartbeat
    with pytest.raises(CallerDeparted):
        await running
    assert case.reply.writes == []


class GoneCaller(RecordedReply):
    """Its caller has gone; a write that finds out also cancels the task, like a shutdown."""

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        if self.task is not None:
            self.task.cancel()
        raise CallerDeparted


@pytest.mark.gen_test
async def test_a_heartbeat_that_fails_does_not_swallow_a_cancellation() -> None:
    reply = GoneCaller()
    case = Case(ScriptedAnswer(asyncio.Event()), keepalive_s=SHORT_S, reply=reply)
    reply.task = asyncio.create_task(case.run())
    with pytest.raises(asyncio.CancelledError):
        await reply.task
    assert reply.task.cancelling() == 1


class TranslatingAnswer(ScriptedAnswer):
    """Says in its own words that a read was cancelled."""

    async def read(self) -> bytes:
        try:
            return await super().read()
        except asyncio.CancelledError:
            raise UpstreamTimeout("idle", phase="idle") from None


@pytest.mark.gen_test
async def test_a_failed_heartbeat_leaves_no_cancellation_behind_in_any_case() -> None:
    case = Case(
        TranslatingAnswer(asyncio.Event()), keepalive_s=SHORT_S, reply=RecordedReply(fail_at=1)
    )
    with pytest.raises(UpstreamTimeout):
        await case.run()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.gen_test
async def test_a_write_moves_the_next_heartbeat_but_does_not_lose_it() -> None:
    """The timer of the first silence fires into a stream that has spoken since."""
    spoke, done = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.03, spoke.set)
    case = Case(ScriptedAnswer(spoke, WORD, done, STOP, DONE), keepalive_s=0.05)
    running = asyncio.create_task(case.run())
    await case.reply.until(2)
    assert case.reply.writes[-1] == HEARTBEAT
    done.set()
    await running
    assert len(documents(case.reply.body)) == 2


@pytest.mark.gen_test
async def test_a_failure_waits_for_the_heartbeat_that_is_being_written() -> None:
    """Else the late error event could be written into the middle of it."""
    gate = asyncio.Event()
    case = Case(ScriptedAnswer(gate, UpstreamTimeout("idle", phase="idle")), keepalive_s=SHORT_S)
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()
    gate.set()
    asyncio.get_running_loop().call_soon(case.reply.gate.set)
    with pytest.raises(UpstreamTimeout):
        await running
    assert case.reply.writes == [HEARTBEAT]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.gen_test
async def test_a_cancelled_relay_leaves_nothing_running(held: bool) -> None:
    case = Case(ScriptedAnswer(asyncio.Event()), keepalive_s=SHORT_S)
    if held:
        case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert case.answer.cancelled_reads == 1
    count = len(case.reply.writes)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(3 * SHORT_S, later.set)
    await later.wait()
    assert len(case.reply.writes) == count


@pytest.mark.gen_test
async def test_cancelling_while_an_event_waits_for_a_heartbeat_ends_both() -> None:
    gate = asyncio.Event()
    case = Case(ScriptedAnswer(gate, WORD), keepalive_s=SHORT_S)
    case.reply.gate.clear()
    running = asyncio.create_task(case.run())
    await case.reply.started.wait()
    gate.set()
    await turns(5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert case.reply.writes == []


@pytest.mark.gen_test
async def test_a_caller_found_gone_by_a_write_is_reported() -> None:
    case = Case(ScriptedAnswer(WORD, WORD), reply=RecordedReply(fail_at=2))
    with pytest.raises(CallerDeparted):
        await case.run()


@pytest.mark.gen_test
async def test_a_timeout_that_is_not_ours_is_passed_on() -> None:
    case = Case(ScriptedAnswer(WORD, TimeoutError("of the test")))
    with pytest.raises(TimeoutError, match="of the test"):
        await case.run()


# ── whole answers and other content ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "text/plain", None])
@pytest.mark.gen_test
async def test_a_json_answer_is_sent_whole_even_when_a_stream_was_asked(
    stream: bool, content_type: str | None
) -> None:
    body = b'{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
    answer = ScriptedAnswer(body[:10], body[10:], content_type=content_type)
    case = Case(answer, exchange=make_exchange(stream=stream))
    await case.run()
    assert json.loads(case.reply.body)["model"] == "my-gpt"
    assert case.reply.headers == {"Content-Type": "application/json", "x-aisix-call-id": "r1"}
    assert case.exchange.status == case.reply.status == 200
    assert case.exchange.phase is Phase.COMMITTED
    assert case.exchange.timings.first_out > 0
    assert case.meter.usage(0).total_tokens == 4
    assert case.reply.finished


@pytest.mark.gen_test
async def test_an_answer_that_cannot_be_decoded_is_an_error_before_the_commit_point() -> None:
    answer = ScriptedAnswer(b"<html>", content_type="text/html")
    case = Case(answer, exchange=make_exchange(stream=False))
    with pytest.raises(UpstreamBroken) as caught:
        await case.run()
    assert caught.value.type == "upstream_decode_error"
    assert not case.reply.committed


@pytest.mark.gen_test
async def test_other_content_passes_piece_by_piece() -> None:
    answer = ScriptedAnswer(b"\x00mp3", b"more", content_type="audio/mpeg")
    case = Case(answer, exchange=make_exchange(OTHER, stream=False))
    await case.run()
    assert case.reply.writes == [b"\x00mp3", b"more"]
    assert case.reply.headers == {"Content-Type": "audio/mpeg", "x-aisix-call-id": "r1"}
    assert case.reply.finished
    assert case.exchange.phase is Phase.COMMITTED
    assert case.exchange.timings.first_out > 0


@pytest.mark.gen_test
async def test_other_content_that_fails_at_once_is_an_error_before_the_commit_point() -> None:
    answer = ScriptedAnswer(UpstreamBroken("cut", kind="cut"), content_type="audio/mpeg")
    case = Case(answer, exchange=make_exchange(OTHER, stream=False))
    with pytest.raises(UpstreamBroken):
        await case.run()
    assert not case.reply.committed


def test_a_late_error_is_an_event_that_sdks_read() -> None:
    event = error_event({"error": {"message": "a\nb/c\ud83d", "type": "t"}})
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 3
    assert json.loads(event.split(b"data: ")[1])["error"]["message"] == "a\nb/c\ud83d"
