"""A request body on its way in: order, backpressure, bounds, and a caller that goes."""

from __future__ import annotations

import asyncio

import pytest

from aisix.errors import BodyTooLarge, CallerDeparted
from aisix.web.body import (
    HIGH_WATER_BYTES,
    SWALLOW_BYTES,
    UNLIMITED_BYTES,
    StreamedBody,
    body_too_large,
    is_framed,
)
from tests.support.builders import Headers

LIMIT = 1_000


async def turns(count: int = 5) -> None:
    """Let everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def fed(*pieces: bytes, complete: bool = True) -> StreamedBody:
    """A body that has arrived so far."""
    body = StreamedBody()
    for piece in pieces:
        body.feed(piece)
    if complete:
        body.finish()
    return body


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pieces", [(), (b"all",), (b"in ", b"three ", b"pieces")], ids=len)
@pytest.mark.gen_test
async def test_a_body_that_is_there_is_read_at_once(pieces: tuple[bytes, ...]):
    assert await fed(*pieces).read_all(LIMIT) == b"".join(pieces)


@pytest.mark.gen_test
async def test_one_piece_is_handed_on_without_a_copy():
    piece = b"x" * 100
    assert await fed(piece).read_all(LIMIT) is piece


@pytest.mark.gen_test
async def test_pieces_are_given_in_order_while_they_arrive():
    body = StreamedBody()
    seen: list[bytes] = []

    async def read() -> None:
        async for piece in body.chunks():
            seen.append(piece)

    task = asyncio.ensure_future(read())
    for piece in (b"1", b"2", b"3"):
        body.feed(piece)
        await turns()
        assert seen[-1] == piece
    assert not task.done()
    body.finish()
    await task
    assert (b"".join(seen), body.complete) == (b"123", True)


def test_a_body_is_complete_only_after_its_last_byte():
    body = fed(b"half", complete=False)
    assert not body.complete
    body.finish()
    assert body.complete


@pytest.mark.gen_test
async def test_nobody_wants_a_body_until_it_is_read():
    """A caller that waits for `100 Continue` is told to go on only then."""
    body = StreamedBody()
    waiter = asyncio.ensure_future(body.until_decided())
    await turns()
    states = [body.wanted]
    assert not waiter.done()
    reader = asyncio.ensure_future(body.read_all(LIMIT))
    await waiter
    assert [*states, body.wanted] == [False, True]
    body.finish()
    assert await reader == b""


# ── the limit ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sizes", [(LIMIT,), (LIMIT // 2, LIMIT // 2)], ids=["one", "two"])
@pytest.mark.gen_test
async def test_a_body_of_exactly_the_limit_is_read(sizes: tuple[int, ...]):
    body = fed(*(b"x" * size for size in sizes))
    assert len(await body.read_all(LIMIT)) == LIMIT


@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (LIMIT, 1)], ids=["one", "two"])
@pytest.mark.gen_test
async def test_one_byte_over_the_limit_is_too_large(sizes: tuple[int, ...]):
    body = fed(*(b"x" * size for size in sizes), complete=False)
    with pytest.raises(BodyTooLarge) as caught:
        await body.read_all(LIMIT)
    assert caught.value.message == "request body exceeds 1000-byte limit"
    assert caught.value.status == body_too_large(LIMIT).status == 413


@pytest.mark.gen_test
async def test_zero_means_no_limit():
    assert len(await fed(b"x" * (LIMIT + 1)).read_all(0)) == LIMIT + 1


# ── framing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "framed"),
    [
        ({}, True),
        ({"content-length": "0"}, True),
        ({"content-length": "12"}, True),
        ({"content-length": "12, 12"}, True),
        ({"content-length": "12,13"}, False),
        ({"content-length": ""}, False),
        ({"content-length": "-1"}, False),
        ({"content-length": "+1"}, False),
        ({"content-length": "0x10"}, False),
        ({"content-length": "\u0661"}, False),
        ({"content-length": str(UNLIMITED_BYTES)}, True),
        ({"content-length": str(UNLIMITED_BYTES + 1)}, False),
        ({"content-length": "9" * 5_000}, False),
        ({"transfer-encoding": "chunked"}, True),
        ({"transfer-encoding": "Chunked"}, True),
        ({"transfer-encoding": "gzip, chunked"}, False),
        ({"transfer-encoding": "chunked", "content-length": "1"}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_head_says_where_the_body_ends_or_it_does_not(headers: dict[str, str], framed: bool):
    assert is_framed(Headers(headers)) is framed


# ── backpressure ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_below_the_mark_the_socket_is_read_on():
    body = StreamedBody()
    assert body.feed(b"x" * (HIGH_WATER_BYTES - 1)) is None


@pytest.mark.gen_test
async def test_at_the_mark_the_feeder_waits_until_a_piece_is_taken():
    body = StreamedBody()
    assert body.feed(b"a" * (HIGH_WATER_BYTES // 2)) is None
    room = body.feed(b"b" * (HIGH_WATER_BYTES // 2))
    assert room is not None
    await turns()
    assert not room.done()
    chunks = body.chunks()
    await anext(chunks)
    assert room.done()
    await chunks.aclose()


@pytest.mark.gen_test
async def test_there_is_no_room_while_more_than_the_mark_is_left():
    body = StreamedBody()
    body.feed(b"a")
    room = body.feed(b"b" * HIGH_WATER_BYTES)
    assert room is not None
    chunks = body.chunks()
    await anext(chunks)
    assert not room.done()
    await anext(chunks)
    assert room.done()
    await chunks.aclose()


@pytest.mark.gen_test
async def test_a_feeder_that_waits_may_be_cancelled_before_there_is_room():
    body = StreamedBody()
    room = body.feed(b"x" * HIGH_WATER_BYTES)
    assert room is not None
    room.cancel()
    body.finish()
    assert len(await body.read_all(0)) == HIGH_WATER_BYTES


# ── a body nobody wants ─────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_discarding_frees_what_is_held_and_lets_the_feeder_go_on():
    body = StreamedBody()
    room = body.feed(b"x" * HIGH_WATER_BYTES)
    assert room is not None
    body.discard()
    assert room.done()
    assert body.feed(b"x" * HIGH_WATER_BYTES) is None, "swallowed, not held"
    body.finish()
    assert await body.read_all(0) == b""


@pytest.mark.gen_test
async def test_an_unwanted_body_is_swallowed_up_to_its_bound_and_no_further():
    body = StreamedBody()
    body.feed(b"this was wanted and does not count")
    body.discard()
    piece = b"x" * (1 << 20)
    for _ in range(SWALLOW_BYTES // len(piece)):
        assert body.feed(piece) is None
    with pytest.raises(BodyTooLarge):
        body.feed(b"x")


@pytest.mark.gen_test
async def test_discarding_twice_does_no_harm():
    body = StreamedBody()
    body.discard()
    body.discard()
    assert body.feed(b"x") is None


# ── departure ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_reader_that_waits_is_told_of_the_departure():
    body = fed(b"some", complete=False)
    reader = asyncio.ensure_future(body.read_all(LIMIT))
    await turns()
    assert not reader.done()
    body.depart()
    with pytest.raises(CallerDeparted):
        await reader


@pytest.mark.gen_test
async def test_a_reader_that_comes_after_the_departure_is_told_too():
    body = fed(b"some", complete=False)
    body.depart()
    with pytest.raises(CallerDeparted):
        await body.read_all(LIMIT)


@pytest.mark.gen_test
async def test_a_body_that_was_complete_can_be_read_after_the_departure():
    body = fed(b"all of it")
    body.depart()
    assert await body.read_all(LIMIT) == b"all of it"


@pytest.mark.gen_test
async def test_a_cancelled_reader_leaves_the_body_usable():
    body = StreamedBody()
    reader = asyncio.ensure_future(body.read_all(LIMIT))
    await turns()
    reader.cancel()
    await asyncio.wait({reader})
    body.feed(b"late")
    body.finish()
    assert await body.read_all(LIMIT) == b"late"
