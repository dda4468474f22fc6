"""A request body as it streams in: a source that the pipeline reads when it wants to. Pure.

The connection feeds what has arrived and stops reading its socket while `full`: that is the
backpressure to the caller. A body nobody wants any more is swallowed up to a bound, so that a
caller that is still sending can read the early answer instead of a connection reset.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aisix.errors import CallerDeparted, body_too_large

HIGH_WATER_BYTES = 256 * 1024
"""While this much is unread, the caller's socket is not read."""

_PIECE_BYTES = 64  # what a piece costs beside its bytes: tiny chunks must not add up

SWALLOW_BYTES = 256 * 1024 * 1024
"""How much of an unwanted body is read before the connection is closed instead. Ample: a caller
whose upload is cut sees a reset and never learns why."""

SWALLOW_S = 30.0
"""How long it is read at most: a refused caller must not hold up the end of the process."""


class StreamedBody:
    """Implements RequestBody. Fed by a connection, read by the pipeline; single reader."""

    __slots__ = (
        "_arrival",
        "_error",
        "_held_bytes",
        "_high_water_bytes",
        "_on_room",
        "_on_wanted",
        "_pieces",
        "_swallowed_bytes",
        "_unwanted",
        "complete",
        "wanted",
    )

    def __init__(self, *, high_water_bytes: int = HIGH_WATER_BYTES) -> None:
        self._high_water_bytes = high_water_bytes
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._swallowed_bytes = 0
        self._unwanted = False
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._on_room: Callable[[], None] | None = None
        self._on_wanted: Callable[[], None] | None = None
        self.complete = False
        """Whether the last byte has arrived."""
        self.wanted = False
        """Whether anybody has begun to read it."""

    def connect(self, *, on_room: Callable[[], None], on_wanted: Callable[[], None]) -> None:
        """Whom to tell that it is not `full` any more, and that somebody waits for its bytes."""
        self._on_room = on_room
        self._on_wanted = on_wanted

    @property
    def full(self) -> bool:
        """Whether the caller must wait until some of it is read."""
        return self._held_bytes + _PIECE_BYTES * len(self._pieces) >= self._high_water_bytes

    @property
    def awaited(self) -> bool:
        """Whether a reader waits for more of it."""
        return self._arrival is not None and not self._arrival.done()

    @property
    def failed(self) -> bool:
        """Whether the rest will not come."""
        return self._error is not None

    @property
    def flooded(self) -> bool:
        """Whether more of it was swallowed than is bearable."""
        return self._swallowed_bytes > SWALLOW_BYTES

    # ── the feeding side ──

    def feed(self, piece: bytes) -> None:
        """Take a piece; it is dropped when nobody wants the body."""
        if self._unwanted:
            self._swallowed_bytes += len(piece)
            return
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        self._wake()

    def finish(self) -> None:
        """The last byte has arrived."""
        self.complete = True
        self._wake()

    def depart(self) -> None:
        """The caller has gone before the end."""
        self.fail(CallerDeparted())

    def fail(self, error: Exception) -> None:
        """The rest will not come; whoever reads gets what is here, then `error`. First wins."""
        if self._error is None:
            self._error = error
        self._wake()

    def discard(self) -> None:
        """Nobody will read the rest."""
        if not self._unwanted:
            self._unwanted = True
            self._pieces.clear()
            self._held_bytes = 0
            self._tell_room()

    # ── the reading side ──

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge above `limit` bytes (0 = none), CallerDeparted."""
        self.wanted = True
        if not self.complete:
            return await self._gather(limit)
        size = self._held_bytes
        if limit and size > limit:
            raise body_too_large(limit)
        pieces = self._pieces
        self._held_bytes = 0
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def chunks(self) -> Pieces:
        """The body as it arrives. Raises CallerDeparted."""
        return Pieces(self)

    async def piece(self) -> bytes | None:
        """The next piece as it arrives; None at the end. Raises CallerDeparted."""
        return self._take() if await self._filled() else None

    async def _gather(self, limit: int) -> bytes:
        """One growing buffer: a large body exists once, and once more when it is handed out."""
        data = bytearray()
        while await self._filled():
            data += self._take()
            if limit and len(data) > limit:
                raise body_too_large(limit)
        return bytes(data)

    async def _filled(self) -> bool:
        """Wait for a piece; False at the end. Raises what ended it before."""
        self.wanted = True
        while not self._pieces:
            if self.complete:
                return False
            if self._error is not None:
                raise self._error
            if self._on_wanted is not None:
                self._on_wanted()
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return True

    def _take(self) -> bytes:
        full = self.full
        piece = self._pieces.popleft()
        self._held_bytes -= len(piece)
        if full and not self.full:
            self._tell_room()
        return piece

    def _tell_room(self) -> None:
        if self._on_room is not None and not self.complete:
            self._on_room()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class Pieces:
    """A body as an async iterator. No generator: one that is left half read would have to be closed
    by somebody who can wait for it."""

    __slots__ = ("_body",)

    def __init__(self, body: StreamedBody) -> None:
        self._body = body

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._body.piece()
        if piece is None:
            raise StopAsyncIteration
        return piece
