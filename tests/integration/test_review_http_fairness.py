"""Found by the review: a caller that never pauses must not have the loop to itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from aisix.core.request import InboundRequest
from aisix.web.intake import READ_BYTES
from tests.support.front import StubPipeline, request, serve_proxy, until
from tests.support.hygiene import PATH


class Turns:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()


async def served_per_turn(sent: bytes, count: int) -> list[int]:
    """How many of the `count` requests in `sent`, which comes at once, each turn answered."""
    served: Counter[int] = Counter()
    turns = Turns()

    async def at_once(_inbound: InboundRequest, reply: Any) -> None:
        served[turns.count] += 1
        await reply.send(200, {}, b"")

    async with serve_proxy(StubPipeline(at_once)) as front, front.caller() as caller:
        sending = asyncio.ensure_future(caller.send(sent))
        await until(lambda: served.total() == count)
        turns.stop()
        await sending
    return list(served.values())


@pytest.mark.gen_test
async def test_requests_that_were_sent_ahead_take_a_turn_each():
    """Neither reading what is there nor a small answer has to wait, so nothing else did."""
    assert max(await served_per_turn(request("GET", PATH) * 15, 15)) == 1


@pytest.mark.gen_test
async def test_requests_that_come_without_a_pause_leave_the_loop_its_turns():
    """Each of them is read when the one before has been answered, and is always there."""
    size = READ_BYTES
    head = request("POST", PATH, headers={"Content-Length": "0"})
    filler = "x" * (size - len(head) - len("X-Pad: \r\n") - 2)
    one = request("POST", PATH, headers={"Content-Length": "0", "X-Pad": filler})
    assert max(await served_per_turn(one * 20, 20)) == 1
