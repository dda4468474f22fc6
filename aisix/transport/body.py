"""The bounded buffer between a producer that must not wait and a reader that may be slow. Pure.

libcurl hands body bytes to a callback, which cannot await; the reader pulls. In between stands one
`BodyBuffer`: it takes what fits, refuses the rest (the callback then pauses the transfer) and asks
for more once the reader has taken what there was. No byte is kept and refused at once, so none is
lost or doubled.

A piece can exist four times on its way to the caller: waiting here, in the reader's hands,
rewritten, and in the caller's socket buffer of our server. `HIGH_WATER_BYTES` is a quarter of the
256 KiB that one exchange may cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

HIGH_WATER_BYTES = 64 * 1024


class BodyBuffer:
    """Bytes on their way from one producer to one reader.

    `size` is what waits for the reader, `peak` the most that ever waited, both in bytes; `held`
    tells whether the producer was refused and waits to be resumed.
    """

    __slots__ = (
        "_dropping",
        "_ended",
        "_error",
        "_high_water_bytes",
        "_pieces",
        "_reader",
        "_resume",
        "held",
        "peak",
        "size",
    )

    def __init__(
        self, resume: Callable[[], None], *, high_water_bytes: int = HIGH_WATER_BYTES
    ) -> None:
        self._resume = resume
        self._high_water_bytes = high_water_bytes
        self._pieces: list[bytes] = []
        self._dropping = False
        self._ended = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self.size = 0
        self.peak = 0
        self.held = False

    def offer(self, piece: bytes) -> bool:
        """Take `piece`, or refuse all of it: then the producer must wait until resumed.

        An empty buffer takes a piece of any size: otherwise a large one could never pass.
        """
        if self._dropping:
            return True
        size = self.size + len(piece)
        if size > self._high_water_bytes and self.size:
            self.held = True
            return False
        self._pieces.append(piece)
        self.size = size
        self.peak = max(self.peak, size)
        self._wake()
        return True

    def drop(self) -> None:
        """Nobody reads any more: what waits and what comes is forgotten."""
        self._dropping = True
        self._pieces.clear()
        self.size = 0
        if self.held:
            self.held = False
            self._resume()

    def end(self, error: BaseException | None = None) -> None:
        """No more will come; the reader gets what is here, then the end or `error`. First wins."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self.held = False
        self._resume = _nothing  # the producer usually owns us: no cycle outlives the transfer
        self._wake()

    def interrupt(self, error: BaseException) -> None:
        """End with `error`, whatever waits or has ended already: the reader gets nothing else."""
        self.end()
        self._pieces.clear()
        self.size = 0
        self._error = error

    async def read(self) -> bytes:
        """All that waits, or the next piece to come; b"" at the end, again and again.

        Cancelling a read loses nothing.
        """
        while not self._pieces:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            if self._reader is not None:
                raise RuntimeError("a body has one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self.take()
        if self.held:
            # cleared first: the producer may offer again, and be refused, inside the call
            self.held = False
            self._resume()
        return data

    @property
    def complete(self) -> bool:
        """Whether the proper end has been seen: what waits is all that is left."""
        return self._ended and self._error is None

    def take(self) -> bytes:
        """All that waits, b"" when nothing does; a held producer stays held."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return data

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _nothing() -> None:
    """There is nobody to resume any more."""


async def read_all(read: Callable[[], Awaitable[bytes]], limit: int) -> bytes:
    """Everything `read` gives until b"", cut off after `limit` bytes when `limit` is not 0."""
    pieces: list[bytes] = []
    size = 0
    while piece := await read():
        pieces.append(piece)
        size += len(piece)
        if limit and size >= limit:
            return b"".join(pieces)[:limit]
    return b"".join(pieces)
