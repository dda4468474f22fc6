"""A TCP or TLS server that answers with exactly the bytes it is told: for odd answers. I/O.

    async def serve(connection: RawConnection) -> None:
        request = await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhe")
        connection.cut()

    async with raw_server(serve) as server:
        server.url("/path")

`serve` is called for each connection; when it returns the connection is closed properly. A client
that goes away makes `request` return None and `send` raise ConnectionError, which is no failure.
Any other exception of `serve` is raised at the end of the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LINE_LIMIT_BYTES = 1 << 20
WAIT_S = 10.0


@dataclass(frozen=True)
class RawRequest:
    """One request as it was read. Header names are lower-case, in order."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only value of `name`; None when there is none."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None


class RawConnection:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent_bytes = 0
        self.gone = asyncio.Event()
        """Set once the client is known to have closed; see `until_gone`."""

    async def head(self) -> tuple[str, str, list[tuple[str, str]]] | None:
        """Method, target and headers of the next request; None when the client has gone."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
            return None
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        return method, target, [(name.lower(), value.strip()) for name, value in pairs]

    async def request(self) -> RawRequest | None:
        """The next request with its body; None when the client has gone."""
        head = await self.head()
        if head is None:
            return None
        method, target, headers = head
        fields = dict(headers)
        try:
            if fields.get("transfer-encoding") == "chunked":
                body = b"".join([piece async for piece in self.chunks()])
            else:
                body = await self._reader.readexactly(int(fields.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
            return None
        return RawRequest(method, target, headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a chunked request body, as they arrive. Raises IncompleteReadError."""
        while size := int(await self._reader.readuntil(b"\n"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\n")

    async def send(self, *pieces: bytes) -> None:
        """Write and wait until the socket has taken it."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            self.sent_bytes += len(piece)

    async def receive(self, count: int) -> bytes:
        """Exactly so many bytes that are no request. Raises IncompleteReadError."""
        return await self._reader.readexactly(count)

    async def has_sent_within(self, seconds: float) -> bool:
        """Whether a byte comes within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                return bool(await self._reader.read(1))
        except TimeoutError:
            return False

    async def secure(self, tls: ssl.SSLContext) -> None:
        """Go on with TLS, from the handshake."""
        await self._writer.start_tls(tls)

    async def until_gone(self) -> None:
        """Wait for the client to close its side; what it still sends is thrown away."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        self.gone.set()

    def cut(self) -> None:
        """Close now: the client sees a proper end of the stream at this byte."""
        self._writer.close()

    def truncate(self) -> None:
        """Close now without TLS's word that this is the end: anybody on the way could do that."""
        self._writer.transport.abort()

    def reset(self) -> None:
        """Close now with a TCP reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def closed(self) -> None:
        """Drop what is still unsent and wait for the socket to be closed."""
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()


Serve = Callable[[RawConnection], Awaitable[None]]


@dataclass
class RawServer:
    """Where it listens, and whom it has met."""

    port: int
    scheme: str
    connections: list[RawConnection] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """An address on this server."""
        return f"{self.scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def raw_server(
    serve: Serve, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """A listening server on a free port of 127.0.0.1; every connection ends with the block."""
    tasks: set[asyncio.Task[None]] = set()
    found = RawServer(0, "https" if tls else "http")

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        connection = RawConnection(reader, writer)
        found.connections.append(connection)
        try:
            await serve(connection)
        except (ConnectionError, asyncio.CancelledError):
            connection.gone.set()
        except Exception as error:
            found.failures.append(error)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(
        accept, "127.0.0.1", 0, ssl=tls, limit=LINE_LIMIT_BYTES, backlog=512
    )
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=WAIT_S)
        await asyncio.gather(*(connection.closed() for connection in found.connections))
        await server.wait_closed()
        for _ in range(10):
            # connections whose handshake failed were never ours: the loop closes them in its turns
            await asyncio.sleep(0)
    if found.failures:
        raise found.failures[0]


async def answers(connection: RawConnection, *pieces: bytes) -> None:
    """Serve every request of a connection with the same bytes."""
    while await connection.request() is not None:
        await connection.send(*pieces)


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
