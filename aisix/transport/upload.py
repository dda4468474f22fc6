"""A request body that is pulled from an async source while it is sent. I/O: one feeding task.

libcurl's read callback cannot await: with nothing at hand it pauses the transfer, and the feeder
resumes it with the next piece. One piece is held at a time; the source is asked for another only
when libcurl has taken all of the last. An error of the source ends the transfer and is raised to
whoever opened it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pycurl


class Upload:
    """One source, one transfer."""

    def __init__(
        self,
        source: AsyncIterator[bytes],
        *,
        resume: Callable[[], None],
        fail: Callable[[Exception], None],
        now: Callable[[], float],
    ) -> None:
        self.moved_at = 0.0
        """Monotonic second at which libcurl last took some of it."""
        self._now = now
        self._source = source
        self._resume: Callable[[], None] = resume
        self._fail: Callable[[Exception], None] = fail
        self._piece = memoryview(b"")
        self._ended = False
        self._closed = False
        self._waiting = False
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to pull the source."""
        self._task = asyncio.create_task(self._feed(), name="aisix.transport.upload")

    def read(self, size: int) -> bytes | int:
        """libcurl's read callback: at most `size` bytes, b"" at the end, or "pause"."""
        if self._piece:
            data = bytes(self._piece[:size])
            self._piece = self._piece[size:]
            self.moved_at = self._now()
            if not self._piece:
                self._taken.set()
            return data
        if self._ended:
            return b""
        self._waiting = True
        return pycurl.READFUNC_PAUSE

    async def stop(self) -> None:
        """End the feeder and the source, wherever they are. Idempotent. No cycle outlives it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._close_source()  # the feeder may never have begun
        self._resume = self._fail = _nothing  # the transfer owns us

    async def _feed(self) -> None:
        try:
            async for piece in self._source:
                if piece:
                    self._taken.clear()
                    self._piece = memoryview(piece)
                    self._continue()
                    await self._taken.wait()
            self._ended = True
            self._continue()
        except Exception as error:  # handed on whole: the source belongs to our caller
            self._fail(error)
        finally:
            await self._close_source()

    async def _close_source(self) -> None:
        """A source that is a generator would otherwise linger until it is collected."""
        close = getattr(self._source, "aclose", None)
        if close is not None and not self._closed:
            self._closed = True
            await close()

    def _continue(self) -> None:
        if self._waiting:
            # cleared first: libcurl may read, and pause, inside the call
            self._waiting = False
            self._resume()


def _nothing(_error: Exception | None = None) -> None:
    """There is nobody to tell any more."""
