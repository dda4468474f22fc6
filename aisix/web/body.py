"""A request body as it streams in: a source that the pipeline reads when it wants to.

Tornado hands over chunks and waits while we are full: that is the backpressure to the caller. A
body nobody wants any more is swallowed up to a bound, so that a caller that is still sending can
read the early answer instead of a connection reset.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aisix.core.request import HeaderView
from aisix.errors import BodyTooLarge, CallerDeparted

HIGH_WATER_BYTES = 256 * 1024
"""While this much is unread, the caller's socket is not read."""

SWALLOW_BYTES = 256 * 1024 * 1024
"""How much of an unwanted body is read before the connection is closed instead. Ample: a caller
whose upload is cut sees a reset and never learns why."""

SWALLOW_S = 30.0
"""How long it is read at most: a refused caller must not hold up the end of the process."""

_LIST = re.compile(r",[ \t]*")
_MAX_DIGITS = 20

UNLIMITED_BYTES = 1 << 50
"""The limit that Tornado is given where ours is to refuse first."""


class StreamedBody:
    """Implements RequestBody. Fed by a handler, read by the pipeline; single reader."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._swallowed_bytes = 0
        self._complete = False
        self._departed = False
        self._wanted = False
        self._unwanted = False
        self._decided = asyncio.Event()
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether the last byte has arrived."""
        return self._complete

    @property
    def wanted(self) -> bool:
        """Whether anybody has begun to read it."""
        return self._wanted

    async def until_decided(self) -> None:
        """Wait until it is known whether anybody reads it."""
        await self._decided.wait()

    def feed(self, piece: bytes) -> asyncio.Future[None] | None:
        """Take a piece; the future, if any, resolves when there is room for more.

        Raises BodyTooLarge when an unwanted body does not end soon enough.
        """
        if self._unwanted:
            self._swallowed_bytes += len(piece)
            if self._swallowed_bytes > SWALLOW_BYTES:
                raise BodyTooLarge("the rest of the request body is not read")
            return None
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        self._wake()
        if self._held_bytes < HIGH_WATER_BYTES:
            return None
        self._room = asyncio.get_running_loop().create_future()
        return self._room

    def finish(self) -> None:
        """The last byte has arrived."""
        self._complete = True
        self._wake()

    def depart(self) -> None:
        """The caller has gone before the end."""
        self._departed = True
        self._wake()

    def discard(self) -> None:
        """Nobody will read the rest."""
        self._unwanted = True
        self._decided.set()
        self._pieces.clear()
        self._held_bytes = 0
        self._make_room()

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge above `limit` bytes (0 = none), CallerDeparted."""
        pieces: list[bytes] = []
        size = 0
        async with aclosing(self.chunks()) as chunks:
            async for piece in chunks:
                size += len(piece)
                if limit and size > limit:
                    raise body_too_large(limit)
                pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives. Raises CallerDeparted."""
        self._wanted = True
        self._decided.set()
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._held_bytes -= len(piece)
                if self._held_bytes < HIGH_WATER_BYTES:
                    self._make_room()
                yield piece
            if self._complete:
                return
            if self._departed:
                raise CallerDeparted
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None


def body_too_large(limit: int) -> BodyTooLarge:
    """The 413 of a body over `limit` bytes."""
    return BodyTooLarge(f"request body exceeds {limit}-byte limit")


def is_framed(headers: HeaderView) -> bool:
    """Whether the head says clearly where the body ends. HTTP servers refuse the message
    otherwise, but only after the head has been handed on."""
    coding = headers.get("Transfer-Encoding")
    length = headers.get("Content-Length")
    if coding is not None:
        return length is None and coding.lower() == "chunked"
    first, *repeats = _LIST.split(length if length is not None else "0")
    number = first.isascii() and first.isdecimal() and len(first) < _MAX_DIGITS
    return number and int(first) <= UNLIMITED_BYTES and all(again == first for again in repeats)
