"""The way back to the caller over one connection: implements the Reply port.

A whole answer is one write, a stream one write per piece, each with its chunk frame. Writing waits
for the flush to the socket, so a caller that reads nothing stops the pump. A closed connection
becomes CallerDeparted wherever it is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http.client import responses
from time import time
from typing import Protocol

from aisix import __version__
from aisix.errors import CallerDeparted, InternalError

SERVER = f"AISIX/{__version__}"

_STATUS_LINES = {
    code: f"HTTP/1.1 {code} {responses.get(code, 'Unknown')}\r\nServer: {SERVER}\r\n"
    for code in range(100, 600)
}


@lru_cache(maxsize=1)
def _date_line(second: int) -> str:
    """RFC 9110 §6.6.1; made once a second."""
    return f"Date: {formatdate(second, usegmt=True)}\r\n"


_LAST_CHUNK = b"0\r\n\r\n"
_BODILESS = frozenset({204, 304})
"""Statuses whose answers end with their head, and say nothing of a length (RFC 9110 §8.6)."""


class Line(Protocol):
    """What a reply needs of its connection."""

    old: bool
    """HTTP/1.0: an answer of unknown length ends with the connection."""
    bodiless: bool
    """The request was a HEAD: its answer has no body."""

    def connection_header(self) -> str:
        """The `Connection` line that this answer needs, "" for none."""

    async def write(self, data: bytes) -> None:
        """Hand over; returns when the socket has it. Raises CallerDeparted."""

    def hang_up(self) -> None:
        """Close now."""

    def reset(self) -> None:
        """Close now, so that the caller sees that something is missing."""


class ConnectionReply:
    """One answer on one connection."""

    __slots__ = (
        "_bodiless",
        "_closing",
        "_departure",
        "_head_bytes",
        "_ids",
        "_line",
        "_raw",
        "committed",
        "departed",
        "ended",
        "switched",
    )

    def __init__(self, line: Line, request_id: str) -> None:
        self._line = line
        self._ids = f"x-aisix-request-id: {request_id}\r\nx-request-id: {request_id}\r\n"
        self._raw = False
        self._bodiless = line.bodiless
        self._closing = False
        self._head_bytes = b""
        self._departure: asyncio.Future[None] | None = None
        self.committed = False
        """Whether a status line has been sent."""
        self.departed = False
        """Whether the caller has closed its connection."""
        self.ended = False
        """Whether the end of the answer has been written."""
        self.switched = False
        """Whether the connection has changed to another protocol."""

    def depart(self) -> None:
        """The connection was closed by the caller."""
        self.departed = True
        if self._departure is not None and not self._departure.done():
            self._departure.set_result(None)

    async def wait_departed(self) -> None:
        """Until the caller has gone. For one waiter."""
        if not self.departed:
            self._departure = asyncio.get_running_loop().create_future()
            await self._departure

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer at once."""
        framing = f"{self._line.connection_header()}Content-Length: {len(body)}\r\n"
        head = self._head(status, headers, framing)
        self.committed = self.ended = True
        await self._line.write(head if self._bodiless else head + body)

    async def start(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        """The head of an answer that follows in pieces; it leaves with the first of them."""
        # HTTP/1.0 has no chunks: the end of the connection is the end of the answer
        self._raw = self._line.old or length is not None
        framing = self._line.connection_header()
        if status in _BODILESS:
            self._bodiless = True
        elif length is not None:
            framing += f"Content-Length: {length}\r\n"
        elif not self._raw:
            framing += "Transfer-Encoding: chunked\r\n"
        self._closing = length is None and self._line.old and not self._bodiless
        self._head_bytes = self._head(status, headers, framing)
        self.committed = True

    async def switch(self, headers: Mapping[str, str]) -> None:
        """Agree to a WebSocket; what is written from now on goes out as it is."""
        head = self._head(101, headers, "Upgrade: websocket\r\nConnection: Upgrade\r\n")
        self.committed = self.switched = self._raw = self._closing = True
        await self._line.write(head)

    async def write(self, data: bytes) -> None:
        """More of the answer, handed to the socket when this returns."""
        if self.departed:
            raise CallerDeparted
        head, self._head_bytes = self._head_bytes, b""
        if self._bodiless:
            data = b""
        elif data and not self._raw:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if head or data:
            await self._line.write(head + data)

    async def finish(self) -> None:
        """The end of a started answer."""
        if self.departed:
            raise CallerDeparted
        head, self._head_bytes = self._head_bytes, b""
        self.ended = True
        last = b"" if self._raw or self._bodiless else _LAST_CHUNK
        if head or last:
            await self._line.write(head + last)
        if self._closing:
            self._line.hang_up()

    def abort(self) -> None:
        """Close the connection without a proper end."""
        self.ended = True
        if self._closing:
            self._line.reset()  # or its end would be taken for that of the answer
        else:
            self._line.hang_up()

    def _head(self, status: int, headers: Mapping[str, str], framing: str) -> bytes:
        if self.departed:
            raise CallerDeparted
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise InternalError("the gateway failed to serve this request", detail="header forged")
        return (
            f"{_STATUS_LINES[status]}{_date_line(int(time()))}{self._ids}{lines}{framing}\r\n"
        ).encode("latin-1")
