"""The wire to the upstream, on libcurl. I/O.

One `pycurl.AsyncCurlMulti` drives all transfers on the running loop; each call gets an easy handle
of its own. The body is pulled: what libcurl delivers waits in a `BodyBuffer`, and when that is full
the write callback refuses, which stops libcurl from reading the socket until the reader catches up.

Invariants:
* Leaving `open` removes the transfer in the same loop turn, in whatever state it is; an unfinished
  connection is closed, so the upstream sees it.
* No multi function is called inside a libcurl callback: callbacks only append and wake.
* libcurl keeps the connect deadline; first byte, idle and total are loop timers of ours. The idle
  timer rests while we hold the transfer, because that silence is the caller's.
* libcurl sends a request again by itself when a kept connection turns out dead before a line of
  the answer came; nothing else is ever retried here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pycurl

from aisix import __version__
from aisix.core.ports import Clock, UpstreamAnswer, UpstreamCall
from aisix.errors import UpstreamUnreachable
from aisix.transport.body import BodyBuffer, read_all
from aisix.transport.failures import CLOSING, failure, timed_out, unanswered
from aisix.transport.head import HeadReader
from aisix.transport.request import Wire, prepare, set_body
from aisix.transport.upload import Upload

_MAX_KEPT_CONNECTIONS = 1024
"""Open connections that may be kept for reuse; libcurl's default of four per transfer would close
most of them after a burst."""


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What a transport is doing now."""

    open_transfers: int
    peak_body_bytes: int
    """The most that the buffer of any one transfer has held."""


class CurlTransport:
    """`Transport` on libcurl. Made anywhere, bound to the loop of its first call."""

    def __init__(
        self,
        *,
        clock: Clock,
        http2: bool = False,
        connect_to: Sequence[str] = (),
        ca_file: str | None = None,
        verify: bool = True,
        tcp_keepalive_s: int = 60,
        user_agent: str = f"aisix/{__version__}",
    ) -> None:
        self._clock = clock
        self._wire = Wire(
            user_agent=user_agent,
            http2=http2,
            connect_to=tuple(connect_to),
            ca_file=ca_file,
            verify=verify,
            tcp_keepalive_s=tcp_keepalive_s,
        )
        self._multi: pycurl.AsyncCurlMulti | None = None
        self._transfers: set[_Transfer] = set()
        self._peak_body_bytes = 0
        self._closed = False

    @asynccontextmanager
    async def open(self, call: UpstreamCall) -> AsyncIterator[UpstreamAnswer]:
        """Send `call` and wait for the final head; leaving ends the transfer at once.

        Raises UpstreamUnreachable, UpstreamTimeout, UpstreamBroken (an answer that is not HTTP),
        UpstreamMisconfigured, and whatever the body's source raises.
        """
        if self._closed:
            raise UpstreamUnreachable(CLOSING)
        transfer = _Transfer(call, self._running_multi(), wire=self._wire, clock=self._clock)
        self._transfers.add(transfer)
        try:
            transfer.start()
            await transfer.answered()
            yield transfer
        finally:
            self._transfers.discard(transfer)
            self._peak_body_bytes = max(self._peak_body_bytes, transfer.peak_body_bytes)
            await transfer.leave()

    async def close(self) -> None:
        """End all transfers, then all connections. Idempotent."""
        self._closed = True
        for transfer in tuple(self._transfers):
            transfer.end(UpstreamUnreachable(CLOSING))
        multi, self._multi = self._multi, None
        if multi is not None:
            await multi.aclose()

    def stats(self) -> TransportStats:
        """Figures for tests and for people."""
        peaks = (transfer.peak_body_bytes for transfer in self._transfers)
        return TransportStats(
            open_transfers=len(self._transfers),
            peak_body_bytes=max(self._peak_body_bytes, *peaks, 0),
        )

    def _running_multi(self) -> pycurl.AsyncCurlMulti:
        if self._multi is None:
            self._multi = pycurl.AsyncCurlMulti()
            self._multi.setopt(pycurl.M_MAXCONNECTS, _MAX_KEPT_CONNECTIONS)
        return self._multi


class _Transfer:
    """One call on its way: the callbacks of its handle, its deadlines, and the answer."""

    status: int
    headers: Mapping[str, str]
    first_byte_at: float
    last_byte_at: float

    def __init__(
        self, call: UpstreamCall, multi: pycurl.AsyncCurlMulti, *, wire: Wire, clock: Clock
    ) -> None:
        self._call = call
        self._multi = multi
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._head = HeadReader()
        self._head_waiter: asyncio.Future[None] = self._loop.create_future()
        self._body = BodyBuffer(self._resume)
        self._ended = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last_progress = 0.0
        self._done: asyncio.Future[pycurl.Curl] | None = None
        self._upload: Upload | None = None
        if not isinstance(call.body, bytes):
            self._upload = Upload(call.body, resume=self._resume, fail=self.end)
        self.status = 0
        self.headers = {}
        self.first_byte_at = self.last_byte_at = 0.0
        self._curl = pycurl.Curl()
        self._wire = wire

    @property
    def peak_body_bytes(self) -> int:
        """The most that waited for the reader."""
        return self._body.peak

    def start(self) -> None:
        """Hand the call to libcurl. Raises UpstreamMisconfigured."""
        prepare(self._curl, self._call, self._wire)
        set_body(self._curl, self._call, self._upload)
        self._curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self._curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        self._done = self._multi.add_handle(self._curl)
        self._done.add_done_callback(self._on_done)
        deadlines = self._call.deadlines
        self._arm("first_byte", deadlines.first_byte_s)
        self._arm("total", deadlines.total_s)
        if self._upload is not None:
            self._upload.start()

    async def answered(self) -> None:
        """Wait for the head. Raises what ended the transfer before it."""
        await self._head_waiter

    async def read(self) -> bytes:
        """The next piece of the body, all that has arrived; b"" at its end."""
        return await self._body.read()

    async def read_all(self, limit: int = 0) -> bytes:
        """The rest of the body, cut off after `limit` bytes when `limit` is not 0."""
        return await read_all(self._body.read, limit)

    async def leave(self) -> None:
        """Give the handle back. The upstream side of it happens before the first await."""
        self.end(None)
        self._curl.close()
        upload, self._upload = self._upload, None
        if upload is not None:
            await upload.stop()

    def end(self, error: BaseException | None) -> None:
        """Stop the transfer, if it still runs; a reader gets what came, then `error`. First wins.

        Never called inside a libcurl callback.
        """
        if self._ended:
            return
        self._ended = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._done is not None and not self._done.done():
            self._multi.remove_handle(self._curl)
        if not self._head_waiter.done():
            if error is None:
                self._head_waiter.cancel()
            else:
                self._head_waiter.set_exception(error)
        self._body.end(error)

    # ── libcurl's callbacks: they only note and wake ──

    def _on_header(self, line: bytes) -> None:
        if self._head.complete:
            return  # a trailer
        if line.startswith(b"HTTP/"):
            self.first_byte_at = self._clock.monotonic()
        if self._head.feed(line):
            self._on_head()

    def _on_head(self) -> None:
        self.status = self._head.status
        self.headers = self._head.headers()
        self.last_byte_at = self._clock.monotonic()
        self._disarm("first_byte")
        self._arm_idle()
        if not self._head_waiter.done():
            self._head_waiter.set_result(None)

    def _on_body(self, piece: bytes) -> int | None:
        if not self._body.offer(piece):
            self._disarm("idle")
            return pycurl.WRITEFUNC_PAUSE
        self.last_byte_at = self._clock.monotonic()
        self._last_progress = self._loop.time()
        return None

    def _on_done(self, done: asyncio.Future[pycurl.Curl]) -> None:
        """The transfer came to its own end; runs from the loop, not from libcurl."""
        if done.cancelled():
            self.end(None)
            return
        error = done.exception()
        if isinstance(error, pycurl.error):
            answered = self._head.complete
            code, text = int(error.args[0]), str(error.args[-1])
            cause = failure(code, text, self._call, answered=answered)
            cause.__cause__ = error
            self.end(cause)
        else:
            self.end(error or (None if self._head.complete else unanswered(self._call)))

    def _resume(self) -> None:
        """Let a paused transfer go on, in both directions: each callback pauses again by itself."""
        if self._ended or self._done is None or self._done.done():
            return
        if self._head.complete:
            self._arm_idle()
        self._curl.pause(pycurl.PAUSE_CONT)

    # ── deadlines ──

    def _arm(self, phase: str, seconds: float) -> None:
        if seconds > 0:
            self._timers[phase] = self._loop.call_later(seconds, self._expire, phase, seconds)

    def _disarm(self, phase: str) -> None:
        timer = self._timers.pop(phase, None)
        if timer is not None:
            timer.cancel()

    def _arm_idle(self) -> None:
        """Count the gap from now. A byte only moves a mark; the timer looks at it when it rings."""
        self._last_progress = self._loop.time()
        idle_s = self._call.deadlines.idle_s
        if idle_s > 0 and "idle" not in self._timers and not self._ended:
            self._timers["idle"] = self._loop.call_later(idle_s, self._look_idle, idle_s)

    def _look_idle(self, idle_s: float) -> None:
        rings_at = self._last_progress + idle_s
        if self._loop.time() >= rings_at:
            self._expire("idle", idle_s)
        else:
            self._timers["idle"] = self._loop.call_at(rings_at, self._look_idle, idle_s)

    def _expire(self, phase: str, seconds: float) -> None:
        self.end(timed_out(phase, seconds, self._call))
