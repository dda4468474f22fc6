"""The way back to the caller over a Tornado handler: implements the Reply port.

Writing waits for the flush to the socket, so a caller that reads nothing stops the pump. A closed
connection becomes CallerDeparted wherever it is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from aisix.errors import CallerDeparted


class HandlerReply:
    """One answer of one handler."""

    def __init__(self, handler: RequestHandler, *, may_finish: Callable[[], bool]) -> None:
        self._handler = handler
        self._may_finish = may_finish
        self._committed = False
        self._departed = False
        self._ended = False
        self._ends_with_connection = False

    @property
    def committed(self) -> bool:
        """Whether a status line has been sent."""
        return self._committed

    @property
    def departed(self) -> bool:
        """Whether the caller has closed its connection."""
        return self._departed

    @property
    def ended(self) -> bool:
        """Whether the end of the answer has been written."""
        return self._ended

    def depart(self) -> None:
        """The connection was closed by the caller."""
        self._departed = True

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer at once."""
        if self._departed:
            raise CallerDeparted
        self._head(status, headers)
        self._handler.set_header("Content-Length", str(len(body)))
        self._handler.write(body)
        await self._end()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The head; it leaves with the first write, or alone when `finish` comes first."""
        self._head(status, headers)
        # a small piece must not wait for the caller's delayed acknowledgement of the one before;
        # Tornado sets this only at the end of an answer
        stream = getattr(self._handler.request.connection, "stream", None)
        if stream is not None and not stream.closed():
            stream.set_nodelay(True)
        # HTTP/1.0 has no chunks: the end of the connection is the end of the answer
        self._ends_with_connection = self._handler.request.version == "HTTP/1.0"

    async def write(self, data: bytes) -> None:
        """More of the answer, handed to the socket when this returns."""
        if self._departed:
            raise CallerDeparted
        self._handler.write(data)
        await self._flush()

    async def finish(self) -> None:
        """The end of a started answer."""
        if self._departed:
            raise CallerDeparted
        await self._end()

    def abort(self) -> None:
        """Close the connection without a proper end."""
        self._ended = True
        self._close()

    def _close(self) -> None:
        connection = self._handler.request.connection
        stream = getattr(connection, "stream", None)
        if stream is not None:
            stream.close()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self._committed = True
        self._handler.set_status(status)
        for name, value in headers.items():
            self._handler.set_header(name, value)

    async def _end(self) -> None:
        """Complete the message. While the request body is still coming in, only what there is
        leaves: Tornado would close the connection under a caller that sends; the handler ends it.
        """
        self._ended = True
        if not self._may_finish():
            await self._flush()
            return
        try:
            await self._handler.finish()
        except StreamClosedError as error:
            self._departed = True
            raise CallerDeparted from error
        if self._ends_with_connection:
            self._close()

    async def _flush(self) -> None:
        try:
            await self._handler.flush()
        except StreamClosedError as error:
            self._departed = True
            raise CallerDeparted from error
