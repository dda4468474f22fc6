"""What only the transport in memory does: scripts, counts and default answers."""

from __future__ import annotations

import asyncio

import pytest

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamBroken, UpstreamUnreachable
from aisix.transport.memory import MemoryAnswer, MemoryTransport


class SteppedClock:
    """Each look is one second later."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def time(self) -> float:
        return self.now


NONE = Deadlines(0, 0, 0, 0)


def call(name: str = "a") -> UpstreamCall:
    return UpstreamCall(UpstreamTarget("POST", f"http://memory.test/{name}"), [], b"{}", NONE)


def transport(*answers: MemoryAnswer, respond=None) -> MemoryTransport:
    return MemoryTransport(SteppedClock(), respond).script(*answers)


async def fetch(on: MemoryTransport, wanted: UpstreamCall) -> tuple[int, bytes]:
    async with on.open(wanted) as answer:
        return answer.status, await answer.read_all()


@pytest.mark.gen_test
async def test_scripts_are_used_in_order_and_then_the_default_answers():
    on = transport(
        MemoryAnswer(201),
        MemoryAnswer(202),
        respond=lambda wanted: MemoryAnswer(pieces=[wanted.target.url.encode()[-1:]]),
    )
    calls = [call("x"), call("y"), call("z")]
    assert [await fetch(on, wanted) for wanted in calls] == [(201, b""), (202, b""), (200, b"z")]
    assert on.calls == calls
    assert on.bodies == [b"{}"] * 3
    assert (on.opened, on.closed, on.closed_early) == (3, 3, 0)


@pytest.mark.gen_test
async def test_a_call_nobody_scripted_is_a_mistake_of_the_test():
    with pytest.raises(LookupError, match="no answer is scripted"):
        await fetch(transport(), call())


@pytest.mark.gen_test
async def test_the_clock_stamps_the_head_and_each_piece():
    async with transport(MemoryAnswer(pieces=[b"a", b"b"])).open(call()) as answer:
        assert (answer.first_byte_at, answer.last_byte_at) == (1, 1)
        await answer.read()
        assert answer.last_byte_at == 2
        await answer.read()
        await answer.read()
        assert (answer.first_byte_at, answer.last_byte_at) == (1, 3)


@pytest.mark.gen_test
async def test_an_answer_read_to_its_last_step_is_not_left_early():
    on = transport(*[MemoryAnswer(pieces=[b"a", b"b"])] * 2)
    async with on.open(call()) as answer:
        assert [await answer.read(), await answer.read()] == [b"a", b"b"]
    assert on.closed_early == 0
    async with on.open(call()) as answer:
        await answer.read()
    assert on.closed_early == 1


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "script",
    [
        MemoryAnswer(connecting=[UpstreamUnreachable("no")]),
        MemoryAnswer(before=[UpstreamUnreachable("no")]),
        MemoryAnswer(pieces=[b"x", UpstreamBroken("cut", kind="cut"), b"never"]),
    ],
)
async def test_a_failed_answer_is_not_left_early(script):
    on = transport(script)
    with pytest.raises((UpstreamUnreachable, UpstreamBroken)):
        await fetch(on, call())
    assert (on.opened, on.closed, on.closed_early) == (1, 1, 0)


@pytest.mark.gen_test
async def test_a_watcher_sees_a_departure():
    on = transport(MemoryAnswer(before=[asyncio.Event()]))
    task = asyncio.create_task(fetch(on, call()))
    await on.until(lambda: on.opened == 1)
    watcher = asyncio.create_task(on.until(lambda: on.closed_early == 1))
    task.cancel()
    await asyncio.wait_for(watcher, 5)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.gen_test
async def test_a_step_that_was_set_before_is_no_silence():
    gate = asyncio.Event()
    gate.set()
    on = transport(MemoryAnswer(before=[gate], connecting=[gate], pieces=[gate, b"x", gate]))
    assert await fetch(on, call()) == (200, b"x")
