"""An HTTP/2 server over TLS that plays scripts, one stream each. I/O.

    async with h2_server(play, tls=context) as server: ...

`play(stream)` is called once a request is whole; `stream.request_body` holds its body. A piece is
sent within the client's flow-control window, so a client that does not read holds the server back.
`stream.left` is set when the client resets the stream or closes the connection before its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError


class Left(Exception):
    """The client went away while the server was sending."""


class H2Stream:
    """One request and the way to answer it."""

    def __init__(self, owner: _Connection, number: int) -> None:
        self._owner = owner
        self._number = number
        self.request_body = b""
        self.sent_bytes = 0
        self.left = asyncio.Event()
        self.window = asyncio.Event()

    async def head(self, status: int, headers: Sequence[tuple[str, str]], *, end: bool) -> None:
        """The head; `end` when there is no body."""
        fields = [(":status", str(status)), *headers]
        self._owner.h2.send_headers(self._number, fields, end_stream=end)
        await self._owner.flush()

    async def send(self, data: bytes) -> None:
        """More of the body. Raises Left."""
        while data:
            h2 = self._owner.h2
            self._check()
            room = min(h2.local_flow_control_window(self._number), h2.max_outbound_frame_size)
            if room <= 0:
                self.window.clear()
                await self.window.wait()
                continue
            h2.send_data(self._number, data[:room])
            self.sent_bytes += len(data[:room])
            data = data[room:]
            await self._unless_left(self._owner.flush())

    async def finish(self) -> None:
        """The proper end."""
        self._check()
        self._owner.h2.end_stream(self._number)
        await self._owner.flush()

    async def reset(self) -> None:
        """The improper end."""
        self._owner.h2.reset_stream(self._number, error_code=ErrorCodes.INTERNAL_ERROR)
        await self._owner.flush()

    async def silence(self, event: asyncio.Event) -> None:
        """Say nothing until `event`. Raises Left."""
        await self._unless_left(event.wait())

    async def _unless_left(self, what: Coroutine[Any, Any, Any]) -> None:
        waits = [asyncio.create_task(what), asyncio.create_task(self.left.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        self._check()

    def _check(self) -> None:
        if self.left.is_set():
            raise Left


Play = Callable[[H2Stream], Awaitable[None]]


@dataclass
class H2Server:
    """Where it listens, and whom it has met."""

    port: int
    connections: int = 0
    streams: list[H2Stream] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


class _Connection:
    def __init__(self, server: H2Server, play: Play, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._server = server
        self._play = play
        self._writer = writer
        self._streams: dict[int, H2Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def run(self, reader: asyncio.StreamReader) -> None:
        try:
            self.h2.initiate_connection()
            await self.flush()
            while data := await reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._take(event)
                # not flushed: a client that reads nothing must still be heard
                self._writer.write(self.h2.data_to_send())
        except (ConnectionError, ssl.SSLError, ProtocolError):
            pass
        finally:
            for stream in self._streams.values():
                _leave(stream)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)

    def _take(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            stream = self._streams[event.stream_id] = H2Stream(self, event.stream_id)
            self._server.streams.append(stream)
        elif isinstance(event, DataReceived):
            self._streams[event.stream_id].request_body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            task = asyncio.create_task(self._answer(self._streams[event.stream_id]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(event, StreamReset):
            _leave(self._streams[event.stream_id])
        elif isinstance(event, WindowUpdated):
            for stream in self._streams.values():
                stream.window.set()

    async def _answer(self, stream: H2Stream) -> None:
        try:
            await self._play(stream)
        except (Left, ConnectionError, ProtocolError):
            stream.left.set()
        except Exception as error:
            self._server.failures.append(error)


def _leave(stream: H2Stream) -> None:
    stream.left.set()
    stream.window.set()


@asynccontextmanager
async def h2_server(play: Play, *, tls: ssl.SSLContext) -> AsyncIterator[H2Server]:
    """A listening server on a free port of 127.0.0.1; every connection ends with the block."""
    found = H2Server(0)
    tls.set_alpn_protocols(["h2"])
    running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running[task] = writer
        found.connections += 1
        try:
            await _Connection(found, play, writer).run(reader)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, backlog=512)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for writer in running.values():
            writer.transport.abort()
        if running:
            await asyncio.wait(running, timeout=5)
        await server.wait_closed()
    if found.failures:
        raise found.failures[0]
