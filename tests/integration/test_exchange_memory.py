"""What is left of an exchange when it has ended and its connections live on: nothing.

The collector is off while it runs: what a cycle keeps alive counts as left, because under load it
would wait for the collector.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator

import pytest

from aisix.core.exchange import Exchange, Payload, Timings
from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.core.request import InboundRequest
from aisix.core.uplink import Uplink
from aisix.relay.frames import FrameFollower
from aisix.relay.session import Session
from aisix.transport.body import BodyBuffer
from aisix.transport.transfer import Transfer
from aisix.transport.upload import Upload
from aisix.web.body import StreamedBody
from aisix.web.codec import Message
from aisix.web.reply import ConnectionReply
from tests.support.azure import azure
from tests.support.builders import CHAT
from tests.support.front import post, serve_proxy
from tests.support.pipeline import Harness
from tests.support.raw_server import CHUNKED_HEAD, LAST_CHUNK, RawConnection, chunk, raw_server
from tests.support.rows import DONE, delta, good_answer, good_body, refused, streamed
from tests.support.sessions import session_proxy
from tests.support.transports import curl_transport

PATH = "/v1/chat/completions"
OF_AN_EXCHANGE = (
    *(Exchange, Payload, Timings, InboundRequest),
    *(Message, StreamedBody, ConnectionReply),
    *(UpstreamCall, Transfer, BodyBuffer, Upload),
    *(Session, FrameFollower, Uplink),
)


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[str]:
    """How many objects of each kind an exchange is made of there are."""
    kinds = set(OF_AN_EXCHANGE)
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


def forget(harness: Harness) -> None:
    """What only the harness remembers."""
    harness.recorder.newest = None
    harness.recorder.ended.clear()
    harness.log.lines.clear()
    harness.transport.calls.clear()
    harness.transport.bodies.clear()


ANSWERS = {
    "whole": (False, lambda: good_answer(CHAT, stream=False)),
    "stream": (True, lambda: good_answer(CHAT, stream=True)),
    "refusal": (False, lambda: refused(500, {"message": "no"})),
    "cut stream": (True, lambda: streamed([delta(CHAT, "hel")])),
}


@pytest.mark.parametrize(("stream", "answer"), ANSWERS.values(), ids=ANSWERS)
@pytest.mark.gen_test
async def test_a_kept_connection_keeps_nothing_of_its_exchanges(stream, answer):
    before = alive()
    harness = Harness()
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        for _ in range(3):
            harness.transport.script(answer())
            await caller.send(post(PATH, good_body(CHAT, stream=stream)))
            await caller.answer()
            await front.idle()
        forget(harness)
        assert alive() - before == {}


@pytest.mark.gen_test
async def test_a_caller_that_leaves_leaves_nothing_behind():
    before = alive()
    harness = Harness()
    async with serve_proxy(harness.pipeline) as front:
        harness.transport.script(streamed([delta(CHAT, "hel"), asyncio.Event(), DONE]))
        async with front.caller() as caller:
            await caller.send(post(PATH, good_body(CHAT, stream=True)))
            await caller.head()
            await caller.chunk()
        await front.idle()
        forget(harness)
        assert alive() - before == {}


@pytest.mark.parametrize(
    "ending", ["closed", "left", "reset", "closed and left", "refused", "cut", "shut down"]
)
@pytest.mark.gen_test
async def test_a_session_leaves_nothing_behind(ending: str):
    before = alive()
    script = {"refused": "err429", "cut": "cut2"}.get(ending, "n2")
    async with azure(script=script) as simulator, session_proxy(simulator.url) as proxy:
        for count in (1, 2, 3):
            async with proxy.caller() as caller:
                if ending == "refused":
                    await caller.ask()
                    await caller.raw.answer()
                    continue
                await caller.open()
                await caller.say({"type": "response.create"})
                if ending == "closed":
                    await caller.hang_up()
                elif ending == "reset":
                    caller.raw.reset()
                elif ending == "closed and left":
                    await caller.send_close(1000)
                elif ending in ("cut", "shut down"):
                    await caller.event("session.created")
                    if ending == "shut down":
                        proxy.front.state.abort_all()
                    code = await caller.closed()
                    await caller.send_close(code)
                    await caller.raw.rest()
            await proxy.settled(count)
        await proxy.front.idle()
        started = proxy.recorder.started
        proxy.recorder.ended.clear()
        proxy.recorder.newest = None
        proxy.log.lines.clear()
        assert alive() - before == {}
        proxy.recorder.started -= started


@pytest.mark.parametrize("ending", ["whole", "left"])
@pytest.mark.gen_test
async def test_a_transport_keeps_nothing_of_its_calls(ending: str):
    """Neither a handle at rest nor a connection that is kept."""
    before = alive()

    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(CHUNKED_HEAD, chunk(b"one"))
            if ending == "whole":
                await connection.send(LAST_CHUNK)

    async with raw_server(serve) as server, curl_transport() as transport:
        target = UpstreamTarget("POST", server.url("/x"), streaming=True)
        for _ in range(3):
            call = UpstreamCall(target, body=b"{}" * 1000, deadlines=Deadlines())
            async with transport.open(call) as answer:
                assert await answer.read() == b"one"
                while ending == "whole" and await answer.read():
                    pass
            del call, answer
        assert alive() - before == {}
