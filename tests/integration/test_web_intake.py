"""Reading a caller's socket: straight, handed back to IOStream, and closed at any moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tornado.iostream import IOStream, StreamClosedError

from aisix.web.intake import READ_BYTES, Intake

WAIT_S = 10.0


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Intake, IOStream, socket.socket]]:
    """An intake, its stream, and the caller's end."""
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    intake = Intake(stream, plain=True)
    try:
        yield intake, stream, theirs
    finally:
        intake.close()
        theirs.close()


async def got(reading: asyncio.Future[bytes]) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await reading


def listened_to(number: int) -> bool:
    """Whether the loop watches this descriptor, whoever asked for it."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    return number in selector.get_map()


@pytest.mark.gen_test
async def test_pieces_come_in_order_one_for_each_read() -> None:
    async with line() as (intake, _, caller):
        for piece in (b"a", b"bc", b"d" * 1_000):
            caller.send(piece)
            assert await got(intake.read()) == piece


@pytest.mark.gen_test
async def test_a_read_takes_at_most_its_size() -> None:
    async with line() as (intake, _, caller):
        caller.setblocking(False)
        sent = caller.send(b"x" * (2 * READ_BYTES))
        first = await got(intake.read())
        assert 0 < len(first) <= READ_BYTES
        rest = bytearray()
        while len(first) + len(rest) < sent:
            rest += await got(intake.read())


@pytest.mark.gen_test
async def test_the_end_fails_the_read_and_every_later_one() -> None:
    async with line() as (intake, stream, caller):
        reading = intake.read()
        caller.close()
        with pytest.raises(StreamClosedError):
            await got(reading)
        assert stream.closed()
        with pytest.raises(StreamClosedError):
            intake.read()


@pytest.mark.gen_test
async def test_closing_fails_the_read_that_waits_and_leaves_nothing_with_the_loop() -> None:
    async with line() as (intake, stream, _):
        reading = intake.read()
        number = stream.socket.fileno()
        assert listened_to(number)
        intake.close()
        intake.close()
        with pytest.raises(StreamClosedError):
            await got(reading)
        assert not listened_to(number)


@pytest.mark.gen_test
async def test_what_nobody_wants_to_read_is_not_listened_to() -> None:
    async with line() as (intake, stream, caller):
        caller.send(b"a")
        await got(intake.read())
        caller.send(b"b")
        for _ in range(3):  # turns of the loop, each of which asks the selector
            await asyncio.sleep(0)
        assert not listened_to(stream.socket.fileno())
        assert await got(intake.read()) == b"b"


@pytest.mark.gen_test
async def test_a_cancelled_read_loses_nothing() -> None:
    async with line() as (intake, _, caller):
        intake.read().cancel()
        caller.send(b"a")
        assert await got(intake.read()) == b"a"


@pytest.mark.gen_test
async def test_a_read_that_waits_goes_on_when_the_stream_takes_over() -> None:
    async with line() as (intake, stream, caller):
        reading = intake.read()
        intake.hand_back()
        intake.hand_back()
        assert stream.reading()
        caller.send(b"a")
        assert await got(reading) == b"a"
        caller.send(b"b")
        assert await got(intake.read()) == b"b"


@pytest.mark.parametrize("ends", ["they leave", "we close", "already"])
@pytest.mark.gen_test
async def test_a_read_handed_over_fails_with_the_stream(ends: str) -> None:
    async with line() as (intake, stream, caller):
        reading = intake.read()
        if ends == "already":
            stream.close()
        intake.hand_back()
        if ends == "they leave":
            caller.close()
        elif ends == "we close":
            intake.close()
        with pytest.raises(StreamClosedError):
            await got(reading)


@pytest.mark.gen_test
async def test_a_stream_that_waits_for_room_does_not_take_the_bytes_from_us() -> None:
    """IOStream listens for reads after a write that had to wait: it must be the reader then."""
    async with line() as (intake, stream, caller):
        reading = intake.read()
        intake.hand_back()
        written = stream.write(b"x" * 4_000_000)
        assert stream.writing()
        loop = asyncio.get_running_loop()
        caller.setblocking(False)
        async with asyncio.timeout(WAIT_S):
            received = 0
            while received < 4_000_000:
                received += len(await loop.sock_recv(caller, 1 << 20))
            await written
        caller.send(b"next")
        assert await got(reading) == b"next"
