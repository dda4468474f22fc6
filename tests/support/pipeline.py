"""A whole pipeline over a scripted transport: every stage is the real one, only the edges are
scripts.

`Harness.audit()` checks the invariants that hold after any ending: settled once, nothing held,
every transfer closed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from aisix.auth.authenticator import Authenticator
from aisix.auth.tokens import hash_token
from aisix.core.endpoints import FAMILIES, EndpointSpec
from aisix.core.exchange import Exchange
from aisix.core.resources import (
    Alias,
    ApiKey,
    ClientSecret,
    Deployment,
    LimitPolicy,
    TokenCredential,
)
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.dispatch import DefaultDeadlines, Dispatcher
from aisix.errors import CallerDeparted, GatewayError
from aisix.limits.buckets import Charge, Slot
from aisix.limits.limiter import TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from aisix.pipeline import BodyLimits, Pipeline
from aisix.relay.pump import Relay
from aisix.routing.health import Health
from aisix.transport.memory import MemoryTransport
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.openai import OpenAI
from tests.support import rows
from tests.support.builders import Pieces, make_alias, make_deployment, make_key, make_request
from tests.support.clock import FakeClock
from tests.support.reply import RecordingReply

CALLER_TOKEN = "sk-of-the-harness"
RPM = 1_000
TPM = 1_000_000
CONCURRENCY = 7
LIMITS = LimitPolicy(rpm=RPM, tpm=TPM, concurrency=CONCURRENCY)
ENTRA = ClientSecret(
    tenant_id="t",
    client_id="c",
    client_secret="entra-client-secret",
    authority="https://login.example",
    scope="https://cognitiveservices.azure.com/.default",
)


class RecordingRecorder:
    """Implements Recorder: remembers the calls."""

    def __init__(self) -> None:
        self.started = 0
        self.newest: Exchange | None = None
        self.ended: list[Exchange] = []
        self.attempts: list[dict[str, Any]] = []
        self.auth: list[tuple[bool, str]] = []
        self.limits: list[GatewayError | None] = []

    def exchange_started(self, exchange: Exchange) -> None:
        """An exchange began."""
        self.started += 1
        self.newest = exchange

    def exchange_ended(self, exchange: Exchange) -> None:
        """An exchange was settled."""
        self.ended.append(exchange)

    def attempt_ended(self, deployment: Deployment, alias_name: str, **fields: Any) -> None:
        """An attempt is over."""
        self.attempts.append({"deployment": deployment.name, "alias": alias_name, **fields})

    def auth_decided(self, *, allowed: bool, reason: str) -> None:
        """A credential was judged."""
        self.auth.append((allowed, reason))

    def limit_decided(self, error: GatewayError | None) -> None:
        """The limiter decided."""
        self.limits.append(error)

    def token_fetched(self, *, ok: bool, reason: str) -> None:
        """The authority was asked."""

    def render(self) -> tuple[str, bytes]:
        """Nothing to scrape."""
        return "text/plain", b""


class RecordingLog:
    """Implements AccessLog."""

    def __init__(self) -> None:
        self.lines: list[Exchange] = []

    def write(self, exchange: Exchange) -> None:
        """One line."""
        self.lines.append(exchange)


class ScriptedTokens:
    """Implements TokenSource: the given tokens in order, or an error."""

    def __init__(self) -> None:
        self.current = "token-1"
        self.renewed = "token-2"
        self.error: GatewayError | None = None
        self.renewals: list[str] = []
        self.renew_error: GatewayError | None = None

    async def token(self, credential: TokenCredential) -> str:
        """The current token."""
        if self.error is not None:
            raise self.error
        return self.current

    async def renew(self, credential: TokenCredential, rejected: str) -> str:
        """The next token."""
        self.renewals.append(rejected)
        if self.renew_error is not None:
            raise self.renew_error
        return self.renewed


class ArrivingBody:
    """A RequestBody that never ends until the caller leaves."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.gone = asyncio.Event()

    async def read_all(self, limit: int) -> bytes:
        """Wait for a departure."""
        self.reading.set()
        await self.gone.wait()
        raise CallerDeparted

    def chunks(self) -> AsyncIterator[bytes]:
        """The same, chunk by chunk."""
        return self

    def __aiter__(self) -> ArrivingBody:
        return self

    async def __anext__(self) -> bytes:
        return await self.read_all(0)


class GivenBody:
    """A RequestBody that is all there, and obeys the limit like the real one."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read_all(self, limit: int) -> bytes:
        """All of it. Raises BodyTooLarge."""
        from aisix.errors import body_too_large

        if limit and len(self._content) > limit:
            raise body_too_large(limit)
        return self._content

    def chunks(self) -> AsyncIterator[bytes]:
        """All of it, in one piece."""
        return Pieces(self._content)


@dataclass
class Run:
    """One request on its way through the pipeline."""

    task: asyncio.Task[Exchange]
    reply: RecordingReply

    async def ended(self) -> Exchange | None:
        """Wait for the end; None when the task was cancelled."""
        async with asyncio.timeout(10):
            await asyncio.wait({self.task})
        return None if self.task.cancelled() else self.task.result()


@dataclass
class Harness:
    """A pipeline and everything it talks to."""

    deployment: Deployment = field(default_factory=make_deployment)
    alias_limits: LimitPolicy = LIMITS
    key_limits: LimitPolicy = LIMITS
    keepalive_s: float = 0.0
    body_limit_bytes: int = 10_000
    deadlines: DefaultDeadlines = field(
        default_factory=lambda: DefaultDeadlines(
            connect_s=5.0, first_byte_s=6.0, idle_s=7.0, total_s=8.0
        )
    )
    alias_fields: Mapping[str, Any] = field(default_factory=dict)

    transport_type: ClassVar[type[MemoryTransport]] = MemoryTransport
    buckets_type: ClassVar[type[LocalBuckets]] = LocalBuckets
    reply_type: ClassVar[type[RecordingReply]] = RecordingReply

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.recorder = RecordingRecorder()
        self.log = RecordingLog()
        self.tokens = ScriptedTokens()
        self.health = Health(self.clock)
        self.transport = self.transport_type(self.clock)
        self.buckets = self.buckets_type(self.clock)
        self.snapshots = SnapshotHolder()
        self.publish()
        self.pipeline = Pipeline(
            snapshots=self.snapshots,
            authenticator=Authenticator(self.clock),
            limiter=TokenBucketLimiter(self.buckets, assumed_output_tokens=1000),
            dispatcher=Dispatcher(
                adapters={
                    "azure-openai": AzureOpenAI(now=self.clock.time),
                    "openai": OpenAI(now=self.clock.time),
                },
                transport=self.transport,
                tokens=self.tokens,
                recorder=self.recorder,
                health=self.health,
                clock=self.clock,
                deadlines=self.deadlines,
            ),
            relay=Relay(clock=self.clock, keepalive_s=self.keepalive_s),
            recorder=self.recorder,
            access_log=self.log,
            clock=self.clock,
            body_limits=BodyLimits(self.body_limit_bytes, self.body_limit_bytes),
        )

    @property
    def alias(self) -> Alias:
        """The one alias."""
        return make_alias(deployment=self.deployment, limits=self.alias_limits, **self.alias_fields)

    @property
    def key(self) -> ApiKey:
        """The one caller key."""
        return make_key(
            key_hash=hash_token(CALLER_TOKEN), limits=self.key_limits, allowed_resources=FAMILIES
        )

    def publish(self, **key_fields: Any) -> None:
        """Make a snapshot of the alias and the key effective."""
        key = replace(self.key, **key_fields)
        self.snapshots.publish(
            Snapshot.build(revision=1, taken_at=0.0, keys=[key], aliases=[self.alias])
        )

    def start(
        self,
        spec: EndpointSpec,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        **fields: Any,
    ) -> Run:
        """Begin a request; `body` is a document, bytes, or a RequestBody."""
        content = rows.good_content(spec, stream=stream) if body is None else body
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        defaults = rows.request_fields(spec, alias=self.alias, key=self.key, stream=stream)
        fields = {**defaults, **fields}
        said = rows.good_headers(spec, content if isinstance(content, bytes) else b"")
        request = make_request(
            spec,
            headers={"authorization": f"Bearer {CALLER_TOKEN}", **said, **(headers or {})},
            body=GivenBody(content) if isinstance(content, bytes) else content,
            **fields,
        )
        reply = self.reply_type()
        task = asyncio.get_running_loop().create_task(self.pipeline.run(request, reply))
        reply.task = task
        return Run(task, reply)

    async def run(self, spec: EndpointSpec, **fields: Any) -> tuple[Exchange, RecordingReply]:
        """A request from its beginning to its end."""
        run = self.start(spec, **fields)
        exchange = await run.ended()
        assert exchange is not None
        return exchange, run.reply

    async def spent(self, layer: str = "api_key") -> tuple[int, int]:
        """Requests and tokens that are spent of a layer's limits."""
        owner = self.key.id if layer == "api_key" else self.alias.id
        decision = await self.buckets.take(
            [
                Charge(f"{layer}:{owner}:rpm", 60.0, RPM, 0),
                Charge(f"{layer}:{owner}:tpm", 60.0, TPM, 0),
            ],
            [],
        )
        requests, tokens = decision.readings
        return round(RPM - requests.remaining), round(TPM - tokens.remaining)

    async def in_flight(self) -> int:
        """How many concurrency slots of the key are held."""
        slot = Slot(f"api_key:{self.key.id}:concurrency", CONCURRENCY)
        decision = await self.buckets.take([], [slot])
        if decision.granted:
            self.buckets.give_back([], [slot], decision.claim)
        return decision.in_flight[0] - 1

    async def audit(self) -> Exchange:
        """The invariants of every ending; the exchange that ended."""
        assert self.recorder.started == 1
        assert len(self.recorder.ended) == 1, "settled exactly once"
        assert len(self.log.lines) == 1, "one access line"
        exchange = self.recorder.ended[0]
        assert exchange.ended, exchange.phase
        assert self.transport.opened == self.transport.closed, "a transfer was left open"
        assert await self.in_flight() == 0, "a concurrency slot leaked"
        assert await self.spent("api_key") == await self.spent("model")
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        left = [task for task in left if "aisix" in repr(task.get_coro())]
        assert not left, left
        return exchange
