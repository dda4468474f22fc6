"""One caller's connection: requests in order, each served by this very task. I/O.

The connection's own coroutine reads a head, runs the exchange and reads on; no task is made per
request. While an exchange runs, the next read is already pending: it brings the rest of the body,
requests sent ahead, or the end of the connection, which is the caller's departure and cancels the
exchange within one turn of the loop.

Invariants: one answer at a time, in the order of the requests; what is read ahead is bounded
(`codec`, `body`); every wait for the caller has a deadline, kept by the server's one sweep over
`deadline`; a connection that was cancelled or whose framing broke is never used again.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from tornado.concurrent import Future
from tornado.iostream import IOStream, StreamClosedError

from aisix.errors import CallerDeparted, RequestTimeout
from aisix.web.base import ProcessState
from aisix.web.body import StreamedBody
from aisix.web.codec import Message, MessageParser
from aisix.web.intake import Intake

NEVER = float("inf")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AT_ONCE = struct.pack("ii", 1, 0)
_READ_AHEAD = 16
"""While so many requests wait, no more are read."""

_IGNORED_BYTES = 1024 * 1024
"""How much is read and dropped behind a caller's last request, only to see when it leaves."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection waits for its caller, in seconds; 0 = for ever.

    `head_s` for a whole head, from its first byte (from the connection's start for the first one);
    `body_s` between pieces of a body; `idle_s` between requests; `swallow_s` for the rest of a body
    that nobody wants.
    """

    head_s: float = 0.0
    body_s: float = 0.0
    idle_s: float = 0.0
    swallow_s: float = 0.0


class WayBack(Protocol):
    """The answer to the request that is being served."""

    ended: bool
    departed: bool
    switched: bool
    """It is no HTTP any more: whoever runs it hears of the departure without being cancelled."""

    def depart(self) -> None:
        """The caller has gone."""


class Front(Protocol):
    """What serves the requests of all connections."""

    @property
    def state(self) -> ProcessState:
        """Of the process."""

    @property
    def patience(self) -> Patience:
        """With callers."""

    @property
    def max_connections(self) -> int:
        """Open at once; 0 = no limit."""

    def serve(self, message: Message, connection: Connection) -> Awaitable[object]:
        """Run the exchange of `message`; sets `connection.way_back`."""


class Connection:
    """Serves one stream until it ends."""

    def __init__(self, stream: IOStream, *, remote_ip: str, protocol: str, front: Front) -> None:
        self.stream = stream
        self.remote_ip = remote_ip
        self.protocol = protocol
        self.deadline = NEVER
        """Monotonic second at which patience ends; read by the server's sweep."""
        self.old = False
        self.bodiless = False
        self.way_back: WayBack | None = None
        self.detached = False
        """Somebody else owns the stream now."""
        self._front = front
        self._state = front.state
        self._plain = protocol == "http"
        self._intake = Intake(stream, plain=self._plain)
        self._parser = MessageParser()
        self._task: asyncio.Task[Any] | None = None
        self._reading: Future[bytes] | None = None
        self._message: Message | None = None
        self._swallowing: asyncio.Future[None] | None = None
        self._tunnelled = False
        self._last = False
        self._fresh = True
        self._expired = False
        self._ignored_bytes = 0

    async def serve(self) -> None:
        """Until the caller leaves, errs, or asked for its last answer. Never raises."""
        self._task = asyncio.current_task()
        try:
            while not self._last:
                message = await self._next()
                if message is None:
                    break
                self._last = not message.keep_alive
                self.old = message.old
                self.bodiless = message.method == "HEAD"
                await self._exchange(message)
                del message  # a kept connection holds nothing of its last request
        except (StreamClosedError, CallerDeparted):
            pass
        finally:
            self.deadline = NEVER
            self._parser.eof()
            if not self.detached:
                self._intake.close()

    def cut(self) -> None:
        """End the exchange now, whatever it is doing."""
        if self._task is not None:
            self._task.cancel()

    def hang_up(self) -> None:
        """Close the connection, whatever was said on it."""
        self._last = True
        self._intake.close()

    def reset(self) -> None:
        """The same by a TCP reset, which nobody takes for a proper end."""
        if not self.stream.closed():
            self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.hang_up()

    def hand_back(self) -> None:
        """Others will use the stream: let it do its own reading."""
        self._intake.hand_back()

    def tunnel(self) -> None:
        """What the caller sends from now on, without end, is the body of its request: the frames of
        a WebSocket. Those that it sent ahead are not lost."""
        message = self._message
        if message is None:
            return
        self._tunnelled = True
        body = message.body = StreamedBody(high_water_bytes=1)  # one piece at a time
        body.connect(on_room=self.watch, on_wanted=_nothing)
        rest, self._parser.rest = self._parser.rest, b""
        if rest:
            body.feed(rest)
        if not body.full:
            self.watch()

    # ── requests ──

    async def _next(self) -> Message | None:
        """The next request; None when there can be none."""
        parser = self._parser
        if parser.messages:
            await asyncio.sleep(0)  # a caller that sends ahead must not have the loop to itself
        else:
            patience = self._front.patience
            self._wait(patience.head_s if self._fresh or parser.in_head else patience.idle_s)
            try:
                while not parser.messages:
                    if parser.ended:
                        return None
                    reading, self._reading = self._reading, None
                    if reading is None:
                        reading = self._intake.read()
                    if reading.done():
                        await asyncio.sleep(0)  # nor one that never pauses
                    began = parser.in_head or self._fresh
                    parser.feed(await reading)
                    if parser.in_head and not began:
                        self._wait(patience.head_s)
            except asyncio.CancelledError:
                if not self._expired or self._task is None:
                    raise
                self._task.uncancel()
                parser.refuse(RequestTimeout("the head of the request took too long"))
            self._fresh = False
        self.deadline = NEVER
        return parser.messages.pop(0)

    async def _exchange(self, message: Message) -> None:
        """Serve one request, watching the caller meanwhile."""
        body = message.body
        self._message = message
        self._state.begin(self)
        if not body.complete:
            body.connect(on_room=self.watch, on_wanted=self._want)
        if not (message.upgrade or self._parser.switched):
            self.watch()
        try:
            await self._front.serve(message, self)
            way_back = self.way_back
            if way_back is None or way_back.departed or not way_back.ended:
                self._last = True
            elif not body.complete:
                await self._swallow(message)
        except asyncio.CancelledError:
            # the exchange was meant, by a departure or a shutdown, not the connection's task
            self._last = True
            if self._task is not None:
                self._task.uncancel()
        finally:
            self._message = self.way_back = None
            self._state.end(self)
            if self._reading is not None:
                self._reading.remove_done_callback(self._on_read)

    # ── the caller, while its request is served ──

    def watch(self) -> None:
        """Keep a read pending: it brings more of the body, or the end. Not for a request that may
        take the connection over, nor before one: Tornado has but one reader at a time."""
        message = self._message
        if message is None or self._expired:
            return
        if self._reading is None:
            try:
                self._reading = self._intake.read()
            except StreamClosedError:
                asyncio.get_running_loop().call_soon(self._depart, message)
                return
        self._reading.add_done_callback(self._on_read)

    def _on_read(self, reading: Future[bytes]) -> None:
        message = self._message
        if reading is not self._reading or message is None:
            return
        self._reading = None
        if reading.cancelled() or reading.exception() is not None:
            self._depart(message)
            return
        parser = self._parser
        data = reading.result()
        if self._tunnelled:
            message.body.feed(data)
            if not message.body.full:
                self.watch()
            return
        if parser.ended:
            self._ignored_bytes += len(data)
        else:
            parser.feed(data)
        body = message.body
        if body.complete or body.failed:
            self.deadline = NEVER
            self._end_swallowing()
        elif self._swallowing is None:
            # patience is for callers that let us wait, not for those that wait for us
            self._wait(self._front.patience.body_s if body.awaited else 0.0)
        if body.flooded:
            self.hang_up()
            self._end_swallowing()
        elif (
            not (parser.full or parser.switched)
            and len(parser.messages) < _READ_AHEAD
            and self._ignored_bytes <= _IGNORED_BYTES
        ):
            self.watch()

    def _want(self) -> None:
        """The exchange waits for more of the body; the caller may wait to be told so, once."""
        message = self._message
        if message is None:
            return
        if message.expects_continue:
            message.expects_continue = False
            self._intake.hand_back()
            try:
                self.stream.write(_CONTINUE)
            except StreamClosedError:
                self._depart(message)
        self._wait(self._front.patience.body_s)

    def _depart(self, message: Message) -> None:
        """The caller has gone: end everything that runs for it."""
        self._last = True
        self._parser.ended = True
        if message is not self._message:
            return
        message.body.depart()
        if self.way_back is not None:
            self.way_back.depart()
        if self._swallowing is not None:
            self._end_swallowing()
        elif self._task is not None and not (self.way_back and self.way_back.switched):
            self._task.cancel()

    async def _swallow(self, message: Message) -> None:
        """The answer is out, the body still comes in: read it, for a while, so that a caller that
        reads only when it has sent everything meets its answer and not a reset."""
        body = message.body
        body.discard()
        if not (body.failed or message.expects_continue):
            self._swallowing = asyncio.get_running_loop().create_future()
            self._wait(self._front.patience.swallow_s)
            self.watch()
            try:
                await self._swallowing
            finally:
                self._swallowing = None
                self.deadline = NEVER
        if not body.complete:
            self._last = True

    def _end_swallowing(self) -> None:
        if self._swallowing is not None and not self._swallowing.done():
            self._swallowing.set_result(None)

    # ── the way back ──

    def connection_header(self, *, probe: bool = False) -> str:
        """The `Connection` line of an answer. One that leaves while the process drains says that it
        is the last, even when its request came before, but for a `probe`; so does one to a caller
        that waits for `100 Continue` in vain or whose body broke: nobody knows what will follow."""
        message = self._message
        if message is not None and not message.body.complete:
            self._last |= message.expects_continue or message.body.failed
        if self._last or (self._state.draining and not probe):
            self._last = True
            return "Connection: close\r\n"
        return "Connection: Keep-Alive\r\n" if self.old else ""

    async def write(self, data: bytes | memoryview) -> None:
        """Hand `data` to the socket; returns when it has it. Raises CallerDeparted."""
        stream = self.stream
        if self._plain and not stream.writing():
            # most answers fit the socket's buffer: no need of a queue, a future and their callbacks
            try:
                sent = stream.socket.send(data)
            except BlockingIOError:
                sent = 0
            except (OSError, AttributeError) as error:  # reset, or closed already: no socket
                self._intake.close()
                self._note_departure()
                raise CallerDeparted from error
            if sent == len(data):
                return
            data = memoryview(data)[sent:]  # a large answer is not copied for its rest
            self._intake.hand_back()  # the stream will listen for room
        try:
            written = stream.write(data)
            if stream.writing():
                await asyncio.shield(written)  # Tornado wants to see how it ends
        except StreamClosedError as error:
            self._note_departure()
            raise CallerDeparted from error

    def _note_departure(self) -> None:
        if self.way_back is not None:
            self.way_back.depart()

    # ── deadlines ──

    def _wait(self, seconds: float) -> None:
        self.deadline = monotonic() + seconds if seconds > 0 else NEVER

    def expire(self) -> None:
        """Patience has ended; called by the server's sweep."""
        self.deadline = NEVER
        self._last = True
        message = self._message
        if message is None:
            if self._parser.in_head and self._task is not None:
                self._expired = True  # `_next` answers 408
                self._task.cancel()
            else:
                self._intake.close()
        elif self._swallowing is not None:
            self.hang_up()
            self._end_swallowing()
        else:
            message.body.fail(RequestTimeout("the body of the request took too long"))


def _nothing() -> None:
    """A session may be silent for as long as it likes."""
