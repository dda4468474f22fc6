"""A departure at every await of the pipeline: the invariants hold wherever it strikes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from aisix.core.endpoints import ENDPOINTS, Action, EndpointSpec
from aisix.core.ports import UpstreamAnswer, UpstreamCall
from aisix.limits.buckets import Charge, Decision, Slot
from aisix.limits.local import LocalBuckets
from aisix.transport.memory import MemoryTransport
from tests.support.pipeline import GivenBody, Harness
from tests.support.reply import RecordingReply
from tests.support.rows import DONE, delta, good_answer, good_content, streamed, usage_event


class TurningTransport(MemoryTransport):
    """A transport whose every door takes a turn of the loop."""

    @asynccontextmanager
    async def open(self, call: UpstreamCall) -> AsyncIterator[UpstreamAnswer]:
        await asyncio.sleep(0)
        async with super().open(call) as answer:
            await asyncio.sleep(0)
            read = answer.read

            async def turning_read() -> bytes:
                await asyncio.sleep(0)
                return await read()

            answer.read = turning_read  # type: ignore[method-assign]
            yield answer
        await asyncio.sleep(0)


class TurningBuckets(LocalBuckets):
    """Buckets that live somewhere else."""

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        await asyncio.sleep(0)
        decision = await super().take(charges, slots)
        return decision


class TurningReply(RecordingReply):
    """A caller whose socket takes a turn for each write."""

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        await super().write(data)
        await asyncio.sleep(0)

    async def finish(self) -> None:
        await asyncio.sleep(0)
        await super().finish()


class TurningBody(GivenBody):
    """A body that arrives a turn later."""

    async def read_all(self, limit: int) -> bytes:
        await asyncio.sleep(0)
        return await super().read_all(limit)

    def chunks(self) -> AsyncIterator[bytes]:
        return TurningPieces(super().chunks())


class TurningPieces:
    """Each piece comes a turn later."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> TurningPieces:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        return await anext(self._pieces)


class TurningHarness(Harness):
    """Every await is a real one."""

    transport_type = TurningTransport
    buckets_type = TurningBuckets
    reply_type = TurningReply


MODES = [
    pytest.param(spec, stream, id=f"{spec.operation}-{'stream' if stream else 'whole'}")
    for spec in ENDPOINTS
    if spec.action is Action.RELAY
    for stream in ((False, True) if spec.may_stream else (False,))
]


@pytest.mark.parametrize(("spec", "stream"), MODES)
@pytest.mark.parametrize("departed", [True, False], ids=["caller-left", "process-ends"])
@pytest.mark.gen_test
async def test_cancelled_after_any_number_of_turns(
    spec: EndpointSpec, stream: bool, departed: bool
):
    """Each round lets the loop turn once more before the cancellation, until the request wins."""
    for turns in range(200):
        harness = TurningHarness(keepalive_s=30.0)
        harness.transport.script(good_answer(spec, stream=stream))
        body = TurningBody(good_content(spec, stream=stream))
        run = harness.start(spec, body=body, stream=stream)
        for _ in range(turns):
            await asyncio.sleep(0)
        if run.task.done():
            assert turns > 5
            return
        run.reply.departed = departed
        run.task.cancel()
        await run.ended()
        if harness.recorder.started == 0:
            continue  # the task had not begun: there was no exchange
        exchange = await harness.audit()
        assert (exchange.status == 499) is departed or exchange.outcome == "success"
    pytest.fail("the request never came to its end")


@pytest.mark.gen_test
async def test_a_second_cancellation_while_the_error_is_written():
    """A shutdown writes its error event; a caller leaving then changes nothing about settlement."""
    spec = ENDPOINTS[0]
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello"), asyncio.Event()]))
    run = harness.start(spec, stream=True)
    await run.reply.wrote.wait()
    await asyncio.sleep(0)
    run.reply.readable.clear()
    run.task.cancel()
    await asyncio.sleep(0)
    run.reply.leave()
    await run.ended()
    exchange = await harness.audit()
    assert exchange.status == 499


@pytest.mark.gen_test
async def test_a_caller_that_does_not_read_stops_the_pump():
    """Nothing is read from the upstream while a write waits."""
    spec = ENDPOINTS[0]
    harness = Harness()
    pieces = [delta(spec, "x" * 1000) for _ in range(50)]
    harness.transport.script(streamed([*pieces, delta(spec, "", "stop"), usage_event(), DONE]))
    run = harness.start(spec, stream=True)
    run.reply.readable.clear()
    await run.reply.wrote.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(run.reply.pieces) == 1
    run.reply.readable.set()
    await run.ended()
    assert run.reply.body.endswith(DONE)
    assert len(run.reply.pieces) >= 50, "each piece leaves when it comes"
    await harness.audit()
