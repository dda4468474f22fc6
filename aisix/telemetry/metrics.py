"""Prometheus: counts what exchanges report and renders the scrape. The door of prometheus-client,
which adds the figures of process, platform and garbage collector.

Counting is for the event loop's thread only. Series of keys and deployments that a new snapshot no
longer holds are dropped. A bug in counting is logged once and never reaches an exchange; a scrape
that fails does so visibly.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import CollectorRegistry

from aisix import __version__
from aisix.core.endpoints import EndpointSpec
from aisix.core.exchange import Exchange
from aisix.core.ports import Clock, HealthView
from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import BodyTooLarge, GatewayError, LimitExceeded, Unauthenticated
from aisix.telemetry import figures
from aisix.telemetry.catalogue import CATALOGUE
from aisix.telemetry.labels import (
    INBOUND_PROTOCOL,
    Names,
    Target,
    dimensions,
    target,
)
from aisix.telemetry.series import Family, RegionSum, Slots
from aisix.telemetry.shared import RegionWriter, SeriesRegion
from aisix.telemetry.tally import Tally

AUTH_REASONS = frozenset(
    {"none", "missing_credentials", "unknown_key", "key_disabled", "key_expired"}
)
TOKEN_REASONS = frozenset({"cold", "refresh", "rejected"})
LIMIT_LAYERS = frozenset({"api_key", "model"})
LIMITS = frozenset({*REQUEST_LIMITS, *TOKEN_LIMITS, "concurrency"})

READ_AT_SCRAPE = frozenset(
    {
        "aisix_build_info",
        "aisix_config_applied_revision",
        "aisix_config_last_reload_success_timestamp_seconds",
        "aisix_deployment_state",
        "aisix_lagging_workers_total",
        "aisix_limiter_evictions_total",
        "aisix_worker_restarts_total",
        "aisix_workers",
    }
)
"""What the process that is scraped knows by itself; no worker counts it."""

_log = logging.getLogger("aisix.telemetry")
_P = ParamSpec("_P")


def _guarded(
    method: Callable[Concatenate[PrometheusRecorder, _P], None],
) -> Callable[Concatenate[PrometheusRecorder, _P], None]:
    """Keep a bug in counting away from its caller; what every exchange calls does so by itself."""

    @wraps(method)
    def guarded(self: PrometheusRecorder, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.note_bug(method.__name__)

    return guarded


class PrometheusRecorder:
    """Implements Recorder on a registry of its own; told of each snapshot.

    With a `region` it counts there, where a successor goes on. The process that is scraped is given
    the `regions` of the others and adds them to what it counts itself. A single process has none.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        health: HealthView,
        log_lines_dropped: Callable[[], int] | None = None,
        region: SeriesRegion | None = None,
        regions: Sequence[SeriesRegion] = (),
    ) -> None:
        self._clock = clock
        self._health = health
        self._log_lines_dropped = log_lines_dropped
        writer = None if region is None else RegionWriter(region)
        self._families = {
            row.name: Family(row, number, None if row.name in READ_AT_SCRAPE else writer)
            for number, row in enumerate(CATALOGUE)
        }
        self._tally = Tally(self._families)
        self._attempt_slots: dict[tuple[object, ...], tuple[Slots, ...]] = {}
        self._auth_slots: dict[tuple[bool, str], Slots] = {}
        self._in_flight: dict[str, Slots] = {}
        self._admitted: Slots | None = None
        self._inherited = self._inherit(writer)
        self._lost_lines = self._families["aisix_log_lines_dropped_total"].child({})
        self._sum = RegionSum(list(self._families.values()), regions) if regions else None
        self._snapshot = Snapshot()
        self._published_at = 0.0
        self._workers = 1
        self._worker_restarts = 0
        self._limiter_evictions = 0
        self._lagging_workers = 0
        self._reported: set[str] = set()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # ── Recorder ──

    def exchange_started(self, exchange: Exchange) -> None:
        """One more in flight."""
        try:
            self._in_flight_slots(exchange.request.spec)[0] += 1.0
        except Exception:
            self.note_bug("exchange_started")

    def exchange_ended(self, exchange: Exchange) -> None:
        """Count a settled exchange. A 401 counts in auth decisions alone: whoever has no key must
        not be able to bend the figures."""
        try:
            self._in_flight_slots(exchange.request.spec)[0] -= 1.0
            error = exchange.error
            if error is None:
                self._tally.count(exchange)
            elif not isinstance(error, Unauthenticated):
                self._tally.count(exchange)
                self._count_error(exchange, error)
        except Exception:
            self.note_bug("exchange_ended")

    def attempt_ended(
        self,
        deployment: Deployment,
        alias_name: str,
        *,
        ok: bool,
        status: int | None = None,
        reached: bool = True,
    ) -> None:
        """One attempt came back. Only attempts that `reached` Azure count for the deployment."""
        try:
            key = (
                alias_name,
                deployment.provider,
                deployment.name,
                deployment.provider_key_id,
                deployment.provider_key_name,
                status,
                reached,
                ok,
            )
            counters = self._attempt_slots.get(key)
            if counters is None:
                counters = self._new_attempt(target(alias_name, deployment), status, reached, ok)
                self._attempt_slots[key] = counters
            for slots in counters:
                slots[0] += 1.0
        except Exception:
            self.note_bug("attempt_ended")

    def auth_decided(self, *, allowed: bool, reason: str) -> None:
        """A caller credential was judged."""
        try:
            slots = self._auth_slots.get((allowed, reason))
            if slots is None:
                slots = self._new_auth(allowed, reason)
            slots[0] += 1.0
        except Exception:
            self.note_bug("auth_decided")

    def limit_decided(self, error: GatewayError | None) -> None:
        """The limiter admitted (None) or refused."""
        try:
            if error is not None:
                self._count_refusal(error)
                return
            if self._admitted is None:
                self._admitted = self._families["aisix_limiter_decisions_total"].child(
                    {"decision": "admitted", "layer": "none", "limit": "none"}
                )
            self._admitted[0] += 1.0
        except Exception:
            self.note_bug("limit_decided")

    @_guarded
    def token_fetched(self, *, ok: bool, reason: str) -> None:
        """The token authority was asked."""
        self._count(
            "aisix_token_refreshes_total",
            result="success" if ok else "failure",
            reason=_closed(reason, TOKEN_REASONS),
        )

    def render(self) -> tuple[str, bytes]:
        """Content type and body of a scrape, in the text format that every scraper reads."""
        self._read_gauges()
        if self._sum is None:
            lines = [line for family in self._families.values() for line in family.lines()]
        else:
            lines = self._sum.lines(Names.of(self._snapshot))
        return CONTENT_TYPE_PLAIN_0_0_4, "".join(lines).encode() + generate_latest(self._registry)

    # ── snapshots ──

    @_guarded
    def publish(self, snapshot: Snapshot) -> None:
        """Requests are served by `snapshot` from now on; series of what it lost are dropped.

        Costs one comparison of names unless something was lost; then one pass over all series.
        """
        self._snapshot = snapshot
        self._published_at = self._clock.time()
        names = Names.of(snapshot)
        if self._tally.is_within(names) and not self._inherited:
            return
        self._inherited = False
        for family in self._families.values():
            family.retain(names.keeper(family.row))
        self._tally.retain(names)
        self._attempt_slots.clear()

    # ── what other parts of the process tell ──

    def workers_changed(self, *, live: int, restarts: int) -> None:
        """So many workers serve now; so many were replaced since the start."""
        self._workers = live
        self._worker_restarts = restarts

    def limiter_evicted(self, count: int) -> None:
        """So many living buckets were forgotten since the start."""
        self._limiter_evictions = count

    def worker_lagged(self) -> None:
        """A worker did not take over a write in time."""
        self._lagging_workers += 1

    def log_lines_lost(self, count: int) -> None:
        """Count lost log lines, where nobody can be asked for them at a scrape: the ear for
        `logs.on_dropped`. Any thread may call it, one at a time."""
        self._lost_lines[0] += count

    def note_bug(self, where: str) -> None:
        """Log that counting failed, once for each place."""
        if where not in self._reported:
            self._reported.add(where)
            _log.exception("metrics.failed", extra={"where": where})

    # ── counting ──

    def _count(self, name: str, /, **labels: str) -> None:
        self._families[name].child(labels)[0] += 1.0

    def _inherit(self, writer: RegionWriter | None) -> bool:
        """Go on with the series that a worker before this one left in the region."""
        families = list(self._families.values())
        inherited = writer.inherited if writer is not None else []
        for record in inherited:
            families[record.family].inherit(record)
        return bool(inherited)

    def _in_flight_slots(self, spec: EndpointSpec) -> Slots:
        slots = self._in_flight.get(spec.operation)
        if slots is None:
            slots = self._in_flight[spec.operation] = self._families[
                "aisix_proxy_in_flight_requests"
            ].child({"endpoint": spec.template, "inbound_protocol": INBOUND_PROTOCOL})
        return slots

    def _new_attempt(
        self, known: Target, status: int | None, reached: bool, ok: bool
    ) -> tuple[Slots, ...]:
        """The counters of attempts at `known` that end in the same way."""
        self._tally.targets.add(known)
        labels = {**known._asdict(), "status_class": figures.status_class(status)}
        names = ["aisix_upstream_attempts_total"]
        if reached:
            result = "success" if ok else "failure"
            names.append("aisix_deployment_requests_total")
            names.append(f"aisix_deployment_{result}_responses_total")
        return tuple([self._families[name].child(labels) for name in names])

    def _new_auth(self, allowed: bool, reason: str) -> Slots:
        """The counter of a decision, kept under the reason that is shown: a closed set."""
        shown = _closed(reason, AUTH_REASONS)
        slots = self._auth_slots[allowed, shown] = self._families[
            "aisix_auth_decisions_total"
        ].child(
            {
                "method": "none" if reason == "missing_credentials" else "api_key",
                "result": "allowed" if allowed else "denied",
                "reason": shown,
            }
        )
        return slots

    def _count_refusal(self, error: GatewayError) -> None:
        layer = limit = "other"
        scope = "requests"
        if isinstance(error, LimitExceeded):
            layer = _closed(error.layer, LIMIT_LAYERS)
            limit = _closed(error.limit, LIMITS)
            scope = "tokens" if error.scope == "tokens" else "requests"
        self._count("aisix_limiter_decisions_total", decision="refused", layer=layer, limit=limit)
        self._count("aisix_ratelimit_rejections_total", scope=scope, layer=layer)

    def _count_error(self, exchange: Exchange, error: GatewayError) -> None:
        kind = figures.failure_kind(error)
        if kind is not None:
            self._count("aisix_upstream_failures_total", **dimensions(exchange), kind=kind)
        if isinstance(error, BodyTooLarge):
            self._count(
                "aisix_proxy_request_body_limit_rejections_total",
                endpoint=exchange.request.spec.template,
                inbound_protocol=INBOUND_PROTOCOL,
                outcome="client_read_error" if exchange.departed else "cap_reached",
            )

    # ── scraping ──

    def _read_gauges(self) -> None:
        """Values that are read rather than counted."""
        self._set("aisix_build_info", 1.0, version=__version__, python=platform.python_version())
        self._set("aisix_config_applied_revision", self._snapshot.revision)
        self._set("aisix_config_last_reload_success_timestamp_seconds", self._published_at)
        if self._log_lines_dropped is not None:
            self._lost_lines[0] = float(self._log_lines_dropped())
        self._set("aisix_workers", self._workers)
        self._set("aisix_worker_restarts_total", self._worker_restarts)
        self._set("aisix_lagging_workers_total", self._lagging_workers)
        self._set("aisix_limiter_evictions_total", self._limiter_evictions)
        state = self._families["aisix_deployment_state"]
        state.retain(lambda _key: False)
        for alias in self._snapshot.every_alias():
            labels = target(alias.name, alias.deployment)._asdict()
            state.child(labels)[0] = float(self._health.level(alias.name))

    def _set(self, name: str, value: float, /, **labels: str) -> None:
        self._families[name].child(labels)[0] = float(value)


def _closed(word: str, words: frozenset[str]) -> str:
    return word if word in words else "other"
