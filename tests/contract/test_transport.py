"""What every Transport does: libcurl on real sockets, and the one in memory for other tests."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator

import pytest

from aisix.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.memory import MemoryAnswer
from tests.support.transports import bench

H2 = pytest.param(
    "curl-h2",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("h2") is None, reason="needs the package h2 (requirements-dev.txt)"
    ),
)
pytestmark = pytest.mark.parametrize("form", ["curl", "curl-tls", H2, "memory"])

CUT = UpstreamBroken("cut", kind="cut")


def silence() -> list[asyncio.Event]:
    """A step that never ends. Made in the test: an event belongs to one loop."""
    return [asyncio.Event()]


async def everything(answer) -> bytes:
    pieces = []
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.gen_test
async def test_the_head_is_known_before_the_body(form):
    gate = asyncio.Event()
    script = MemoryAnswer(429, {"Retry-After": "7", "X-MS-Region": "West"}, pieces=[gate, b"{}"])
    async with bench(form, script) as found, found.transport.open(found.call()) as answer:
        assert answer.status == 429
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["x-ms-region"] == "West"
        gate.set()
        assert await answer.read_all() == b"{}"


@pytest.mark.gen_test
async def test_pieces_come_in_order_and_the_end_stays_the_end(form):
    gates = [asyncio.Event() for _ in range(3)]
    pieces: list[bytes | asyncio.Event] = [b"one", gates[0], b"two", gates[1], b"three", gates[2]]
    async with (
        bench(form, MemoryAnswer(pieces=pieces)) as found,
        found.transport.open(found.call()) as answer,
    ):
        seen = []
        for gate in gates:
            seen.append(await answer.read())
            gate.set()
        assert seen == [b"one", b"two", b"three"]
        assert await answer.read() == b""
        assert await answer.read() == b""


@pytest.mark.gen_test
async def test_the_stamps_follow_the_bytes(form):
    gate = asyncio.Event()
    script = MemoryAnswer(pieces=[b"one", gate, b"two"])
    async with bench(form, script) as found, found.transport.open(found.call()) as answer:
        assert 0 < answer.first_byte_at <= answer.last_byte_at
        await answer.read()
        before = answer.last_byte_at
        gate.set()
        await everything(answer)
        assert answer.first_byte_at <= before < answer.last_byte_at


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_an_empty_answer_is_at_its_end_at_once(form, status):
    async with (
        bench(form, MemoryAnswer(status)) as found,
        found.transport.open(found.call()) as answer,
    ):
        assert answer.status == status
        assert await answer.read() == b""


@pytest.mark.gen_test
async def test_the_rest_can_be_read_at_once_and_cut_off(form):
    script = MemoryAnswer(500, pieces=[b"a" * 100, b"b" * 100, b"c" * 100])
    async with bench(form, script, script, script) as found:
        async with found.transport.open(found.call()) as answer:
            assert await answer.read_all(150) == b"a" * 100 + b"b" * 50
        async with found.transport.open(found.call()) as answer:
            assert len(await answer.read_all(1000)) == 300
        async with found.transport.open(found.call()) as answer:
            assert len(await answer.read_all()) == 300


@pytest.mark.gen_test
async def test_a_cut_answer_gives_what_came_and_then_breaks_for_good(form):
    gate = asyncio.Event()
    async with (
        bench(form, MemoryAnswer(pieces=[b"half", gate, CUT])) as found,
        found.transport.open(found.call()) as answer,
    ):
        assert await answer.read() == b"half"
        gate.set()
        for _ in range(2):
            with pytest.raises(UpstreamBroken) as caught:
                await answer.read()
            assert caught.value.kind == "cut"
            assert caught.value.code == "stream_aborted"


@pytest.mark.gen_test
async def test_a_close_before_the_head_is_unreachable(form):
    script = MemoryAnswer(before=[UpstreamUnreachable("upstream closed the connection")])
    async with bench(form, script) as found:
        with pytest.raises(UpstreamUnreachable) as caught:
            async with found.transport.open(found.call()):
                pytest.fail("there was no answer")
        assert "127.0.0.1" not in caught.value.message


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("phase", "script", "deadlines"),
    [
        ("connect", lambda: MemoryAnswer(connecting=silence()), {"connect_s": 0.11, "total_s": 9}),
        (
            "first_byte",
            lambda: MemoryAnswer(before=silence()),
            {"first_byte_s": 0.11, "total_s": 9},
        ),
        (
            "idle",
            lambda: MemoryAnswer(pieces=[b"x", *silence()]),
            {"idle_s": 0.11, "first_byte_s": 9},
        ),
        ("total", lambda: MemoryAnswer(before=silence()), {"first_byte_s": 9, "total_s": 0.11}),
        ("total", lambda: MemoryAnswer(pieces=[b"x", *silence()]), {"idle_s": 9, "total_s": 0.11}),
    ],
    ids=["connect", "first_byte", "idle", "total-before-head", "total-in-body"],
)
async def test_each_deadline_ends_the_call_in_its_own_phase(form, phase, script, deadlines):
    async with bench(form, script()) as found:
        with pytest.raises(UpstreamTimeout) as caught:
            async with found.transport.open(found.call(**deadlines)) as answer:
                assert await answer.read() == b"x"
                await answer.read()
        assert caught.value.phase == phase
        assert caught.value.message == "upstream request timed out after 110ms"
        assert caught.value.status == 504


@pytest.mark.gen_test
async def test_a_deadline_stays_passed(form):
    script = MemoryAnswer(pieces=silence())
    async with (
        bench(form, script) as found,
        found.transport.open(found.call(idle_s=0.05)) as answer,
    ):
        for _ in range(2):
            with pytest.raises(UpstreamTimeout):
                await answer.read()


@pytest.mark.gen_test
async def test_without_deadlines_silence_is_waited_out(form):
    gate = asyncio.Event()
    script = MemoryAnswer(before=[gate], pieces=[gate, b"late"])
    async with bench(form, script) as found:
        asyncio.get_running_loop().call_later(0.1, gate.set)
        async with found.transport.open(found.call()) as answer:
            assert await answer.read_all() == b"late"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "script",
    [
        lambda: MemoryAnswer(before=silence()),
        lambda: MemoryAnswer(pieces=silence()),
        lambda: MemoryAnswer(pieces=[b"x", *silence()]),
        lambda: MemoryAnswer(pieces=[b"x" * 16384] * 4000),
    ],
    ids=["before-head", "before-body", "idle", "streaming"],
)
async def test_a_cancelled_caller_leaves_the_upstream_at_once(form, script):
    answers = script()
    at_work = asyncio.Event()

    async def work() -> None:
        async with found.transport.open(found.call()) as answer:
            at_work.set()
            while await answer.read():
                await asyncio.sleep(0)

    async with bench(form, answers) as found:
        task = asyncio.create_task(work())
        await found.asked()
        if not answers.before:
            await at_work.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await found.departed()


@pytest.mark.gen_test
async def test_leaving_early_ends_the_transfer(form):
    script = MemoryAnswer(pieces=[b"one", *silence()])
    async with bench(form, script) as found:
        async with found.transport.open(found.call()) as answer:
            assert await answer.read() == b"one"
        await found.departed()


@pytest.mark.gen_test
async def test_an_error_inside_the_block_ends_the_transfer_and_passes_through(form):
    async with bench(form, MemoryAnswer(pieces=silence())) as found:
        with pytest.raises(ZeroDivisionError):
            async with found.transport.open(found.call()):
                raise ZeroDivisionError
        await found.departed()


@pytest.mark.gen_test
async def test_a_cancelled_read_loses_nothing(form):
    gate = asyncio.Event()
    script = MemoryAnswer(pieces=[b"one", gate, b"two"])
    async with bench(form, script) as found, found.transport.open(found.call()) as answer:
        assert await answer.read() == b"one"
        pending = asyncio.create_task(answer.read())
        await asyncio.sleep(0)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        gate.set()
        assert await everything(answer) == b"two"


@pytest.mark.gen_test
async def test_a_body_source_is_sent_whole(form):
    async def source() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        await asyncio.sleep(0)
        yield b"two"

    async with bench(form, MemoryAnswer(pieces=[b"ok"]), MemoryAnswer()) as found:
        async with found.transport.open(found.call(source())) as answer:
            assert await answer.read_all() == b"ok"
        async with found.transport.open(found.call(b"\0three\0")):
            pass
        assert found.bodies == [b"one two", b"\0three\0"]


@pytest.mark.gen_test
async def test_an_error_of_the_body_source_is_raised_to_the_opener(form):
    async def source() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async with bench(form, MemoryAnswer()) as found:
        with pytest.raises(ZeroDivisionError):
            async with found.transport.open(found.call(source())):
                pytest.fail("there was no answer")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "script",
    [lambda: MemoryAnswer(before=silence()), lambda: MemoryAnswer(pieces=silence())],
    ids=["head", "body"],
)
async def test_closing_ends_what_is_in_flight(form, script):
    answers = script()
    at_work = asyncio.Event()

    async def work() -> None:
        async with found.transport.open(found.call()) as answer:
            at_work.set()
            await answer.read()

    async with bench(form, answers) as found:
        task = asyncio.create_task(work())
        await found.asked()
        if not answers.before:
            await at_work.wait()
        await found.transport.close()
        with pytest.raises(UpstreamUnreachable):
            await asyncio.wait_for(task, 5)
        await found.transport.close()
        with pytest.raises(UpstreamUnreachable):
            async with found.transport.open(found.call()):
                pytest.fail("it was closed")


@pytest.mark.gen_test
async def test_many_calls_run_side_by_side(form):
    pieces = [b"data: %d\n\n" % number for number in range(20)]
    script = MemoryAnswer(pieces=pieces)
    expected = b"".join(pieces)

    async def one() -> bytes:
        async with found.transport.open(found.call()) as answer:
            return await everything(answer)

    async with bench(form, *[script] * 200) as found:
        assert await asyncio.gather(*(one() for _ in range(200))) == [expected] * 200
