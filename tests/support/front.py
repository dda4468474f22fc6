"""The proxy's front on a real socket, over a pipeline of the test's choice; and its callers. I/O.

    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", "/v1/models"))
        answer = await caller.answer()

`StubPipeline` stands in for the pipeline where a test must hold an exchange at one moment. A caller
writes its own bytes and reads only when told to, so that it can be slow, odd or gone. Every wait
has a deadline, which is a failure and never a way of waiting. Leaving `serve_proxy` checks that
nothing is left in flight.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from aisix.core.request import InboundRequest
from aisix.pipeline import BodyLimits
from aisix.web.applications import Application
from aisix.web.base import ProcessState
from aisix.web.body import SWALLOW_S
from aisix.web.connection import Patience
from aisix.web.framing import UNLIMITED_BYTES
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from aisix.web.server import ProxyServer
from tests.support.pipeline import CALLER_TOKEN

WAIT_S = 10.0
BODY_LIMIT_BYTES = 10_000
PATIENCE = Patience(swallow_s=SWALLOW_S)
ACCEPTED_ID_HEADERS = ("x-request-id", "x-correlation-id")

Story = Callable[[InboundRequest, Any], Awaitable[Any]]


class StubPipeline:
    """A pipeline of one story; remembers what happened to it."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.requests: list[InboundRequest] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self, request: InboundRequest, reply: Any) -> Any:
        """Tell the story."""
        self.requests.append(request)
        self.started.set()
        try:
            return await self._story(request, reply)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.set()


@dataclass(frozen=True)
class FrontAnswer:
    """One answer as it was read. Header names are lower-case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    chunks: Sequence[bytes] = ()

    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The one error of an envelope."""
        document = self.json()
        assert set(document) == {"error"}, document
        error: dict[str, Any] = document["error"]
        return error


class FrontCaller:
    """One connection; reads nothing that it is not told to read."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._held = bytearray()
        self._loop = asyncio.get_running_loop()

    async def send(self, *pieces: bytes) -> None:
        """Write all of it."""
        async with asyncio.timeout(WAIT_S):
            for piece in pieces:
                await self._loop.sock_sendall(self._socket, piece)

    async def send_until_refused(self, piece: bytes, most: int) -> int:
        """Write `piece` again and again; how often the other side took it, at most `most` times."""
        for count in range(most):
            try:
                await self.send(piece)
            except ConnectionError:
                return count
        return most

    def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up properly."""
        self._socket.close()

    def reset(self) -> None:
        """Hang up with a TCP reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self._held:
            assert await self._receive(), f"closed before {mark!r}: {bytes(self._held)!r}"
        return self._take(self._held.index(mark) + len(mark))

    async def read_exactly(self, count: int) -> bytes:
        """So many bytes."""
        while len(self._held) < count:
            assert await self._receive(), f"closed before {count} bytes: {bytes(self._held)!r}"
        return self._take(count)

    async def some(self) -> bytes:
        """What has come and is not read yet, or what comes next; b"" at the end."""
        if not self._held:
            await self._receive()
        return self._take(len(self._held))

    async def rest(self) -> bytes:
        """All that comes before the other side closes."""
        while await self._receive():
            pass
        return self._take(len(self._held))

    async def head(self) -> FrontAnswer:
        """The head of an answer."""
        block = (await self.read_until(b"\r\n\r\n"))[:-4].decode("latin-1")
        first, *lines = block.split("\r\n")
        _, status, reason = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} was sent twice"
            headers[name.lower()] = value.strip()
        return FrontAnswer(int(status), reason, headers, b"")

    async def chunk(self) -> bytes:
        """One chunk of a chunked answer; b"" is its end."""
        size = int(await self.read_until(b"\r\n"), 16)
        return (await self.read_exactly(size + 2))[:-2]

    async def answer(self, *, bodiless: bool = False) -> FrontAnswer:
        """A whole answer; `bodiless` when the request was a HEAD."""
        head = await self.head()
        chunks: list[bytes] = []
        if bodiless:
            body = b""
        elif head.headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                chunks.append(piece)
            body = b"".join(chunks)
        elif "content-length" in head.headers:
            body = await self.read_exactly(int(head.headers["content-length"]))
        else:
            body = await self.rest()
        return FrontAnswer(head.status, head.reason, head.headers, body, chunks)

    async def _receive(self) -> bool:
        async with asyncio.timeout(WAIT_S):
            try:
                data = await self._loop.sock_recv(self._socket, 1 << 16)
            except ConnectionError:
                return False
        self._held += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        data = bytes(self._held[:count])
        del self._held[:count]
        return data


@dataclass
class Front:
    """A listening proxy."""

    port: int
    state: ProcessState
    server: HTTPServer | ProxyServer
    _callers: list[FrontCaller] = field(default_factory=list)

    @asynccontextmanager
    async def caller(self, *, receive_buffer_bytes: int = 0) -> AsyncIterator[FrontCaller]:
        """A new connection, closed with the block."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            yield FrontCaller(sock)
        finally:
            sock.close()

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        async with asyncio.timeout(WAIT_S):
            await self.state.wait_idle()
        assert not self.state.inflight

    async def busy(self) -> None:
        """Wait until something is in flight."""
        await until(lambda: bool(self.state.inflight))


@asynccontextmanager
async def serve_application(
    application: Application | ProxyFront, state: ProcessState, *, sweep_s: float = 0.02
) -> AsyncIterator[Front]:
    """`application` on a free port of 127.0.0.1."""
    sockets = bind_sockets(0, "127.0.0.1")
    server: HTTPServer | ProxyServer
    if isinstance(application, ProxyFront):
        server = ProxyServer(application, sweep_s=sweep_s)
    else:
        server = HTTPServer(application, max_body_size=UNLIMITED_BYTES)
    server.add_sockets(sockets)
    front = Front(sockets[0].getsockname()[1], state, server)
    try:
        yield front
        await front.idle()
    finally:
        server.stop()
        state.abort_all()
        async with asyncio.timeout(WAIT_S):
            await server.close_all_connections()


@asynccontextmanager
async def serve_proxy(
    pipeline: Any,
    *,
    body_limit_bytes: int = BODY_LIMIT_BYTES,
    draining: bool = False,
    patience: Patience = PATIENCE,
    max_connections: int = 0,
) -> AsyncIterator[Front]:
    """The proxy application over `pipeline`."""
    state = ProcessState()
    state.ready = True
    state.draining = draining
    front = ProxyFront(
        pipeline=pipeline,
        routes=Routes(),
        state=state,
        body_limits=BodyLimits(body_limit_bytes, body_limit_bytes),
        accept_request_ids=ACCEPTED_ID_HEADERS,
        patience=patience,
        max_connections=max_connections,
    )
    async with serve_application(front, state) as served:
        yield served


def request(
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str | None] | None = None,
    version: str = "1.1",
) -> bytes:
    """A request with a good credential; a header that is None is left out. `body` is framed by its
    length unless `headers` frame it."""
    fields: dict[str, str | None] = {
        "Host": "gateway",
        "Authorization": f"Bearer {CALLER_TOKEN}",
        **({} if body is None else {"Content-Length": str(len(body))}),
        **(headers or {}),
    }
    lines = [f"{method} {target} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def post(target: str, document: Any, **options: Any) -> bytes:
    """A whole POST; bytes are sent as they are, all else as JSON."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return request("POST", target, body, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


async def event(happened: asyncio.Event) -> None:
    """Wait for `happened`."""
    async with asyncio.timeout(WAIT_S):
        await happened.wait()
