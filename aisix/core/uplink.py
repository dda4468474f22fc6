"""What a caller sends within a session, on its way to the upstream: one piece at a time. Pure.

The relay puts pieces in, the transport takes them out when it can send more; in between stands one
piece. The transport may begin to wait long before the first comes, and a second transfer may wait
after a first was refused: nothing is taken before it is put.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self


class Uplink:
    """One writer, one reader, no end: a session ends with its transfer. Implements BodySource."""

    content_type = ""
    length: int | None = None
    replayable = True

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._closed = False

    def open(self, deployment_name: str) -> AsyncIterator[bytes]:
        """Itself: what names the deployment has been put right already."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await self._pieces.get()

    async def put(self, piece: bytes) -> None:
        """Hand over; returns when there is room for it. Dropped when closed."""
        if not self._closed:
            await self._pieces.put(piece)

    def let_go(self) -> None:
        """Nothing is held but the one piece that is on its way."""

    def close(self) -> None:
        """Nobody will take anything any more: whoever waits to put goes on."""
        self._closed = True
        while not self._pieces.empty():
            self._pieces.get_nowait()
