"""A Tornado Application served on connections of ours, for tests of the handover. I/O."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import pytest
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from aisix.pipeline import BodyLimits
from aisix.web.base import ProcessState
from aisix.web.codec import Message
from aisix.web.connection import Connection
from aisix.web.handover import Handover
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from tests.support.front import Front, FrontCaller, serve_application
from tests.support.pipeline import Harness

HANDSHAKE: dict[str, str | None] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def check_echo(caller: FrontCaller) -> None:
    """The handshake is answered, and a frame comes back."""
    head = await caller.head()
    assert (head.status, head.headers["connection"].lower()) == (101, "upgrade")
    assert head.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    await caller.send(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
    assert await caller.read_exactly(4) == b"\x81\x02hi"


@dataclass
class Events:
    """What the handlers were told."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list)


class Handler(RequestHandler):
    """Knows the events of its test."""

    def initialize(self, events: Events) -> None:
        self.events = events

    def on_connection_close(self) -> None:
        self.events.closed.set()


class Whole(Handler):
    """One small answer."""

    def get(self) -> None:
        self.finish("whole")

    head = get

    def post(self) -> None:
        self.events.bodies.append(self.request.body)
        self.finish(self.request.body)


class Streamed(Handler):
    """Three pieces, each flushed; the last waits for the test."""

    async def get(self) -> None:
        for piece in ("one", "two"):
            self.write(piece)
            await self.flush()
        self.events.begun.set()
        await self.events.go_on.wait()
        self.finish("three")

    head = get


class Sized(Handler):
    """A flushed answer that says its length."""

    async def get(self) -> None:
        self.set_header("Content-Length", "6")
        self.write("one")
        await self.flush()
        self.finish("two")

    head = get


class Unchanged(Handler):
    """No body at all."""

    def get(self, status: str) -> None:
        self.set_status(int(status))
        self.finish()


class Waiting(Handler):
    """Waits until its caller has gone."""

    async def get(self) -> None:
        self.events.begun.set()
        await self.events.closed.wait()
        with pytest.raises(StreamClosedError):
            await self.flush()


class Echo(WebSocketHandler):
    """Says what it hears."""

    def initialize(self, events: Events) -> None:
        self.events = events

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.events.begun.set()

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.events.closed.set()


@dataclass(frozen=True)
class HandingFront(ProxyFront):
    """Hands every request to an application of the test's."""

    handlers: Application = field(default_factory=Application)

    async def serve(self, message: Message, connection: Connection) -> None:
        """As the product does with its probes."""
        handover = Handover(connection, message)
        connection.way_back = handover
        await handover.run(self.handlers)


@dataclass
class Stand:
    """A front and what its handlers are told."""

    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        told = {"events": self.events}
        self.state = ProcessState()
        self.front = HandingFront(
            pipeline=Harness().pipeline,
            routes=Routes(),
            state=self.state,
            body_limits=BodyLimits(),
            accept_request_ids=(),
            handlers=Application(
                [
                    ("/whole", Whole, told),
                    ("/streamed", Streamed, told),
                    ("/sized", Sized, told),
                    (r"/unchanged/(\d+)", Unchanged, told),
                    ("/waiting", Waiting, told),
                    ("/echo", Echo, told),
                ],
                log_function=lambda _handler: None,
            ),
        )

    def served(self) -> AbstractAsyncContextManager[Front]:
        """The front on a free port."""
        return serve_application(self.front, self.state)
