"""Carries an answer from the upstream to the caller. I/O, through ports only.

Invariants: one writer at a time, and nothing is read from the upstream while a write waits for its
flush: that is the backpressure. What one read brought goes out in one write, at once. A stream is
committed by its first data event worth sending, not before: an error that comes first still
becomes an error status. After `keepalive_s` of silence a comment keeps the connection alive (and
commits, if nothing had). A pending read is never cancelled for a heartbeat, so no byte is lost and
the transport's idle deadline keeps running.

Failures after the commit point are raised like those before; the pipeline tells them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ujson

from aisix.core.endpoints import UsageForm
from aisix.core.exchange import Exchange, Phase
from aisix.core.ports import Clock, Meter, Reply, UpstreamAnswer
from aisix.errors import GatewayError, UpstreamBroken
from aisix.relay.rewrite import StreamRewriter, rewrite_answer
from aisix.relay.sse import SseSplitter

HEARTBEAT = b":\n\n"
STREAM_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
EXTENSIONS_HEADER = "x-aisix-azure-extensions"
"""Request header; "keep" leaves Azure's extension fields in the answer."""

_HELD_BYTES = 4096
"""Comments held back before the first data event; more of them commit the stream."""
_DRAIN_S = 0.25
"""How long to wait, after the end mark, for the upstream's own end: it saves the connection."""


class Relay:
    """Sends answers on in the form the caller asked for."""

    def __init__(self, *, clock: Clock, keepalive_s: float) -> None:
        self._clock = clock
        self._keepalive_s = keepalive_s

    async def relay(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        """Send `answer`, a success, on to the caller; `headers` go into the head.

        Raises UpstreamBroken and UpstreamTimeout, before or after the commit point, and
        CallerDeparted.
        """
        exchange.timings.upstream_first_byte = answer.first_byte_at
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if exchange.streaming and media_type == "text/event-stream":
                out = _StreamReply(
                    exchange,
                    reply,
                    clock=self._clock,
                    keepalive_s=self._keepalive_s,
                    headers={**headers, **STREAM_HEADERS},
                )
                await self._relay_stream(exchange, answer, out, meter=meter)
            elif _is_json(media_type) or exchange.request.spec.usage is not UsageForm.NONE:
                # Endpoints with a usage block answer in JSON, whatever a front door calls it.
                await self._relay_document(exchange, answer, reply, headers=headers, meter=meter)
            else:
                await self._relay_pieces(exchange, answer, reply, headers=headers)
        finally:
            exchange.timings.upstream_last_byte = answer.last_byte_at

    async def _relay_stream(
        self, exchange: Exchange, answer: UpstreamAnswer, out: _StreamReply, *, meter: Meter
    ) -> None:
        payload = exchange.payload
        rewriter = StreamRewriter(
            exchange.request.spec,
            alias_name=_asked_name(exchange),
            include_usage=payload is not None and payload.include_usage,
            keep_extensions=_keeps_extensions(exchange),
            observe=meter.observe,
        )
        splitter = SseSplitter()
        piece = b""
        async with out.alive():
            while not rewriter.saw_done:
                piece = await _read(answer, rewriter)
                data, failure = _rewrite_piece(piece, splitter, rewriter)
                if rewriter.first_content_seen and not exchange.timings.first_token:
                    exchange.timings.first_token = self._clock.monotonic()
                if failure is not None and not out.committed:
                    raise failure
                await out.write(data, worth_a_head=rewriter.delivered > 0 or not piece)
                if failure is not None:
                    raise failure
                if not piece:
                    break
            await out.finish()
        if piece:
            await _drain(answer)

    async def _relay_document(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        body = rewrite_answer(
            await answer.read_all(),
            exchange.request.spec,
            alias_name=_asked_name(exchange),
            keep_extensions=_keeps_extensions(exchange),
            observe=meter.observe,
        )
        _commit(exchange, answer.status)
        await reply.send(answer.status, {**headers, "Content-Type": "application/json"}, body)
        exchange.timings.first_out = self._clock.monotonic()

    async def _relay_pieces(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
    ) -> None:
        """Anything else passes as it comes."""
        piece = await answer.read()
        head = dict(headers)
        if "content-type" in answer.headers:
            head["Content-Type"] = answer.headers["content-type"]
        _commit(exchange, answer.status)
        await reply.start(answer.status, head)
        while piece:
            await reply.write(piece)
            if not exchange.timings.first_out:
                exchange.timings.first_out = self._clock.monotonic()
            piece = await answer.read()
        await reply.finish()


class _StreamReply:
    """The caller's side of one stream: a late head, one writer at a time, heartbeats.

    A heartbeat is written by a task of its own, and only while the stream waits for the upstream;
    the next write waits for it. When it fails, the wait for the upstream is ended with its error.
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
        self._guard = asyncio.timeout(None)
        self._held = bytearray()
        self._writing = False
        self._last_write_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self.committed = False

    @contextlib.asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Heartbeats inside. Leaving waits for one that is being written."""
        try:
            async with self._guard:
                self._arm(self._keepalive_s)
                try:
                    yield
                except asyncio.CancelledError:
                    if self._beat is not None:
                        self._beat.cancel()
                    raise
                finally:
                    self._disarm()
                    await self._join_beat()
        except TimeoutError:
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure

    async def write(self, data: bytes, *, worth_a_head: bool) -> None:
        """Send `data`; as long as nothing was `worth_a_head`, keep it back instead."""
        await self._join_beat()
        if self._failure is not None:
            raise self._failure
        if not self.committed and not worth_a_head:
            self._held += data
            if len(self._held) <= _HELD_BYTES:
                return
            data = b""
        elif self.committed and not data:
            return
        self._writing = True
        try:
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
            _commit(self._exchange, 200)
            await self._reply.start(200, self._headers)
            data = bytes(self._held) + data
            self._held.clear()
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
        self._failure = beat.exception()
        if self._failure is None:
            self._arm(self._keepalive_s)
        else:
            self._guard.reschedule(self._loop.time())

    async def _join_beat(self) -> None:
        beat = self._beat
        if beat is None:
            return
        try:
            await asyncio.wait((beat,))
        except asyncio.CancelledError:
            beat.cancel()
            raise


def error_event(envelope: Mapping[str, Any]) -> bytes:
    """A late error as an event of its own; no end mark may follow it."""
    text = ujson.dumps(envelope, escape_forward_slashes=False)
    return b"event: error\ndata: " + text.encode() + b"\n\n"


def _rewrite_piece(
    piece: bytes, splitter: SseSplitter, rewriter: StreamRewriter
) -> tuple[bytes, UpstreamBroken | None]:
    """What the caller gets for one read (b"" is the end), and what went wrong after that."""
    data = bytearray()
    try:
        for event in splitter.feed(piece) if piece else splitter.finish():
            data += rewriter.feed(event)
        if not piece:
            data += rewriter.end()
    except UpstreamBroken as failure:
        return bytes(data), failure
    return bytes(data), None


async def _read(answer: UpstreamAnswer, rewriter: StreamRewriter) -> bytes:
    """The next piece; a connection cut after the last choice was finished is an end like any."""
    try:
        return await answer.read()
    except UpstreamBroken as error:
        if error.kind == "cut" and rewriter.complete:
            return b""
        raise


async def _drain(answer: UpstreamAnswer) -> None:
    """Wait a moment for the upstream's end, so that its connection can be used again."""
    with contextlib.suppress(TimeoutError, GatewayError):
        async with asyncio.timeout(_DRAIN_S):
            while await answer.read():
                pass


def _commit(exchange: Exchange, status: int) -> None:
    """From here on the caller sees the answer."""
    exchange.status = status
    exchange.advance(Phase.COMMITTED)


def _is_json(media_type: str) -> bool:
    return media_type in ("", "application/json") or media_type.endswith("+json")


def _asked_name(exchange: Exchange) -> str:
    """The name the caller asked for, which is the only one it gets to see."""
    if exchange.payload is not None:
        return exchange.payload.requested
    return exchange.alias.name if exchange.alias is not None else ""


def _keeps_extensions(exchange: Exchange) -> bool:
    wish = exchange.request.headers.get(EXTENSIONS_HEADER) or ""
    return bool(wish.strip().lower() == "keep")
