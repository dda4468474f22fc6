"""A request body on its way in: order, backpressure, bounds, and a caller that goes."""

from __future__ import annotations

import asyncio

import pytest

from aisix.errors import BadRequest, BodyTooLarge, CallerDeparted, body_too_large
from aisix.web.body import HIGH_WATER_BYTES, SWALLOW_BYTES, StreamedBody

LIMIT = 1_000


async def turns(count: int = 5) -> None:
    """Let everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


class Listener:
    """Counts what a body tells its connection."""

    def __init__(self, body: StreamedBody) -> None:
        self.rooms = 0
        self.wants = 0
        body.connect(on_room=self._room, on_wanted=self._want)

    def _room(self) -> None:
        self.rooms += 1

    def _want(self) -> None:
        self.wants += 1


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
    listener = Listener(body)
    body.feed(b"some")
    await turns()
    states = [(body.wanted, listener.wants)]
    reader = asyncio.ensure_future(body.read_all(LIMIT))
    await turns()
    states.append((body.wanted, listener.wants))
    body.finish()
    assert await reader == b"some"
    assert states == [(False, 0), (True, 1)]


@pytest.mark.gen_test
async def test_each_time_a_reader_waits_it_is_heard():
    """The caller's patience begins anew with each wait, and only with a wait."""
    body = fed(b"1", b"2", complete=False)
    listener = Listener(body)
    chunks = body.chunks()
    heard = []
    for expected in (b"1", b"2"):
        assert await anext(chunks) == expected
        heard.append(listener.wants)
    for late in (b"3", b"4"):
        waiting = asyncio.ensure_future(anext(chunks))
        await turns()
        heard.append(listener.wants)
        body.feed(late)
        assert await waiting == late
    assert heard == [0, 0, 1, 2]


@pytest.mark.gen_test
async def test_a_body_that_is_there_makes_nobody_wait():
    body = fed(b"all of it")
    listener = Listener(body)
    assert await body.read_all(LIMIT) == b"all of it"
    assert (listener.wants, listener.rooms) == (0, 0)


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


# ── backpressure ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "full"), [(HIGH_WATER_BYTES - 65, False), (HIGH_WATER_BYTES - 64, True)]
)
def test_a_body_is_full_at_the_mark(size: int, full: bool):
    """A piece counts 64 bytes beside its own."""
    assert fed(b"x" * size, complete=False).full is full


def test_tiny_pieces_fill_a_body_long_before_their_bytes_do():
    assert fed(*[b"xx"] * 4_000, complete=False).full


@pytest.mark.gen_test
async def test_a_full_body_has_room_when_a_piece_is_taken():
    body = fed(b"a" * (HIGH_WATER_BYTES // 2), b"b" * (HIGH_WATER_BYTES // 2), complete=False)
    listener = Listener(body)
    chunks = body.chunks()
    await anext(chunks)
    assert (body.full, listener.rooms) == (False, 1)
    await anext(chunks)
    assert listener.rooms == 1, "said once"


@pytest.mark.gen_test
async def test_there_is_no_room_while_more_than_the_mark_is_left():
    body = fed(b"a", b"b" * HIGH_WATER_BYTES, complete=False)
    listener = Listener(body)
    chunks = body.chunks()
    await anext(chunks)
    assert (body.full, listener.rooms) == (True, 0)
    await anext(chunks)
    assert (body.full, listener.rooms) == (False, 1)


@pytest.mark.gen_test
async def test_whoever_reads_all_makes_room_while_it_does():
    body = fed(b"x" * HIGH_WATER_BYTES, complete=False)
    listener = Listener(body)
    reader = asyncio.ensure_future(body.read_all(0))
    await turns()
    assert (body.full, listener.rooms) == (False, 1)
    body.feed(b"y")
    body.finish()
    assert len(await reader) == HIGH_WATER_BYTES + 1


@pytest.mark.gen_test
async def test_nobody_is_asked_for_more_of_a_complete_body():
    body = fed(b"x" * HIGH_WATER_BYTES)
    listener = Listener(body)
    assert [piece async for piece in body.chunks()] == [b"x" * HIGH_WATER_BYTES]
    body.discard()
    assert listener.rooms == 0


# ── a body nobody wants ─────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_discarding_frees_what_is_held_and_lets_the_rest_come():
    body = fed(b"x" * HIGH_WATER_BYTES, complete=False)
    listener = Listener(body)
    body.discard()
    assert (body.full, listener.rooms) == (False, 1)
    body.feed(b"x" * HIGH_WATER_BYTES)
    assert not body.full, "swallowed, not held"
    body.finish()
    assert await body.read_all(0) == b""


def test_an_unwanted_body_is_swallowed_up_to_its_bound_and_no_further():
    body = fed(b"this was wanted and does not count", complete=False)
    body.discard()
    piece = b"x" * (1 << 20)
    for _ in range(SWALLOW_BYTES // len(piece)):
        body.feed(piece)
    assert not body.flooded
    body.feed(b"x")
    assert body.flooded


def test_discarding_twice_does_no_harm():
    body = StreamedBody()
    listener = Listener(body)
    body.discard()
    body.discard()
    body.feed(b"x")
    assert (body.full, body.flooded, listener.rooms) == (False, False, 1)


# ── failure ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_reader_gets_what_came_before_a_failure():
    body = fed(b"1", b"2", complete=False)
    body.fail(BadRequest("broken"))
    seen = []
    with pytest.raises(BadRequest):
        async for piece in body.chunks():
            seen.append(piece)
    assert (seen, body.failed, body.complete) == ([b"1", b"2"], True, False)


@pytest.mark.gen_test
async def test_a_reader_that_waits_is_told_of_a_failure():
    body = StreamedBody()
    reader = asyncio.ensure_future(body.read_all(LIMIT))
    await turns()
    body.fail(BadRequest("broken"))
    with pytest.raises(BadRequest):
        await reader


@pytest.mark.gen_test
async def test_the_first_failure_is_the_one_that_is_told():
    body = StreamedBody()
    body.fail(BadRequest("broken"))
    body.depart()
    with pytest.raises(BadRequest):
        await body.read_all(LIMIT)


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
