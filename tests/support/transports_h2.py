"""The bench of `transports.py` over HTTP/2: the same scripts, one stream each. I/O."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trustme

from aisix.transport.memory import MemoryAnswer
from tests.support.h2_server import H2Stream, Left, h2_server
from tests.support.transports import Bench, curl_transport, watch


@asynccontextmanager
async def over_http2(*answers: MemoryAnswer) -> AsyncIterator[Bench]:
    """A libcurl transport and an HTTP/2 server that plays `answers`, in the order of the calls."""
    changed = asyncio.Event()
    remaining = iter(answers)

    async def serve(stream: H2Stream) -> None:
        found.bodies.append(stream.request_body)
        changed.set()
        try:
            await play(stream, next(remaining))
        except Left:
            found.departures += 1
            changed.set()

    async def until(condition: Callable[[], bool]) -> None:
        await watch(condition, changed)

    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    with ca.cert_pem.tempfile() as ca_file:
        async with (
            h2_server(serve, tls=tls) as server,
            curl_transport(http2=True, ca_file=ca_file) as transport,
        ):
            found = Bench(transport, f"https://127.0.0.1:{server.port}", until=until)
            yield found


async def play(stream: H2Stream, script: MemoryAnswer) -> None:
    """Answer as scripted. Raises Left when the client leaves before the end."""
    for step in script.before:
        if isinstance(step, BaseException):
            await stream.reset()
            return
        await stream.silence(step)
    headers = [(name.lower(), value) for name, value in script.headers.items()]
    await stream.head(script.status, headers, end=not script.pieces)
    for piece in script.pieces:
        if isinstance(piece, BaseException):
            await stream.reset()
            return
        if isinstance(piece, asyncio.Event):
            await stream.silence(piece)
        else:
            await stream.send(piece)
    if script.pieces:
        await stream.finish()
