"""What is held of a request body, in order: in memory first, then in a file without a name. I/O.

What a byte costs does not depend on the pieces it came in, and whoever is cancelled while it waits
for the file leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO

from aisix.errors import Overloaded

SPOOL_BYTES = 1024 * 1024
"""As much is held in memory."""

_PIECE_BYTES = 64 * 1024


class Spool:
    """Written to its end, then read from its beginning, as often as needed."""

    def __init__(self) -> None:
        self.size = 0
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    async def write(self, piece: bytes) -> None:
        """Hold `piece` too. Raises Overloaded when there is no room for it."""
        if self.size + len(piece) <= SPOOL_BYTES:
            self._memory += piece
        else:
            try:
                if self._file is None:
                    # not in a thread: a wait that is cancelled would lose it open
                    self._file = TemporaryFile()  # noqa: SIM115 - closed by `close`
                await asyncio.to_thread(_append, self._file, piece)
            except OSError as error:
                raise Overloaded(
                    "the gateway has no room to hold this form until its part model comes; put "
                    "model before the file",
                    detail=f"no room for a temporary file: {error.strerror}",
                ) from error
        self.size += len(piece)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """All that is held, from its beginning."""
        for at in range(0, len(self._memory), _PIECE_BYTES):
            yield bytes(self._memory[at : at + _PIECE_BYTES])
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            while piece := await asyncio.to_thread(self._file.read, _PIECE_BYTES):
                yield piece

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._memory.clear()
        if self._file is not None:
            with suppress(OSError):  # it tries once more to write what had no room
                self._file.close()


def _append(file: IO[bytes], piece: bytes) -> None:
    """Now, not when the buffer is full: who writes is told that there is no room."""
    file.write(piece)
    file.flush()
