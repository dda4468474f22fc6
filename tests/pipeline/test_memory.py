"""What an exchange holds while it waits: no more than it may still need."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import pytest

from aisix.core.endpoints import EndpointSpec
from tests.support.builders import CHAT, EMBEDDINGS, make_deployment
from tests.support.pipeline import ENTRA, Harness, Run
from tests.support.rows import DONE, delta, good_answer, refused, streamed

OLD_VERSION = refused(
    400, {"message": "Unrecognized request argument supplied: stream_options", "code": None}
)
WORD = delta(CHAT, "hel")
REST = (delta(CHAT, "lo", "stop"), DONE)


def holds_its_request(harness: Harness) -> bool:
    """Whether the exchange that runs holds the document it was sent, and its bytes."""
    exchange = harness.recorder.newest
    assert exchange is not None
    payload = exchange.payload
    assert payload is not None
    assert bool(payload.raw) is bool(payload.document), "both or none"
    return bool(payload.raw)


async def waiting(harness: Harness, spec: EndpointSpec, *, stream: bool) -> Run:
    """A request that was sent upstream."""
    run = harness.start(spec, stream=stream)
    await harness.transport.until(lambda: harness.transport.opened > 0)
    return run


async def written(run: Run) -> None:
    """Wait for the first word to reach the caller, and for the silence behind it."""
    await run.reply.wrote.wait()
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_a_request_that_needs_no_repair_is_let_go_when_it_is_sent():
    gate = asyncio.Event()
    harness = Harness()
    harness.transport.script(replace(good_answer(EMBEDDINGS, stream=False), before=[gate]))
    run = await waiting(harness, EMBEDDINGS, stream=False)
    assert not holds_its_request(harness)
    gate.set()
    await run.ended()
    assert run.reply.status == 200
    assert (await harness.audit()).outcome == "success"


@pytest.mark.parametrize(
    ("deployment", "stream"),
    [(make_deployment(), True), (make_deployment(credential=ENTRA), False)],
    ids=["stream options", "token"],
)
@pytest.mark.gen_test
async def test_a_request_is_kept_while_it_may_have_to_be_sent_once_more(deployment, stream):
    gate = asyncio.Event()
    harness = Harness(deployment=deployment)
    harness.transport.script(replace(good_answer(CHAT, stream=stream), before=[gate]))
    run = await waiting(harness, CHAT, stream=stream)
    assert holds_its_request(harness)
    gate.set()
    await run.ended()
    assert not holds_its_request(harness)
    assert (await harness.audit()).outcome == "success"


@pytest.mark.gen_test
async def test_a_request_is_let_go_when_its_only_repair_was_made():
    gate = asyncio.Event()
    harness = Harness()
    repaired = replace(good_answer(CHAT, stream=True), before=[gate])
    harness.transport.script(OLD_VERSION, repaired)
    run = harness.start(CHAT, stream=True)
    await harness.transport.until(lambda: harness.transport.opened == 2)
    assert not holds_its_request(harness)
    gate.set()
    await run.ended()
    assert run.reply.body.endswith(DONE)
    await harness.audit()


@pytest.mark.gen_test
async def test_a_silent_stream_holds_nothing_of_its_request_nor_of_what_it_relayed():
    gate = asyncio.Event()
    harness = Harness()
    harness.transport.script(streamed([WORD, gate, *REST]))
    holders = sys.getrefcount(WORD)
    run = harness.start(CHAT, stream=True)
    await written(run)
    assert not holds_its_request(harness)
    assert sys.getrefcount(WORD) == holders, "the piece that came"
    made_of_it = sys.getrefcount(run.reply.pieces[0])
    assert made_of_it == 2, "only the caller has it, and who asks"
    gate.set()
    await run.ended()
    assert (await harness.audit()).outcome == "success"


@pytest.mark.gen_test
async def test_a_stream_whose_caller_is_slow_holds_what_is_to_be_written_alone():
    harness = Harness()
    harness.transport.script(streamed([WORD, *REST]))
    holders = sys.getrefcount(WORD)
    run = harness.start(CHAT, stream=True)
    run.reply.readable.clear()
    await written(run)
    assert sys.getrefcount(WORD) == holders
    run.reply.readable.set()
    await run.ended()
    assert (await harness.audit()).outcome == "success"
