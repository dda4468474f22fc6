"""One call on its way: its handle, its deadlines and its answer. I/O, by the engine.

Invariants:
* Leaving the context ends the transfer in the same loop turn, in whatever state it is.
  One exception: an answer that may `let_end` goes on for that long, unread.
* A deadline is no timer: the engine's alarm is told the moment, and `look` is asked when it rings.
  libcurl keeps the connect deadline. The idle deadline rests while we hold the transfer, because
  that silence is the caller's.
* A short answer to a call that does not stream is handed over when it is all there, so that its
  reader is woken once. A caller that leaves before has had an answer all the same: the context is
  entered, and reading is what is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any

import pycurl

from aisix.core.ports import UpstreamAnswer, UpstreamCall
from aisix.transport.alarm import NEVER
from aisix.transport.body import HIGH_WATER_BYTES, BodyBuffer, read_all
from aisix.transport.engine import Engine
from aisix.transport.failures import Passage, failure, timed_out, unanswered
from aisix.transport.handles import Handle
from aisix.transport.upload import Upload

_TUNNEL_ENDS = frozenset({pycurl.E_HTTP_RETURNED_ERROR, pycurl.E_GOT_NOTHING})
"""Errors that are none once a tunnel has been answered: it was refused (libcurl 8.23 reads no body
of such an answer), or closed before a byte came."""

_SHORT_DIGITS = len(str(HIGH_WATER_BYTES))


class Transfer:
    """A call as an async context; inside it, the UpstreamAnswer."""

    __slots__ = (
        "_body",
        "_call",
        "_ended",
        "_engine",
        "_engine_for_now",
        "_grace_s",
        "_handle",
        "_leaves_at",
        "_opened",
        "_progress_at",
        "_started_at",
        "_upload",
        "first_byte_at",
        "headers",
        "last_byte_at",
        "status",
    )

    _engine: Engine
    _opened: asyncio.Future[None]

    def __init__(self, engine_for_now: Callable[[], Engine], call: UpstreamCall) -> None:
        self._engine_for_now = engine_for_now
        self._call = call
        self._body = BodyBuffer(self._resume)
        self._handle: Handle | None = None
        self._upload: Upload | None = None
        self._ended = False
        self._started_at = self._progress_at = 0.0
        self._grace_s = 0.0
        self._leaves_at = 0.0
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.first_byte_at = self.last_byte_at = 0.0

    async def __aenter__(self) -> UpstreamAnswer:
        """Send the call and wait for the head.

        Raises UpstreamUnreachable, UpstreamTimeout, UpstreamBroken (an answer that is not HTTP),
        UpstreamMisconfigured, and whatever the body's source raises.
        """
        engine = self._engine = self._engine_for_now()
        engine.transfers.add(self)
        self._opened = engine.loop.create_future()
        try:
            self._begin()
            await self._opened
        except asyncio.CancelledError as error:
            if not self.status:
                await self.__aexit__(None, None, None)
                raise
            # there is an answer, as far as it came: it is its reader who was cancelled
            self.end(None)
            self._body.interrupt(error)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._grace_s and not self._ended and error is None:
            self._leaves_at = self._engine.now() + self._grace_s
            self._engine.alarm.want(self._leaves_at)
            self._body.drop()
            return
        self.end(None)
        self._engine.left(self)
        if self._upload is not None:
            await self._upload.stop()

    @property
    def peak_body_bytes(self) -> int:
        """The most that waited for the reader."""
        return self._body.peak

    def read(self) -> Coroutine[Any, Any, bytes]:
        """The next piece of the body, all that has arrived; b"" at its end."""
        return self._body.read()

    async def read_all(self, limit: int = 0) -> bytes:
        """The rest of the body, cut off after `limit` bytes when `limit` is not 0."""
        if self._body.complete:
            data = self._body.take()
            return data[:limit] if limit else data
        return await read_all(self._body.read, limit)

    def let_end(self, within_s: float) -> None:
        """Leaving the context gives the upstream so long to end the answer by itself."""
        if self._upload is None:
            self._grace_s = within_s

    def end(self, error: BaseException | None) -> None:
        """Stop the transfer, if it still runs; a reader gets what came, then `error`. First wins.

        Never called inside a libcurl callback.
        """
        if self._ended:
            return
        handle, self._handle = self._handle, None
        if handle is not None:
            self._engine.driver.cancel(handle)
            handle.close()
        self._finish(error)

    def look(self, now: float) -> float:
        """End the transfer when a deadline has passed; the moment of its next one."""
        if self._ended:
            return NEVER
        if self._leaves_at:
            if self._leaves_at > now:
                return self._leaves_at
            self.end(None)
            return NEVER
        deadlines = self._call.deadlines
        if not self.status:
            # an upload is waited for as long as it moves: the upstream answers behind it
            sent_at = self._upload.moved_at if self._upload is not None else 0.0
            since = max(self._started_at, sent_at)
            phase, seconds = "first_byte", deadlines.first_byte_s
        else:
            phase, since, seconds = "idle", self._progress_at, deadlines.idle_s
        at = since + seconds if seconds and not self._body.held else NEVER
        if deadlines.total_s and self._started_at + deadlines.total_s < at:
            phase, seconds = "total", deadlines.total_s
            at = self._started_at + seconds
        if at > now:
            return at
        self.end(timed_out(phase, seconds, self._call))
        return NEVER

    # ── what libcurl's callbacks bring: only noted ──

    def on_head(self, status: int, headers: dict[str, str], first_byte_at: float) -> bool:
        """The final head is complete. There is one: an HTTP/2 stream that is reset with the wish
        for HTTP/1.1 is sent again by libcurl, whatever of its answer has been handed over."""
        if self.status:
            return False
        self.status = status
        self.headers = headers
        self.first_byte_at = first_byte_at
        self._note_progress()
        self._watch(self._progress_at, self._call.deadlines.idle_s)
        if self._call.target.streaming or self._upload or not _is_short(status, headers):
            self._wake()
        return True

    def on_body(self, piece: bytes) -> int | None:
        """A piece of the body; WRITEFUNC_PAUSE refuses it and holds the transfer."""
        if not self._body.offer(piece):
            self._wake()  # an answer that was to be short, and is not, needs its reader
            return pycurl.WRITEFUNC_PAUSE
        self._note_progress()
        return None

    def on_end(self, code: int, text: str) -> None:
        """The transfer came to its own end; `code` is libcurl's. Runs from the loop."""
        handle, self._handle = self._handle, None
        error = self._failure(code, text, handle)
        if handle is not None:
            if error is None:
                self._engine.put_back(handle)
            else:
                handle.close()
        self._finish(error)

    # ── inside ──

    def _begin(self) -> None:
        call, engine = self._call, self._engine
        if not isinstance(call.body, bytes):
            self._upload = Upload(
                call.body, resume=self._resume, fail=self.end, now=self._engine.now
            )
        handle = self._handle = engine.pool.take(call.target)
        try:
            handle.load(call, self._upload.read if self._upload is not None else None)
            handle.receiver = self
            self._started_at = now = engine.now()
            self._watch(now, call.deadlines.first_byte_s)
            self._watch(now, call.deadlines.total_s)
            engine.driver.start(handle)  # which may end it
        except BaseException:
            if self._handle is not None:  # else it has ended, and was put away
                self._handle = None
                engine.driver.cancel(handle)
                handle.close()
            raise
        if self._upload is not None and not self._ended:
            self._upload.start()

    def _finish(self, error: BaseException | None) -> None:
        self._ended = True
        if self.status:
            self._wake()
        elif error is not None and not self._opened.done():
            self._opened.set_exception(error)
        self._body.end(error)
        if self._leaves_at:
            self._engine.left(self)

    def _wake(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _resume(self) -> None:
        """Let a held transfer go on, in both directions: each callback holds again by itself."""
        if self._handle is None:
            return
        if self.status:
            self._progress_at = self._engine.now()
            self._watch(self._progress_at, self._call.deadlines.idle_s)
        self._engine.driver.resume(self._handle)

    def _note_progress(self) -> None:
        self.last_byte_at = self._progress_at = self._engine.now()

    def _watch(self, since: float, seconds: float) -> None:
        if seconds:
            self._engine.alarm.want(since + seconds)

    def _failure(self, code: int, text: str, handle: Handle | None) -> BaseException | None:
        if code in _TUNNEL_ENDS and self.status and self._call.target.is_tunnel:
            return None
        if code:
            passage = handle.passage() if handle is not None else Passage()
            error = failure(code, text, self._call, answered=self.status > 0, passage=passage)
            error.__cause__ = pycurl.error(code, text)
            return error
        return None if self.status else unanswered(self._call)


def _is_short(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a success says that its whole body fits the buffer."""
    length = headers.get("content-length", "")
    if status >= 300 or not length.isdecimal() or len(length) > _SHORT_DIGITS:
        return False
    return int(length) <= HIGH_WATER_BYTES
