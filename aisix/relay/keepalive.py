"""The caller's side of one stream: a late head, one writer at a time, heartbeats. I/O by ports.

After `keepalive_s` without a write a comment keeps the connection alive; it commits the stream if
nothing had. It is written beside the stream's own wait for the upstream: a pending read is never
cancelled for it, so no byte is lost and the transport's idle deadline keeps running. A stream that
talks pays one look at the clock per write, no task and no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from aisix.core.exchange import Exchange, Phase
from aisix.core.ports import Clock, Reply

HEARTBEAT = b":\n\n"

HELD_BYTES = 128 * 1024
"""What is held back before the first event worth a head; more of it commits the stream. The first
events of a response repeat its instructions and tools."""


def commit(exchange: Exchange, status: int) -> None:
    """From here on the caller sees the answer."""
    exchange.status = status
    exchange.advance(Phase.COMMITTED)


class StreamReply:
    """The caller's side of one stream: a late head, one writer at a time, heartbeats inside.

    A heartbeat is written by a task of its own, and only while the stream waits for the upstream;
    the next write waits for it, and so does leaving. When it fails, the wait for the upstream is
    ended with its error.
    """

    def __init__(
        self,
        exchange: Exchange,
        reply: Reply,
        *,
        clock: Clock,
        keepalive_s: float,
        headers: Mapping[str, str],
    ) -> None:
        self._exchange = exchange
        self._reply = reply
        self._clock = clock
        self._keepalive_s = keepalive_s
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        # a stream is relayed by one task, and where no task is nobody could wait
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancels = self._task.cancelling()
        self._held = b""
        self._writing = False
        self._last_write_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        """Of a heartbeat; it has cancelled the task once."""
        self._closing = False
        self.committed = False

    async def __aenter__(self) -> Self:
        self._arm(self._keepalive_s)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._disarm()
        cancelled = isinstance(error, asyncio.CancelledError)
        if self._beat is not None:
            if cancelled:
                self._beat.cancel()
            await self._join_beat()
        if self._failure is None:
            return
        cancels = self._task.uncancel()
        if cancelled and cancels <= self._cancels:
            raise self._failure from None

    async def write(self, data: bytes, *, worth_a_head: bool) -> None:
        """Send `data`; as long as nothing was `worth_a_head`, keep it back instead."""
        if self._beat is not None:
            await self._join_beat()
        if not self.committed and not worth_a_head:
            self._held += data
            if len(self._held) <= HELD_BYTES:
                return
            data = b""
        elif self.committed and not data:
            return
        self._writing = True
        try:
            if self.committed:
                await self._reply.write(data)
            else:
                await self._send(data)
        finally:
            self._writing = False
            self._last_write_at = self._loop.time()

    async def finish(self) -> None:
        """End the answer."""
        self._disarm()
        await self._join_beat()
        await self._reply.finish()

    async def _send(self, data: bytes) -> None:
        if not self.committed:
            self.committed = True
            commit(self._exchange, 200)
            await self._reply.start(200, self._headers)
            data = self._held + data
            self._held = b""
            self._headers = {}
        if data:
            await self._reply.write(data)
        if not self._exchange.timings.first_out:
            self._exchange.timings.first_out = self._clock.monotonic()

    def _arm(self, delay_s: float) -> None:
        if self._keepalive_s > 0 and not self._closing:
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _disarm(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        """The silence may be over: one timer serves the whole stream, writes only move its goal."""
        left_s = self._last_write_at + self._keepalive_s - self._loop.time()
        if self._writing:
            self._arm(self._keepalive_s)
        elif left_s > 0:
            self._arm(left_s)
        else:
            self._timer = None
            self._beat = self._loop.create_task(self._send(HEARTBEAT))
            self._beat.add_done_callback(self._beaten)

    def _beaten(self, beat: asyncio.Task[None]) -> None:
        self._beat = None
        self._last_write_at = self._loop.time()
        if beat.cancelled():
            return
        failure = beat.exception()
        if failure is None:
            self._arm(self._keepalive_s)
        elif not self._closing:
            self._failure = failure
            self._task.cancel()

    async def _join_beat(self) -> None:
        beat = self._beat
        if beat is None:
            return
        try:
            await asyncio.wait((beat,))
        except asyncio.CancelledError:
            beat.cancel()
            raise
