"""The proxy's server: accepts connections, bounds their number and their patience. I/O."""

from __future__ import annotations

import asyncio
import socket
import ssl
import uuid
from collections.abc import Iterable
from time import monotonic
from typing import Any

import ujson
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from aisix.errors import Overloaded, answer_headers, envelope
from aisix.web.connection import Connection, Front
from aisix.web.reply import ConnectionReply

SWEEP_S = 0.5
"""How late a deadline may be noticed."""

_READ_CHUNK_BYTES = 16 * 1024
_BUFFER_BYTES = 1 << 62  # bounds are ours: see codec and body
_REFUSAL_S = 1.0


class ProxyServer(TCPServer):
    """Serves connections on the sockets it is given."""

    def __init__(
        self, front: Front, *, tls: ssl.SSLContext | None = None, sweep_s: float = SWEEP_S
    ) -> None:
        super().__init__(
            ssl_options=tls, max_buffer_size=_BUFFER_BYTES, read_chunk_size=_READ_CHUNK_BYTES
        )
        self._front = front
        self._max_connections = front.max_connections
        self._protocol = "https" if tls else "http"
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep_s = sweep_s
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def open_connections(self) -> int:
        """How many callers are connected."""
        return len(self._connections)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Begin to accept."""
        super().add_sockets(sockets)
        if self._sweeper is None:
            self._sweep()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve one connection to its end."""
        if self._max_connections and len(self._connections) >= self._max_connections:
            await self._refuse(stream)
            return
        # a small piece must not wait for the caller's delayed acknowledgement of the one before
        stream.set_nodelay(True)
        remote_ip = str(address[0]) if isinstance(address, tuple) else ""
        connection = Connection(
            stream, remote_ip=remote_ip, protocol=self._protocol, front=self._front
        )
        task = asyncio.current_task()
        self._connections.add(connection)
        if task is not None:
            self._tasks.add(task)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            if task is not None:
                self._tasks.discard(task)

    async def close_all_connections(self) -> None:
        """Hang up on everybody and wait until all of them know."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in tuple(self._connections):
            connection.hang_up()
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    def _sweep(self) -> None:
        now = monotonic()
        for connection in [one for one in self._connections if one.deadline < now]:
            connection.expire()
        self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    async def _refuse(self, stream: IOStream) -> None:
        """503 to whoever is one too many; the request, if any, is not read."""
        error = Overloaded("the gateway has too many connections", retry_after_s=1.0)
        reply = ConnectionReply(_LastLine(stream), str(uuid.uuid4()))
        headers = {"Content-Type": "application/json", **answer_headers(error)}
        body = ujson.dumps(envelope(error), escape_forward_slashes=False).encode()
        try:
            async with asyncio.timeout(_REFUSAL_S):
                if isinstance(stream, SSLIOStream):
                    await stream.wait_for_handshake()
                await reply.send(error.status, headers, body)
        except (StreamClosedError, TimeoutError, OSError):
            pass
        finally:
            stream.close()


class _LastLine:
    """A connection that gets one answer, whatever it says."""

    old = False
    bodiless = False

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream

    def connection_header(self) -> str:
        """It is the last."""
        return "Connection: close\r\n"

    async def write(self, data: bytes) -> None:
        """Hand over."""
        await self._stream.write(data)

    def hang_up(self) -> None:
        """Close now."""
        self._stream.close()

    def reset(self) -> None:
        """It gets no answer that could be taken for a whole one."""
        self._stream.close()
