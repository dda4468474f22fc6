"""A forward proxy as companies run them: CONNECT for https, absolute-form for http. I/O.

    async with forward_proxy(login=("user", "password")) as proxy:
        proxy.url            # http://127.0.0.1:PORT
        proxy.seen           # what it was asked, heads only

`refuse_with` answers everything with that status instead; 0 closes without an answer. Whatever
host it is asked for, it connects to `upstream_port` of 127.0.0.1: no name is resolved.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """The head of one request to the proxy; names of headers are lower-case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class ForwardProxy:
    """A running proxy and what it has seen."""

    upstream_port: int
    login: tuple[str, str] | None = None
    refuse_with: int | None = None
    port: int = 0
    scheme: str = "http"
    seen: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request or one tunnel."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
        pairs = (line.split(": ", 1) for line in lines)
        asked = Asked(method, target, {name.lower(): value for name, value in pairs})
        self.seen.append(asked)
        status = self._refusal(asked)
        if status is not None:
            if status:
                text = f"HTTP/1.1 {status} No\r\nContent-Length: 4\r\nX-Of: proxy\r\n\r\nno!\n"
                writer.write(text.encode())
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\nX-Of: proxy\r\n\r\n")
            else:
                path = "/" + target.split("/", 3)[3]
                kept = [line for line in lines if not line.lower().startswith("proxy-")]
                inner = [f"{method} {path} {version}", *kept, "", ""]
                inner_writer.write("\r\n".join(inner).encode())
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        finally:
            inner_writer.close()

    def _refusal(self, asked: Asked) -> int | None:
        if self.refuse_with is not None:
            return self.refuse_with
        if self.login is None:
            return None
        expected = base64.b64encode(":".join(self.login).encode()).decode()
        given = asked.headers.get("proxy-authorization")
        return None if given == f"Basic {expected}" else 407


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def forward_proxy(
    upstream_port: int,
    *,
    login: tuple[str, str] | None = None,
    refuse_with: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ForwardProxy]:
    """A proxy on a free port of 127.0.0.1; every connection ends with the block."""
    proxy = ForwardProxy(upstream_port, login, refuse_with, scheme="https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await proxy.serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
