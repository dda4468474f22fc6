"""The composition root: the only place that knows every part and wires them.

Two halves are built here. The control half (store, admin, tokens, scrape) owns what is durable or
slow; the data half (snapshot, limiter, transport, pipeline) serves requests. They meet in ports
only: the snapshot one publishes and the other reads, the token source, the recorder, the health
view.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from aisix.admin.service import AdminService
from aisix.auth.authenticator import Authenticator
from aisix.config import Config
from aisix.core.ports import Adapter, Clock, HealthView, SnapshotSink
from aisix.core.resources import Alias, ClientSecret, ResourceKey
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.dispatch import DefaultDeadlines, Dispatcher
from aisix.limits.limiter import TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from aisix.pipeline import Pipeline
from aisix.relay.pump import Relay
from aisix.routing.health import Health
from aisix.store.cipher import unlock
from aisix.store.database import Database
from aisix.store.resources import SqliteResourceStore
from aisix.telemetry import logs
from aisix.telemetry.access import AccessLogger
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.transport.curl import CurlTransport
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.credentials import EntraTokens
from aisix.web.applications import (
    Application,
    admin_application,
    metrics_application,
    proxy_application,
)
from aisix.web.base import ProcessState
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes

_log = logging.getLogger("aisix.app")


class SystemClock:
    """The real time."""

    def monotonic(self) -> float:
        """Seconds, for intervals."""
        return time.monotonic()

    def time(self) -> float:
        """UTC epoch seconds, for records."""
        return time.time()


class Publisher:
    """Makes a snapshot effective: for the data half, and for what is kept by resource name."""

    def __init__(
        self, holder: SnapshotHolder, health: Health, recorder: PrometheusRecorder
    ) -> None:
        self._holder = holder
        self._health = health
        self._recorder = recorder

    async def publish(self, snapshot: Snapshot) -> int:
        """Swap it in; forget what it no longer names. Nothing lags behind in one process."""
        self._holder.publish(snapshot)
        aliases = snapshot.every_alias()
        self._health.retain(frozenset(alias.name for alias in aliases))
        self._recorder.publish(snapshot)
        logs.register_secrets(_secrets(aliases), group="resources")
        return 0


def _secrets(aliases: Iterable[Alias]) -> Iterator[str]:
    """What must never appear in a log, whatever an upstream echoes."""
    for alias in aliases:
        credential = alias.deployment.credential
        if isinstance(credential, ResourceKey):
            yield credential.key
        elif isinstance(credential, ClientSecret):
            yield credential.client_secret


@dataclass(frozen=True, slots=True)
class ControlHalf:
    """What is durable or slow."""

    database: Database
    service: AdminService
    tokens: EntraTokens
    transport: CurlTransport
    following: asyncio.Task[None]

    async def close(self) -> None:
        """Finish the write under way, close the rest."""
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.service.close()
        await self.tokens.close()
        await self.transport.close()
        await self.database.close()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A built gateway: three applications to serve, and what is behind them."""

    state: ProcessState
    snapshots: SnapshotHolder
    proxy_application: Application
    admin_application: Application
    metrics_application: Application
    control: ControlHalf
    transport: CurlTransport

    async def close(self) -> None:
        """Close everything, data half first."""
        self.state.ready = False
        await self.transport.close()
        await self.control.close()


async def build(config: Config) -> Gateway:
    """Open the store, load the resources and wire everything. Raises StoreUnavailable."""
    clock = SystemClock()
    state = ProcessState()
    snapshots = SnapshotHolder()
    health = Health(clock)
    adapters: dict[str, Adapter] = {AzureOpenAI.name: AzureOpenAI()}
    recorder = PrometheusRecorder(clock=clock, health=health, log_lines_dropped=logs.lines_dropped)
    control = await _build_control(
        config,
        clock=clock,
        adapters=adapters,
        health=health,
        sink=Publisher(snapshots, health, recorder),
        recorder=recorder,
    )
    transport = _build_transport(config, clock)
    upstream = config.upstream
    dispatcher = Dispatcher(
        adapters=adapters,
        transport=transport,
        tokens=control.tokens,
        recorder=recorder,
        health=health,
        clock=clock,
        deadlines=DefaultDeadlines(
            connect_s=upstream.connect_timeout_ms / 1000,
            first_byte_s=upstream.first_byte_timeout_ms / 1000,
            idle_s=upstream.stream_timeout_ms / 1000,
            total_s=upstream.timeout_ms / 1000,
        ),
    )
    pipeline = Pipeline(
        snapshots=snapshots,
        authenticator=Authenticator(clock),
        limiter=TokenBucketLimiter(
            LocalBuckets(clock), assumed_output_tokens=config.ratelimit.assumed_output_tokens
        ),
        dispatcher=dispatcher,
        relay=Relay(clock=clock, keepalive_s=config.downstream.sse_keepalive_interval_secs),
        recorder=recorder,
        access_log=AccessLogger(enabled=config.observability.access_log),
        clock=clock,
        body_limit_bytes=config.proxy.request_body_limit_bytes,
    )
    state.ready = True
    return Gateway(
        state=state,
        snapshots=snapshots,
        proxy_application=proxy_application(
            ProxyFront(
                pipeline=pipeline,
                routes=Routes(),
                state=state,
                body_limit_bytes=config.proxy.request_body_limit_bytes,
                accept_request_ids=config.proxy.request_id.accept_headers,
            )
        ),
        admin_application=admin_application(
            control.service, admin_keys=config.admin.admin_keys, state=state
        ),
        metrics_application=metrics_application(
            recorder.render, path=config.observability.metrics.prometheus.path, state=state
        ),
        control=control,
        transport=transport,
    )


async def _build_control(
    config: Config,
    *,
    clock: Clock,
    adapters: Mapping[str, Adapter],
    health: HealthView,
    sink: SnapshotSink,
    recorder: PrometheusRecorder,
) -> ControlHalf:
    database = await Database.open(config.store.path)
    try:
        unlocked = await unlock(database, key=config.store.encryption_key)
        if unlocked.created:
            _log.info(
                "store.key_created",
                extra={"path": str(unlocked.key_file), "advice": "back it up with the database"},
            )
        if unlocked.exposed:
            _log.warning(
                "store.key_exposed",
                extra={"path": str(unlocked.key_file), "advice": "chmod 600: it opens all secrets"},
            )
        store = SqliteResourceStore(database, unlocked.cipher)
        service = AdminService(store, sink, adapters=adapters, health=health, clock=clock)
        await service.load()
    except BaseException:
        await database.close()
        raise
    transport = _build_transport(config, clock)
    tokens = EntraTokens(transport=transport, clock=clock, recorder=recorder)
    return ControlHalf(
        database=database,
        service=service,
        tokens=tokens,
        transport=transport,
        following=asyncio.get_running_loop().create_task(service.follow()),
    )


def _build_transport(config: Config, clock: Clock) -> CurlTransport:
    upstream = config.upstream
    return CurlTransport(
        clock=clock,
        http2=upstream.http2,
        connect_to=upstream.connect_to,
        ca_file=upstream.tls.ca_file,
        verify=upstream.tls.verify,
        tcp_keepalive_s=upstream.tcp_keepalive_secs,
    )
