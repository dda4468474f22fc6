"""The one handler of the proxy: every path, every method, one pipeline.

The pipeline starts as soon as the head has arrived, so that a refusal need not wait for the body.
A caller that leaves, at any moment, cancels the pipeline's task; the cancellation ends the
upstream transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from aisix.core.exchange import Exchange
from aisix.core.request import InboundRequest
from aisix.errors import BodyTooLarge, GatewayError
from aisix.pipeline import Pipeline
from aisix.web.base import BaseHandler, ProcessState, request_id
from aisix.web.body import SWALLOW_S, StreamedBody, body_too_large, is_framed
from aisix.web.reply import HandlerReply
from aisix.web.routes import Match, Routes


@dataclass(frozen=True, slots=True)
class ProxyFront:
    """What the handler needs of the rest."""

    pipeline: Pipeline
    routes: Routes
    state: ProcessState
    body_limit_bytes: int
    accept_request_ids: Sequence[str]
    swallow_s: float = SWALLOW_S


@stream_request_body
class InferenceHandler(BaseHandler):
    """Runs the pipeline for one request."""

    def initialize(self, front: ProxyFront) -> None:
        """Called by Tornado for each request."""
        self.front = front
        self.body = StreamedBody()
        self.reply = HandlerReply(self, may_finish=self._may_finish)
        self.task: asyncio.Task[Exchange] | None = None
        self.patience: asyncio.TimerHandle | None = None
        self.name_request(request_id(self.request.headers, front.accept_request_ids))
        self.method = self.request.method or ""
        if self.method not in self.SUPPORTED_METHODS:
            # Tornado would refuse it before `prepare`, and so past the pipeline
            self.request.method = "OPTIONS"

    def prepare(self) -> Awaitable[None] | None:
        """Start the pipeline; the body follows."""
        front = self.front
        if not is_framed(self.request.headers):
            return None  # Tornado is about to answer 400 itself; two answers would be read as two
        match = front.routes.match(self.method, self.request.path)
        inbound = InboundRequest(
            request_id=self.request_id,
            spec=match.spec,
            method=self.method,
            path=self.request.path,
            headers=self.request.headers,
            body=self.body,
            client_address=self.request.remote_ip or "",
            path_name=match.path_name,
            refusal=self._refusal(match),
        )
        task = asyncio.get_running_loop().create_task(front.pipeline.run(inbound, self.reply))
        self.task = task
        front.state.begin(self)
        task.add_done_callback(self._pipeline_ended)
        # Tornado says `100 Continue` next: not before the body is wanted
        return self.body.until_decided() if self._expects_continue() else None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """A piece of the body; None or what to wait for before the next."""
        try:
            return self.body.feed(chunk)
        except BodyTooLarge:
            self.reply.abort()
            return None

    async def _answer(self) -> None:
        """The body is complete; the answer may be under way already."""
        self.body.finish()
        self._stop_waiting()
        if self._connection_closed():
            self.on_connection_close()  # seen while the head was read: Tornado tells nobody
        task = self.task
        if task is None:
            return
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
        if self.reply.departed or not self.reply.ended:
            self.reply.abort()

    get = post = put = patch = delete = head = options = _answer

    def on_connection_close(self) -> None:
        """The caller has gone: end everything that runs for it."""
        super().on_connection_close()
        self.reply.depart()
        self.body.depart()
        self._stop_waiting()
        self.cut()
        self.front.state.end(self)

    def cut(self) -> None:
        """End the exchange now, whatever it is doing."""
        if self.task is not None:
            self.task.cancel()

    def flush(self, include_footers: bool = False) -> asyncio.Future[None]:
        """What was written leaves. A head that leaves while the process drains says so, even when
        the request came before; callers then open their next connection elsewhere."""
        if self.front.state.draining and not self._headers_written:
            self.set_header("Connection", "close")
        return super().flush(include_footers)

    def finish(self, chunk: Any = None) -> asyncio.Future[None]:
        """The last byte; the request is in flight until the socket has all of the answer."""
        if not self.body.complete:
            self.set_header("Connection", "close")  # Tornado closes on a body it has not read
        stream = getattr(self.request.connection, "stream", None)
        future = super().finish(chunk)
        try:
            tail = stream.write(b"") if stream is not None else future
        except StreamClosedError:
            self.front.state.end(self)
        else:
            tail.add_done_callback(self._tail_written)
        return future

    def _tail_written(self, _: asyncio.Future[None]) -> None:
        self.front.state.end(self)
        if self._headers.get("Connection") == "close":
            self.reply.abort()  # as announced; the answer is whole

    def _may_finish(self) -> bool:
        """Whether the answer may be completed: its caller has sent all, or waits to be told to."""
        return self.body.complete or (self._expects_continue() and not self.body.wanted)

    def _expects_continue(self) -> bool:
        expected: str | None = self.request.headers.get("Expect")
        return expected == "100-continue"

    def _connection_closed(self) -> bool:
        stream = getattr(self.request.connection, "stream", None)
        return stream is not None and stream.closed()

    def _pipeline_ended(self, task: asyncio.Task[Exchange]) -> None:
        self.body.discard()
        if not (self.body.complete or self.reply.departed or self._finished):
            # the caller has its answer, the rest of its body may never come
            loop = asyncio.get_running_loop()
            self.patience = loop.call_later(self.front.swallow_s, self.reply.abort)
        if not task.cancelled():
            task.exception()

    def _stop_waiting(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def _refusal(self, match: Match) -> GatewayError | None:
        if match.refusal is not None:
            return match.refusal
        limit = self.front.body_limit_bytes
        declared = self.request.headers.get("Content-Length")
        if limit and declared and declared.isdecimal() and int(declared) > limit:
            return body_too_large(limit)
        return None
