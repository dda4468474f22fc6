"""One script, played by every Transport: in memory, or by a real server to libcurl. I/O.

`bench(form, *answers)` gives the transport and an address; the n-th call gets the n-th answer. The
script is a `MemoryAnswer` in every form. On the wire a piece is a chunk, an event is silence, an
exception in `pieces` is a cut, one in `before` closes before the head, and an event in
`connecting` is a TLS handshake that nobody answers. Over TLS (form "curl-tls") a cut is announced,
as TLS does it. Over HTTP/2 (form "curl-h2") a piece is DATA and a cut is RST_STREAM.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aisix.core.ports import Deadlines, Transport, UpstreamCall, UpstreamTarget
from aisix.transport.curl import CurlTransport
from aisix.transport.memory import MemoryAnswer, MemoryTransport
from tests.support.raw_server import (
    LAST_CHUNK,
    RawConnection,
    RawServer,
    Serve,
    chunk,
    raw_server,
)
from tests.support.tls import local_tls


class RealClock:
    """The real time, as the gateway's own clock tells it."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


@dataclass
class Bench:
    """A transport under test and what its upstream has seen."""

    transport: Transport
    base: str
    bodies: list[bytes] = field(default_factory=list)
    departures: int = 0
    until: Callable[[Callable[[], bool]], Any] | None = None

    def call(self, body: bytes | AsyncIterator[bytes] = b"{}", **deadlines: float) -> UpstreamCall:
        """A call to this bench; deadlines that are not named are off."""
        off = {"connect_s": 0.0, "first_byte_s": 0.0, "idle_s": 0.0, "total_s": 0.0}
        target = UpstreamTarget("POST", f"{self.base}/call?q=1", [("x-test", "1")])
        return UpstreamCall(target, [("x-own", "2")], body, Deadlines(**{**off, **deadlines}))

    async def asked(self) -> None:
        """Wait until the upstream has a request."""
        assert self.until is not None
        await asyncio.wait_for(self.until(lambda: bool(self.bodies)), 5)

    async def departed(self) -> None:
        """Wait until the upstream has seen a caller leave before the answer was over."""
        assert self.until is not None
        await asyncio.wait_for(self.until(lambda: self.departures > 0), 5)


@asynccontextmanager
async def bench(form: str, *answers: MemoryAnswer) -> AsyncIterator[Bench]:
    """`form` is "memory", "curl", "curl-tls" or "curl-h2"."""
    if form == "memory":
        made = _in_memory(*answers)
    elif any(answer.connecting for answer in answers):
        made = _without_a_handshake(http2=form == "curl-h2")
    elif form != "curl-h2":
        made = _on_the_wire(*answers, tls=form == "curl-tls")
    else:
        # imported here: only this form needs the library h2
        from tests.support.transports_h2 import over_http2

        made = over_http2(*answers)
    async with made as found:
        yield found


@asynccontextmanager
async def curl_transport(**options: Any) -> AsyncIterator[CurlTransport]:
    """A libcurl transport, closed at the end of the block."""
    transport = CurlTransport(clock=RealClock(), **options)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def _in_memory(*answers: MemoryAnswer) -> AsyncIterator[Bench]:
    transport = MemoryTransport(RealClock()).script(*answers)
    found = Bench(transport, "http://memory.test", bodies=transport.bodies)

    async def until(condition: Callable[[], bool]) -> None:
        def asked() -> bool:
            found.departures = transport.closed_early
            return condition()

        await transport.until(asked)

    found.until = until
    try:
        yield found
    finally:
        await transport.close()


@asynccontextmanager
async def wired(serve: Serve, *, tls: bool) -> AsyncIterator[tuple[RawServer, CurlTransport]]:
    """A server of HTTP/1.1, plain or over TLS, and a libcurl transport that trusts it."""
    context: ssl.SSLContext | None = None
    ca_file: str | None = None
    async with AsyncExitStack() as stack:
        if tls:
            context, ca_file = stack.enter_context(local_tls())
        server = await stack.enter_async_context(raw_server(serve, tls=context))
        yield server, await stack.enter_async_context(curl_transport(ca_file=ca_file))


@asynccontextmanager
async def _without_a_handshake(*, http2: bool) -> AsyncIterator[Bench]:
    async def serve(connection: RawConnection) -> None:
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport(http2=http2) as transport:
        yield Bench(transport, f"https://127.0.0.1:{server.port}")


@asynccontextmanager
async def _on_the_wire(*answers: MemoryAnswer, tls: bool) -> AsyncIterator[Bench]:
    changed = asyncio.Event()
    remaining = iter(answers)

    async def serve(connection: RawConnection) -> None:
        while (request := await connection.request()) is not None:
            found.bodies.append(request.body)
            changed.set()
            try:
                complete = await play(connection, next(remaining))
            except ConnectionError:
                complete = False
            if not complete:
                found.departures += 1
                changed.set()
                return

    async def until(condition: Callable[[], bool]) -> None:
        await watch(condition, changed)

    async with wired(serve, tls=tls) as (server, transport):
        found = Bench(transport, server.url(""), until=until)
        yield found


async def play(connection: RawConnection, script: MemoryAnswer) -> bool:
    """Answer as scripted; False when the client left before the end of the script."""
    for step in script.before:
        if isinstance(step, BaseException):
            connection.cut()
            return True
        if not await _silence(connection, step):
            return False
    bare = script.status in {204, 304}
    framing = "" if bare else "Transfer-Encoding: chunked\r\n"
    fields = "".join(f"{name}: {value}\r\n" for name, value in script.headers.items())
    await connection.send(f"HTTP/1.1 {script.status} X\r\n{fields}{framing}\r\n".encode())
    for piece in script.pieces:
        if isinstance(piece, BaseException):
            connection.cut()
            return True
        if isinstance(piece, asyncio.Event):
            if not await _silence(connection, piece):
                return False
        else:
            await connection.send(chunk(piece))
    if not bare:
        await connection.send(LAST_CHUNK)
    return True


async def _silence(connection: RawConnection, event: asyncio.Event) -> bool:
    """Wait for `event`; False when the client leaves first."""
    go_on = asyncio.create_task(event.wait())
    left = asyncio.create_task(connection.until_gone())
    try:
        await asyncio.wait({go_on, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (go_on, left):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return event.is_set()


async def watch(condition: Callable[[], bool], changed: asyncio.Event) -> None:
    """Wait for `condition`, asked again at each signal."""
    while not condition():
        changed.clear()
        await changed.wait()
