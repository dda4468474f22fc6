"""Realtime sessions for tests: a proxy over real libcurl, and a caller that writes its own frames.

    async with session_proxy(simulator.url) as proxy, proxy.caller() as caller:
        await caller.open()
        await caller.say({"type": "response.create"})
        event = await caller.event("response.done")

`session_proxy` checks at its end that each exchange was settled once and holds nothing. I/O.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aisix.auth.authenticator import Authenticator
from aisix.auth.tokens import hash_token
from aisix.core.exchange import Exchange
from aisix.core.resources import Credential, ResourceKey
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.core.websocket import accept_of
from aisix.dispatch import DefaultDeadlines, Dispatcher
from aisix.limits.buckets import Slot
from aisix.limits.limiter import TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from aisix.pipeline import BodyLimits, Pipeline
from aisix.relay.pump import Relay
from aisix.relay.session import SessionPatience
from aisix.routing.health import Health
from aisix.transport.curl import CurlTransport
from aisix.upstream.azure import AzureOpenAI
from tests.support.azure import KEY
from tests.support.builders import make_alias, make_deployment, make_key
from tests.support.frames import CLOSE, MASK, PONG, TEXT, Frame, close, decode, text
from tests.support.front import WAIT_S, Front, FrontAnswer, FrontCaller, request, serve_proxy, until
from tests.support.pipeline import (
    CALLER_TOKEN,
    CONCURRENCY,
    LIMITS,
    RecordingLog,
    RecordingRecorder,
    ScriptedTokens,
)
from tests.support.transports import RealClock

PATIENCE = SessionPatience()
NONCE = "dGhlIHNhbXBsZSBub25jZQ=="
ALIAS = "voice"
DEPLOYMENT = "rt-prod"
HANDSHAKE: Mapping[str, str | None] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": NONCE,
}


class SessionCaller:
    """One caller's WebSocket on a connection of its own."""

    def __init__(self, caller: FrontCaller) -> None:
        self.raw = caller
        self.frames: list[Frame] = []
        self._rest = b""

    async def ask(
        self, target: str = f"/v1/realtime?model={ALIAS}", *ahead: bytes, **headers: str | None
    ) -> None:
        """Send a handshake, and frames ahead of its answer. `_` in header names is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.raw.send(
            request("GET", target, headers={**HANDSHAKE, **named}) + b"".join(ahead)
        )

    async def open(
        self, target: str = f"/v1/realtime?model={ALIAS}", *ahead: bytes, **headers: str | None
    ) -> FrontAnswer:
        """Open a session; the head that agreed to it."""
        await self.ask(target, *ahead, **headers)
        head = await self.raw.head()
        assert head.status == 101, (head.status, await self.raw.rest())
        assert head.headers["sec-websocket-accept"] == accept_of(NONCE)
        assert (head.headers["upgrade"], head.headers["connection"]) == ("websocket", "Upgrade")
        return head

    async def say(self, *events: Mapping[str, Any]) -> None:
        """Send events, each as one frame."""
        await self.raw.send(b"".join(text(json.dumps(event), masked=True) for event in events))

    async def send_close(self, code: int, reason: str = "") -> None:
        """Begin, or answer, the end."""
        await self.raw.send(close(code, reason, masked=True))

    async def frame(self) -> Frame:
        """The next frame."""
        while not self.frames:
            found, rest = decode(self._rest)
            if found:
                self.frames, self._rest = found, rest
                break
            piece = await self.raw.some()
            assert piece, f"closed within {self._rest[:200]!r}"
            self._rest += piece
        return self.frames.pop(0)

    async def event(self, kind: str | None = None) -> dict[str, Any]:
        """The next event, or the next one of a kind."""
        while True:
            frame = await self.frame()
            assert frame.opcode == TEXT, frame
            event: dict[str, Any] = json.loads(frame.payload)
            if kind is None or event["type"] == kind:
                return event

    async def closed(self) -> int:
        """The code of the Close that comes, whatever comes before it."""
        while (frame := await self.frame()).opcode != CLOSE:
            pass
        return frame.code

    async def pong(self) -> bytes:
        """The payload of the next Pong, whatever comes before it."""
        while (frame := await self.frame()).opcode != PONG:
            pass
        return frame.payload

    async def hang_up(self, code: int = 1000) -> int:
        """Close properly, from this side; the code that came back. The connection has ended."""
        await self.send_close(code)
        answered = await self.closed()
        assert await self.raw.rest() == b""
        return answered


@dataclass
class SessionProxy:
    """A proxy, and what it knows of its sessions."""

    front: Front
    pipeline: Pipeline
    transport: CurlTransport
    recorder: RecordingRecorder
    log: RecordingLog
    health: Health
    buckets: LocalBuckets
    tokens: ScriptedTokens

    @asynccontextmanager
    async def caller(self, **options: Any) -> AsyncIterator[SessionCaller]:
        """A new connection."""
        async with self.front.caller(**options) as caller:
            yield SessionCaller(caller)

    async def settled(self, count: int = 1) -> Exchange:
        """The newest of `count` settled exchanges, as soon as there are so many."""
        await until(lambda: len(self.recorder.ended) >= count)
        return self.recorder.ended[-1]

    async def in_flight(self) -> int:
        """How many concurrency slots of the key are held."""
        slot = Slot(f"api_key:{make_key().id}:concurrency", CONCURRENCY)
        decision = await self.buckets.take([], [slot])
        if decision.granted:
            self.buckets.give_back([], [slot], decision.claim)
        return decision.in_flight[0] - 1

    async def audit(self) -> None:
        """The invariants of every ending."""
        await self.front.idle()
        assert self.recorder.started == len(self.recorder.ended) == len(self.log.lines)
        assert all(exchange.ended for exchange in self.recorder.ended)
        assert await self.in_flight() == 0, "a concurrency slot leaked"
        assert self.transport.stats().open_transfers == 0
        left = [task for task in asyncio.all_tasks() if task.get_name().startswith("aisix.relay")]
        assert not left, left


@asynccontextmanager
async def session_proxy(
    url: str,
    *,
    api_version: str = "2025-04-01-preview",
    deployment: str = DEPLOYMENT,
    credential: Credential | None = None,
    patience: SessionPatience = PATIENCE,
    key_fields: Mapping[str, Any] | None = None,
    alias_fields: Mapping[str, Any] | None = None,
    transport_options: Mapping[str, Any] | None = None,
) -> AsyncIterator[SessionProxy]:
    """The real proxy before `url`, with one alias and one caller key."""
    clock = RealClock()
    recorder, log, tokens = RecordingRecorder(), RecordingLog(), ScriptedTokens()
    health, buckets, snapshots = Health(clock), LocalBuckets(clock), SnapshotHolder()
    made = make_deployment(
        name=deployment,
        api_base=url,
        api_version=api_version,
        credential=credential or ResourceKey(KEY),
    )
    key = replace(
        make_key(key_hash=hash_token(CALLER_TOKEN), limits=LIMITS), **dict(key_fields or {})
    )
    alias = make_alias(name=ALIAS, deployment=made, **dict(alias_fields or {}))
    snapshots.publish(Snapshot.build(revision=1, taken_at=0.0, keys=[key], aliases=[alias]))
    transport = CurlTransport(clock=clock, **dict(transport_options or {}))
    pipeline = Pipeline(
        snapshots=snapshots,
        authenticator=Authenticator(clock),
        limiter=TokenBucketLimiter(buckets, assumed_output_tokens=1000),
        dispatcher=Dispatcher(
            adapters={"azure-openai": AzureOpenAI()},
            transport=transport,
            tokens=tokens,
            recorder=recorder,
            health=health,
            clock=clock,
            deadlines=DefaultDeadlines(connect_s=5.0, first_byte_s=WAIT_S, idle_s=1.0, total_s=1.0),
        ),
        relay=Relay(clock=clock, keepalive_s=0.0, patience=patience),
        recorder=recorder,
        access_log=log,
        clock=clock,
        body_limits=BodyLimits(whole=1000, upload=1000),
    )
    try:
        async with serve_proxy(pipeline) as front:
            proxy = SessionProxy(front, pipeline, transport, recorder, log, health, buckets, tokens)
            yield proxy
            await proxy.audit()
    finally:
        await transport.close()


def masked(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A caller's frame."""
    return Frame(opcode, payload, final, MASK).encode()
