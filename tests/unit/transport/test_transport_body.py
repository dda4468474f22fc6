"""The buffer between libcurl and the reader: bounded, ordered, nothing lost or doubled."""

from __future__ import annotations

import asyncio

import pytest

from aisix.transport.body import HIGH_WATER_BYTES, BodyBuffer, read_all


class Producer:
    """A producer like libcurl: a refused piece is offered again when resumed, inside the call."""

    def __init__(self, pieces: list[bytes], *, high_water_bytes: int = 10) -> None:
        self.pieces = list(pieces)
        self.resumed = 0
        self.buffer = BodyBuffer(self.resume, high_water_bytes=high_water_bytes)

    def run(self) -> None:
        while self.pieces and self.buffer.offer(self.pieces[0]):
            del self.pieces[0]
        if not self.pieces:
            self.buffer.end()

    def resume(self) -> None:
        self.resumed += 1
        self.run()


async def rest(buffer: BodyBuffer) -> list[bytes]:
    found = []
    while piece := await buffer.read():
        found.append(piece)
    return found


def test_one_exchange_stays_within_its_published_cost():
    assert HIGH_WATER_BYTES * 4 == 256 * 1024


@pytest.mark.gen_test
async def test_pieces_that_wait_are_read_as_one():
    producer = Producer([b"one", b"two"])
    producer.run()
    assert await rest(producer.buffer) == [b"onetwo"]
    assert await producer.buffer.read() == b""


@pytest.mark.gen_test
@pytest.mark.parametrize("high_water_bytes", [1, 3, 4, 7, 10, 1000])
async def test_a_bounded_buffer_passes_every_byte_once_and_in_order(high_water_bytes):
    pieces = [bytes([number]) * (1 + number % 4) for number in range(100)]
    producer = Producer(pieces, high_water_bytes=high_water_bytes)
    producer.run()
    assert b"".join(await rest(producer.buffer)) == b"".join(pieces)
    assert producer.buffer.peak <= max(high_water_bytes, 4)


@pytest.mark.gen_test
async def test_a_full_buffer_refuses_until_it_was_read():
    producer = Producer([])
    buffer = producer.buffer
    assert (buffer.offer(b"x" * 10), buffer.held) == (True, False)
    assert (buffer.offer(b"y"), buffer.held) == (False, True)
    assert buffer.size == 10
    assert await buffer.read() == b"x" * 10
    assert producer.resumed == 1
    assert not buffer.held


@pytest.mark.gen_test
async def test_a_reader_is_not_resumed_for_nothing():
    producer = Producer([])
    producer.buffer.offer(b"x")
    await producer.buffer.read()
    assert producer.resumed == 0


@pytest.mark.gen_test
async def test_an_empty_buffer_takes_a_piece_of_any_size():
    producer = Producer([])
    assert producer.buffer.offer(b"x" * 1000)
    assert not producer.buffer.offer(b"y")
    assert len(await producer.buffer.read()) == 1000


@pytest.mark.gen_test
async def test_a_waiting_reader_is_woken_by_a_piece_and_by_the_end():
    buffer = Producer([]).buffer
    for action, expected in ((lambda: buffer.offer(b"x"), b"x"), (buffer.end, b"")):
        reader = asyncio.create_task(buffer.read())
        await asyncio.sleep(0)
        assert not reader.done()
        action()
        assert await reader == expected


@pytest.mark.gen_test
async def test_what_came_before_an_error_is_read_before_it_and_the_first_end_wins():
    buffer = Producer([]).buffer
    buffer.offer(b"x")
    buffer.end(ZeroDivisionError())
    buffer.end()
    buffer.end(KeyError())
    assert await buffer.read() == b"x"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await buffer.read()


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.gen_test
async def test_an_interrupted_buffer_gives_its_error_and_nothing_else(ended):
    buffer = BodyBuffer(lambda: None)
    assert buffer.offer(b"waits")
    if ended:
        buffer.end()
    buffer.interrupt(asyncio.CancelledError())
    assert (buffer.size, buffer.complete) == (0, False)
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            await buffer.read()


@pytest.mark.gen_test
async def test_an_ended_buffer_does_not_ask_for_more():
    producer = Producer([])
    producer.buffer.offer(b"x" * 10)
    producer.buffer.offer(b"y")
    producer.buffer.end(ZeroDivisionError())
    assert await producer.buffer.read() == b"x" * 10
    assert producer.resumed == 0


@pytest.mark.gen_test
async def test_a_cancelled_read_leaves_the_bytes_for_the_next():
    buffer = Producer([]).buffer
    reader = asyncio.create_task(buffer.read())
    await asyncio.sleep(0)
    buffer.offer(b"x")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await buffer.read() == b"x"


@pytest.mark.gen_test
async def test_two_readers_at_once_are_a_mistake():
    buffer = Producer([]).buffer
    reader = asyncio.create_task(buffer.read())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await buffer.read()
    buffer.end()
    assert await reader == b""


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, b"aabbcc"), (3, b"aab"), (4, b"aabb"), (6, b"aabbcc"), (9, b"aabbcc")],
)
async def test_reading_all_stops_at_the_limit(limit, expected):
    pieces = iter([b"aa", b"bb", b"cc", b""])

    async def read() -> bytes:
        return next(pieces)

    assert await read_all(read, limit) == expected
