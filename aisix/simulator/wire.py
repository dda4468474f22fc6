"""Puts one answer on the wire, with whatever the script does to it on the way.

Writes straight to Tornado's stream, so that it can do what a framework would not: break off
inside an event, reset, answer something that is not HTTP. Every wait also ends when the caller
leaves; every write waits until the bytes are with the kernel, so a caller that reads slowly
holds the simulator back. I/O.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Iterator
from email.utils import formatdate
from http.client import responses

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from aisix.simulator.exchange import Answer
from aisix.simulator.journal import COMPLETED, CUT, Journal, RequestRecord
from aisix.simulator.script import NORMAL, Script

_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nx-ms-region: East US 2\r\n\r\n"
_GARBAGE = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n\r\n"
_COMMENT = b": keep-alive\n\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST


class CallerLeft(Exception):
    """The caller closed the connection before the answer was out."""


class BrokenOff(Exception):
    """The script ended the connection."""


class Gate:
    """Where stalled answers wait until someone lets them go on."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        """How many answers stand here."""
        return len(self._waiting)

    def release(self) -> int:
        """Let all go on; says how many there were."""
        released = [future for future in self._waiting if not future.done()]
        for future in released:
            future.set_result(None)
        self._waiting.clear()
        return len(released)

    def enter(self) -> asyncio.Future[None]:
        """A future that ends at the next release."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        """Stop waiting."""
        self._waiting.discard(future)


class Wire:
    """The way back of one request."""

    def __init__(
        self, connection: HTTP1Connection, record: RequestRecord, journal: Journal, *, gate: Gate
    ) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._record = record
        self._journal = journal
        self._gate = gate
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunked = False
        self._head_only = record.method == "HEAD"
        self._held = b""
        self._pending = bytearray()
        self._split: int | None = None

    def caller_left(self) -> None:
        """Tell the wire that the connection was closed from the other side."""
        if not self._left.done():
            self._left.set_result(None)

    async def play(self, answer: Answer, script: Script, *, keep_alive: bool) -> str:
        """Send the answer as scripted; returns the outcome.

        Raises:
            CallerLeft: the caller closed the connection first.
        """
        self._split = script.split
        try:
            await self._before_head(script)
            keep_alive = keep_alive and not script.close
            await self._head(answer, script, keep_alive=keep_alive)
            if script.gap:
                await self._delay(script.gap / 1000)
            if answer.events is None:
                await self._play_pieces(answer.pieces or iter((answer.body,)), script)
            else:
                await self._play_events(answer.events, script, answer.late_error)
            await self._end()
        except BrokenOff:
            self._stream.close()
            return CUT
        except StreamClosedError:
            raise CallerLeft from None
        if script.closeafter or not keep_alive:
            self._stream.close()
        return COMPLETED

    async def delay_head(self, script: Script) -> None:
        """What the script has before the head of an answer that others write. Raises CallerLeft,
        BrokenOff."""
        await self._before_head(script)

    # --- waiting --------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        """Wait; ends with `CallerLeft` as soon as the caller has gone."""
        await asyncio.wait((self._left,), timeout=seconds)
        if self._left.done():
            raise CallerLeft

    async def _delay(self, seconds: float) -> None:
        self._enter("delayed")
        await self.pause(seconds)
        self._enter("sending")

    def _enter(self, phase: str) -> None:
        self._record.phase = phase
        self._journal.changed()

    async def _hold(self, phase: str) -> None:
        released = self._gate.enter()
        self._enter(phase)
        try:
            await asyncio.wait((self._left, released), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._gate.leave(released)
        if self._left.done():
            raise CallerLeft
        self._enter("sending")

    # --- the head -------------------------------------------------------------------------------

    async def _before_head(self, script: Script) -> None:
        if script.slow:
            await self._delay(script.slow / 1000)
        if script.hang:
            await self._hold("hanging")
        if script.drop:
            raise BrokenOff
        if script.rst:
            self._break_hard()
        if script.garbage:
            await self._raw(_GARBAGE)
            raise BrokenOff
        if script.hints:
            await self._raw(_EARLY_HINTS)

    async def _head(self, answer: Answer, script: Script, *, keep_alive: bool) -> None:
        headers = [*answer.headers, ("date", formatdate(usegmt=True))]
        length = len(answer.body) if answer.pieces is None else answer.length
        unsized = (
            answer.events is not None or length is None or script.chunked or script.end is not None
        )
        self._chunked = unsized and self._record.version == "HTTP/1.1"
        if self._chunked:
            headers.append(("transfer-encoding", "chunked"))
        elif not unsized:
            headers.append(("content-length", str(length)))
        if not keep_alive:
            headers.append(("connection", "close"))
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        self._record.status = answer.status
        self._enter("sending")
        if script.halfhead:
            await self._raw(head[: len(head) // 2])
            raise BrokenOff
        if answer.events is None and script == NORMAL:
            self._held = head  # nothing happens between head and body: one write for both
        else:
            await self._raw(head)

    # --- the body -------------------------------------------------------------------------------

    async def _play_pieces(self, pieces: Iterator[bytes], script: Script) -> None:
        """A body that is no stream of events; the numbers of the script count its bytes."""
        if self._head_only:
            return
        marks, sent = _marks(script), 0
        for number, whole in enumerate(pieces):
            piece = whole
            if script.d and number:
                await self._flush()
                await self.pause(script.d / 1000)
            while marks and marks[0][0] <= sent + len(piece):
                at, what = marks.pop(0)
                before, piece = piece[: at - sent], piece[at - sent :]
                await self._emit(before)
                sent = at
                if not await self._strike(what, piece[: max(1, len(piece) // 2)]):
                    return
            await self._emit(piece)
            sent += len(piece)

    async def _play_events(self, events: Iterator[bytes], script: Script, error: bytes) -> None:
        if script.burst:
            events = iter((b"".join(events),))
        marks = _marks(script)
        mark = marks.pop(0) if marks else None
        for number, event in enumerate(itertools.chain(events, (b"",))):
            while mark is not None and mark[0] == number:
                if mark[1] == "fail":
                    await self._emit(_dressed(error, script))
                    return
                if not await self._strike(mark[1], event[: len(event) // 2]):
                    return
                mark = marks.pop(0) if marks else None
            if not event:
                return
            if script.d and number:
                await self._flush()
                await self.pause(script.d / 1000)
            await self._emit(_dressed(event, script))
            self._record.events_sent += 1
            self._journal.changed()

    async def _strike(self, what: str, half: bytes) -> bool:
        """Do what the script says at this point; False when the body is to end here."""
        await self._flush()
        if what == "stall":
            await self._hold("stalled")
            return True
        if what == "half":
            await self._emit(half)
            await self._flush()
        if what == "reset":
            self._break_hard()
        if what == "end":
            return False
        if what in {"half", "cut"}:
            raise BrokenOff
        return True

    async def _emit(self, data: bytes) -> None:
        """Send body bytes, cut to the scripted size of writes."""
        if self._split is None:
            await self._write(data)
            return
        self._pending += data
        size = max(1, self._split)
        while len(self._pending) >= size:
            piece = bytes(self._pending[:size])
            del self._pending[:size]
            await self._write(piece)

    async def _flush(self) -> None:
        if self._pending:
            rest = bytes(self._pending)
            self._pending.clear()
            await self._write(rest)

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        await self._raw(framed)
        self._record.bytes_sent += len(data)
        self._journal.changed()
        await asyncio.sleep(0)  # a write that the kernel took at once does not yield by itself

    async def _end(self) -> None:
        await self._flush()
        if self._held:
            await self._raw(b"")
        if self._chunked and not self._head_only:
            await self._raw(b"0\r\n\r\n")
        self._connection.finish()

    async def _raw(self, data: bytes) -> None:
        if self._left.done():
            raise CallerLeft
        held, self._held = self._held, b""
        await self._stream.write(held + data)

    def _break_hard(self) -> None:
        sock = self._stream.socket
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise BrokenOff


def _marks(script: Script) -> list[tuple[int, str]]:
    """Where in a body something happens, first things first; a stall comes before an end."""
    order = ("stall", "fail", "end", "half", "cut", "reset")
    marks = [(getattr(script, what), what) for what in order]
    return sorted(((at, what) for at, what in marks if at is not None), key=lambda mark: mark[0])


def _dressed(event: bytes, script: Script) -> bytes:
    if script.comments:
        event = _COMMENT + event
    return event.replace(b"\n", b"\r\n") if script.crlf else event
