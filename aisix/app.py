"""The composition root: wires the data half, and both halves for a gateway of one process.

The control half (store, admin, tokens, scrape) owns what is durable or slow and is built by
`aisix.control`; the data half (snapshot, limiter, transport, pipeline) serves requests. They meet
in ports only: the snapshot one publishes and the other reads, the token source, the recorder, the
health view. So a worker builds the data half alone; it never imports the other, nor azure-identity.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aisix.auth.authenticator import Authenticator
from aisix.config import Config
from aisix.core.ports import Adapter, Clock, TokenSource
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.dispatch import DefaultDeadlines, Dispatcher
from aisix.limits.limiter import BucketStore, TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from aisix.pipeline import BodyLimits, Pipeline
from aisix.relay.pump import Relay
from aisix.relay.session import SessionPatience
from aisix.routing.health import Health
from aisix.telemetry import logs
from aisix.telemetry.access import AccessLogger
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.transport.curl import CurlTransport
from aisix.transport.request import Proxy
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.openai import OpenAI
from aisix.web.applications import (
    Application,
    admin_application,
    metrics_application,
)
from aisix.web.base import ProcessState
from aisix.web.body import SWALLOW_S
from aisix.web.connection import Patience
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes

if TYPE_CHECKING:
    from aisix.control import ControlHalf


class SystemClock:
    """The real time: `monotonic` seconds for intervals, `time` in UTC epoch seconds for records."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


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
        logs.register_secrets(secrets_of(snapshot), group="resources")
        return 0


def secrets_of(snapshot: Snapshot) -> Iterator[str]:
    """What must never appear in a log, whatever an upstream echoes."""
    for alias in snapshot.every_alias():
        credential = alias.deployment.credential
        if credential is not None:
            yield from credential.secrets
        if alias.deployment.shaping is not None:
            yield from (value for _, value in alias.deployment.shaping.default_headers)


@dataclass(frozen=True, slots=True)
class DataHalf:
    """What serves requests."""

    state: ProcessState
    snapshots: SnapshotHolder
    publisher: Publisher
    front: ProxyFront
    transport: CurlTransport

    async def close(self) -> None:
        """End every transfer."""
        self.state.ready = False
        await self.transport.close()


@dataclass(frozen=True, slots=True)
class Gateway:
    """Both halves in one process: three applications to serve, and what is behind them."""

    data: DataHalf
    control: ControlHalf
    admin_application: Application
    metrics_application: Application

    async def close(self) -> None:
        """Close everything, data half first."""
        await self.data.close()
        await self.control.close()


async def build(config: Config) -> Gateway:
    """Open the store, load the resources and wire everything. Raises StoreUnavailable."""
    from aisix.control import build_control  # noqa: PLC0415 - not in a worker

    clock = SystemClock()
    state = ProcessState()
    snapshots = SnapshotHolder()
    health = Health(clock)
    recorder = PrometheusRecorder(clock=clock, health=health, log_lines_dropped=logs.lines_dropped)
    publisher = Publisher(snapshots, health, recorder)
    control = await build_control(
        config,
        clock=clock,
        adapters=build_adapters(config),
        health=health,
        sink=publisher,
        recorder=recorder,
        transport=build_transport(config, clock),
    )
    data = build_data(
        config,
        clock=clock,
        state=state,
        snapshots=snapshots,
        publisher=publisher,
        health=health,
        recorder=recorder,
        tokens=control.tokens,
        buckets=LocalBuckets(clock),
    )
    state.ready = True
    return Gateway(
        data=data,
        control=control,
        admin_application=admin_application(
            control.service, admin_keys=config.admin.admin_keys, state=state
        ),
        metrics_application=metrics_application(
            recorder.render, path=config.observability.metrics.prometheus.path, state=state
        ),
    )


def build_data(  # noqa: PLR0913 - the ports at which the halves meet, all by name
    config: Config,
    *,
    clock: Clock,
    state: ProcessState,
    snapshots: SnapshotHolder,
    publisher: Publisher,
    health: Health,
    recorder: PrometheusRecorder,
    tokens: TokenSource,
    buckets: BucketStore,
) -> DataHalf:
    """Wire what serves requests; nothing is published yet."""
    transport = build_transport(config, clock)
    upstream = config.upstream
    dispatcher = Dispatcher(
        adapters=build_adapters(config),
        transport=transport,
        tokens=tokens,
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
    body_limits = BodyLimits(
        whole=config.proxy.request_body_limit_bytes, upload=config.proxy.upload_limit_bytes
    )
    pipeline = Pipeline(
        snapshots=snapshots,
        authenticator=Authenticator(clock),
        limiter=TokenBucketLimiter(
            buckets, assumed_output_tokens=config.ratelimit.assumed_output_tokens
        ),
        dispatcher=dispatcher,
        relay=Relay(
            clock=clock,
            keepalive_s=config.downstream.sse_keepalive_interval_secs,
            patience=SessionPatience(idle_s=upstream.stream_timeout_ms / 1000),
        ),
        recorder=recorder,
        access_log=AccessLogger(enabled=config.observability.access_log),
        clock=clock,
        body_limits=body_limits,
    )
    return DataHalf(
        state=state,
        snapshots=snapshots,
        publisher=publisher,
        front=ProxyFront(
            pipeline=pipeline,
            routes=Routes(),
            state=state,
            body_limits=body_limits,
            accept_request_ids=config.proxy.request_id.accept_headers,
            max_connections=config.proxy.max_connections,
            patience=Patience(
                head_s=config.downstream.header_timeout_secs,
                body_s=config.downstream.body_timeout_secs,
                idle_s=config.downstream.idle_timeout_secs,
                swallow_s=SWALLOW_S,
            ),
        ),
        transport=transport,
    )


def build_adapters(config: Config) -> Mapping[str, Adapter]:
    """The upstream dialects there are, by name."""
    allowed = config.upstream.allow_link_local
    return {
        AzureOpenAI.name: AzureOpenAI(allow_link_local=allowed),
        OpenAI.name: OpenAI(allow_link_local=allowed),
    }


def build_transport(config: Config, clock: Clock) -> CurlTransport:
    """A transport of its own: its connections belong to the event loop that uses it."""
    upstream = config.upstream
    proxy = upstream.proxy
    return CurlTransport(
        clock=clock,
        http2=upstream.http2,
        connect_to=upstream.connect_to,
        ca_file=upstream.tls.ca_file,
        verify=upstream.tls.verify,
        proxy=Proxy(proxy.url, proxy.username, proxy.password, upstream.no_proxy)
        if proxy is not None
        else None,
        allow_link_local=upstream.allow_link_local,
        tcp_keepalive_s=upstream.tcp_keepalive_secs,
        pool_idle_timeout_s=upstream.pool_idle_timeout_secs,
        pool_max_idle_per_host=upstream.pool_max_idle_per_host,
    )
