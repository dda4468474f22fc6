"""Lets a Tornado `Application` answer on a connection of ours: the probes. I/O.

Implements `httputil.HTTPConnection`, which is all that handlers know of a server. Only small
requests come this way: the body is read whole before the handler runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado import httputil
from tornado.concurrent import Future
from tornado.iostream import IOStream, StreamClosedError

from aisix.errors import BadRequest
from aisix.web.codec import Message
from aisix.web.connection import Connection

BODY_LIMIT_BYTES = 64 * 1024


class Handover(httputil.HTTPConnection):
    """One request of one connection, in Tornado's hands."""

    def __init__(self, connection: Connection, message: Message) -> None:
        self.context = connection
        """Tornado reads `remote_ip` and `protocol` of it."""
        self.ended = False
        self.departed = False
        self.switched = False
        self._connection = connection
        self._message = message
        self._chunked = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_close: Callable[[], None] | None = None

    async def run(self, application: httputil.HTTPServerConnectionDelegate) -> None:
        """Until the handler has finished or the caller has left.

        Raises what reading the body raises, and BadRequest for a head that Tornado cannot read: it
        finds several hosts in a Host with a comma, for one.
        """
        message = self._message
        body = await message.body.read_all(BODY_LIMIT_BYTES)
        self._connection.hand_back()
        delegate = application.start_request(self, self)
        version = "HTTP/1.0" if message.old else "HTTP/1.1"
        line = httputil.RequestStartLine(message.method, message.target, version)
        try:
            headers = httputil.HTTPHeaders()
            for name, value in message.headers.items():
                headers.add(name, value)
            delegate.headers_received(line, headers)
        except httputil.HTTPInputError as error:
            raise BadRequest(f"the request is malformed: {error}") from error
        if body:
            delegate.data_received(body)
        delegate.finish()
        await self._done

    def depart(self) -> None:
        """The caller has gone."""
        self.departed = True
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback()
        self._settle()

    # ── httputil.HTTPConnection ──

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Called when the caller leaves before the end."""
        self._on_close = callback

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> Future[None]:
        """The head, and the first piece."""
        if not isinstance(start_line, httputil.ResponseStartLine):
            raise TypeError("a server answers")
        bodiless = self._connection.bodiless or start_line.code in (101, 204, 304)
        self._chunked = not bodiless and "Content-Length" not in headers
        if self._chunked and not self._message.old:
            headers["Transfer-Encoding"] = "chunked"
        lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.get_all()]
        if "Connection" not in headers:
            lines.append(self._connection.connection_header(probe=True))
        data = "".join([*lines, "\r\n"]).encode("latin-1")
        return self._send(data + self._frame(chunk or b""))

    def write(self, chunk: bytes) -> Future[None]:
        """More of the body."""
        return self._send(self._frame(chunk))

    def finish(self) -> None:
        """The end of the answer."""
        self.ended = True
        if self._chunked and self._message.old:
            self._connection.hang_up()
        elif self._chunked:
            self._send(b"0\r\n\r\n")
        self._settle()

    def detach(self) -> IOStream:
        """Give the stream away: what follows is not HTTP."""
        self.ended = self._connection.detached = True
        self._settle()
        return self._connection.stream

    def _frame(self, chunk: bytes) -> bytes:
        if not chunk or not self._chunked or self._message.old:
            return chunk
        return b"%x\r\n%b\r\n" % (len(chunk), chunk)

    def _send(self, data: bytes) -> Future[None]:
        try:
            return self._connection.stream.write(data)
        except StreamClosedError as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            failed.exception()  # seen, whether anybody waits for it or not
            return failed

    def _settle(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
