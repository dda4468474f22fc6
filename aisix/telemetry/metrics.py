"""Prometheus: counts what exchanges report and renders the scrape. The door of prometheus-client,
which adds the figures of process, platform and garbage collector.

Counting is for the event loop's thread only: one dictionary lookup finds the prepared slots of an
exchange's labels, the rest is list writes. Series of keys and deployments that a new snapshot no
longer holds are dropped. A bug in counting is logged once and never reaches an exchange; a scrape
that fails does so visibly.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import CollectorRegistry

from aisix import __version__
from aisix.core.endpoints import Action
from aisix.core.exchange import Exchange, Usage
from aisix.core.ports import Clock, HealthView
from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import BodyTooLarge, GatewayError, LimitExceeded, Unauthenticated
from aisix.telemetry import figures
from aisix.telemetry.catalogue import API_KEY_LABEL, CATALOGUE, TARGET_LABELS
from aisix.telemetry.figures import UNKNOWN
from aisix.telemetry.series import Family, Slots, add, observe

INBOUND_PROTOCOL = "openai"
"""The one protocol callers speak; the label is there for those that follow."""

AUTH_REASONS = frozenset(
    {"none", "missing_credentials", "unknown_key", "key_disabled", "key_expired"}
)
TOKEN_REASONS = frozenset({"cold", "refresh", "rejected"})
LIMIT_LAYERS = frozenset({"api_key", "model"})
LIMITS = frozenset({*REQUEST_LIMITS, *TOKEN_LIMITS, "concurrency"})

_log = logging.getLogger("aisix.telemetry")
_P = ParamSpec("_P")


class Target(NamedTuple):
    """Where an exchange went; the fields are TARGET_LABELS."""

    provider: str
    model: str
    upstream_model: str
    provider_key_id: str
    provider_key_name: str


UNRESOLVED = Target(UNKNOWN, "unresolved", UNKNOWN, UNKNOWN, UNKNOWN)
"""The target of an exchange that ended before its alias was known."""


class _Line(NamedTuple):
    """The slots that every exchange with the same labels writes to. None: does not apply."""

    dimensions: Mapping[str, str]
    counters: tuple[Slots, ...]
    summaries: tuple[Slots, ...]
    e2e: Slots
    overhead: Slots | None
    ttft: Slots | None
    ttft_summary: Slots | None


def _guarded(
    method: Callable[Concatenate[PrometheusRecorder, _P], None],
) -> Callable[Concatenate[PrometheusRecorder, _P], None]:
    """Keep a bug in counting away from the exchange that is counted."""

    @wraps(method)
    def guarded(self: PrometheusRecorder, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.note_bug(method.__name__)

    return guarded


class PrometheusRecorder:
    """Implements Recorder and SnapshotSink on a registry of its own."""

    def __init__(
        self,
        *,
        clock: Clock,
        health: HealthView,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._clock = clock
        self._health = health
        self._log_lines_dropped = log_lines_dropped
        self._families = {row.name: Family(row) for row in CATALOGUE}
        self._e2e_bounds = self._families["aisix_request_e2e_latency_seconds"].row.buckets
        self._ttft_bounds = self._families["aisix_request_ttft_seconds"].row.buckets
        self._overhead_bounds = self._families["aisix_gateway_overhead_seconds"].row.buckets
        self._lines: dict[tuple[object, ...], _Line] = {}
        self._token_slots: dict[tuple[object, ...], tuple[Slots, ...]] = {}
        self._attempt_slots: dict[tuple[object, ...], tuple[Slots, ...]] = {}
        self._in_flight: dict[str, Slots] = {}
        self._admitted: Slots | None = None
        self._targets: set[Target] = set()
        self._key_ids: set[str] = set()
        self._snapshot = Snapshot()
        self._published_at = 0.0
        self._reported: set[str] = set()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # ── Recorder ──

    @_guarded
    def exchange_started(self, exchange: Exchange) -> None:
        """One more in flight."""
        self._in_flight_slots(exchange)[0] += 1.0

    @_guarded
    def exchange_ended(self, exchange: Exchange) -> None:
        """Count a settled exchange. A 401 counts in auth decisions alone: whoever has no key must
        not be able to bend the figures."""
        self._in_flight_slots(exchange)[0] -= 1.0
        error = exchange.error
        if isinstance(error, Unauthenticated):
            return
        line = self._line(exchange)
        for slots in line.counters:
            slots[0] += 1.0
        latency = figures.latency_s(exchange)
        for slots in line.summaries:
            add(slots, latency)
        observe(line.e2e, self._e2e_bounds, latency)
        if line.overhead is not None:
            overhead = figures.overhead_s(exchange)
            if overhead is not None:
                observe(line.overhead, self._overhead_bounds, overhead)
        if line.ttft is not None and line.ttft_summary is not None:
            ttft = figures.ttft_s(exchange)
            if ttft is not None:
                observe(line.ttft, self._ttft_bounds, ttft)
                add(line.ttft_summary, ttft)
        if exchange.usage is not None:
            self._count_tokens(exchange, line, exchange.usage)
        if error is not None:
            self._count_error(exchange, line, error)

    @_guarded
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
        word = figures.status_class(status)
        target = _target(alias_name, deployment)
        key = (target, word, reached, ok)
        counters = self._attempt_slots.get(key)
        if counters is None:
            self._targets.add(target)
            dimensions = {**target._asdict(), "status_class": word}
            names = ["aisix_upstream_attempts_total"]
            if reached:
                result = "success" if ok else "failure"
                names.append("aisix_deployment_requests_total")
                names.append(f"aisix_deployment_{result}_responses_total")
            counters = tuple([self._families[name].child(dimensions) for name in names])
            self._attempt_slots[key] = counters
        for slots in counters:
            slots[0] += 1.0

    @_guarded
    def auth_decided(self, *, allowed: bool, reason: str) -> None:
        """A caller credential was judged."""
        self._count(
            "aisix_auth_decisions_total",
            method="none" if reason == "missing_credentials" else "api_key",
            result="allowed" if allowed else "denied",
            reason=_closed(reason, AUTH_REASONS),
        )

    @_guarded
    def limit_decided(self, error: GatewayError | None) -> None:
        """The limiter admitted (None) or refused."""
        if error is None:
            if self._admitted is None:
                self._admitted = self._families["aisix_limiter_decisions_total"].child(
                    {"decision": "admitted", "layer": "none", "limit": "none"}
                )
            self._admitted[0] += 1.0
            return
        layer = limit = "other"
        scope = "requests"
        if isinstance(error, LimitExceeded):
            layer = _closed(error.layer, LIMIT_LAYERS)
            limit = _closed(error.limit, LIMITS)
            scope = "tokens" if error.scope == "tokens" else "requests"
        self._count("aisix_limiter_decisions_total", decision="refused", layer=layer, limit=limit)
        self._count("aisix_ratelimit_rejections_total", scope=scope, layer=layer)

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
        lines = [line for family in self._families.values() for line in family.lines()]
        return CONTENT_TYPE_PLAIN_0_0_4, "".join(lines).encode() + generate_latest(self._registry)

    # ── SnapshotSink ──

    @_guarded
    def publish(self, snapshot: Snapshot) -> None:
        """Requests are served by `snapshot` from now on; series of what it lost are dropped.

        Costs one comparison of names unless something was lost; then one pass over all series.
        """
        self._snapshot = snapshot
        self._published_at = self._clock.time()
        targets = {_target(alias.name, alias.deployment) for alias in snapshot.every_alias()}
        key_ids = {key.id for key in snapshot.keys_by_hash.values()}
        if self._targets <= targets and self._key_ids <= key_ids:
            return
        for family in self._families.values():
            _retain(family, targets | {UNRESOLVED}, key_ids | {UNKNOWN})
        self._lines.clear()
        self._token_slots.clear()
        self._attempt_slots.clear()
        self._targets &= targets
        self._key_ids &= key_ids

    def note_bug(self, where: str) -> None:
        """Log that counting failed, once for each place."""
        if where not in self._reported:
            self._reported.add(where)
            _log.exception("metrics.failed", extra={"where": where})

    # ── counting ──

    def _count(self, name: str, /, **dimensions: str) -> None:
        self._families[name].child(dimensions)[0] += 1.0

    def _in_flight_slots(self, exchange: Exchange) -> Slots:
        spec = exchange.request.spec
        slots = self._in_flight.get(spec.operation)
        if slots is None:
            slots = self._families["aisix_proxy_in_flight_requests"].child(
                {"endpoint": spec.template, "inbound_protocol": INBOUND_PROTOCOL}
            )
            self._in_flight[spec.operation] = slots
        return slots

    def _line(self, exchange: Exchange) -> _Line:
        key = (*_identity(exchange), exchange.streaming, exchange.status, exchange.outcome)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._new_line(exchange)
        return line

    def _new_line(self, exchange: Exchange) -> _Line:
        dimensions = _dimensions(exchange)
        self._remember(exchange)
        counters = ["aisix_requests_total", "aisix_proxy_requests_total"]
        if exchange.outcome != "success":
            counters.append("aisix_proxy_failed_requests_total")
        if exchange.departed:
            counters.append("aisix_proxy_client_cancelled_requests_total")
        summaries = ["aisix_request_duration_seconds", "aisix_proxy_request_duration_seconds"]
        inference = exchange.request.spec.action is Action.RELAY
        if inference:
            counters.append("aisix_llm_requests_total")
            summaries.append("aisix_llm_request_duration_seconds")
        relayed = inference and exchange.attempts > 0

        def child(name: str) -> Slots:
            return self._families[name].child(dimensions)

        streamed = relayed and exchange.streaming
        return _Line(
            dimensions=dimensions,
            counters=tuple([child(name) for name in counters]),
            summaries=tuple([child(name) for name in summaries]),
            e2e=child("aisix_request_e2e_latency_seconds"),
            overhead=child("aisix_gateway_overhead_seconds") if relayed else None,
            ttft=child("aisix_request_ttft_seconds") if streamed else None,
            ttft_summary=child("aisix_llm_time_to_first_token_seconds") if streamed else None,
        )

    def _remember(self, exchange: Exchange) -> None:
        """Note which configured names have series, so that they can be dropped with the name."""
        target = _exchange_target(exchange)
        if target is not UNRESOLVED:
            self._targets.add(target)
        if exchange.caller is not None:
            self._key_ids.add(exchange.caller.id)

    def _count_tokens(self, exchange: Exchange, line: _Line, usage: Usage) -> None:
        key = _identity(exchange)
        counters = self._token_slots.get(key)
        if counters is None:
            names = (
                "aisix_llm_input_tokens_total",
                "aisix_llm_output_tokens_total",
                "aisix_llm_total_tokens_total",
                "aisix_tokens_consumed_total",
            )
            counters = tuple([self._families[name].child(line.dimensions) for name in names])
            self._token_slots[key] = counters
        given, made, total, consumed = counters
        given[0] += usage.prompt_tokens
        made[0] += usage.completion_tokens
        total[0] += usage.total_tokens
        consumed[0] += usage.total_tokens
        if usage.estimated:
            self._families["aisix_usage_estimated_total"].child(line.dimensions)[0] += 1.0

    def _count_error(self, exchange: Exchange, line: _Line, error: GatewayError) -> None:
        kind = figures.failure_kind(error)
        if kind is not None:
            dimensions = {**line.dimensions, "kind": kind}
            self._families["aisix_upstream_failures_total"].child(dimensions)[0] += 1.0
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
        self._set("aisix_log_lines_dropped_total", self._log_lines_dropped())
        state = self._families["aisix_deployment_state"]
        state.retain(lambda _key: False)
        for alias in self._snapshot.every_alias():
            target = _target(alias.name, alias.deployment)
            state.child(target._asdict())[0] = float(self._health.level(alias.name))

    def _set(self, name: str, value: float, /, **dimensions: str) -> None:
        self._families[name].child(dimensions)[0] = float(value)


def _identity(exchange: Exchange) -> tuple[object, ...]:
    """What decides the labels of an exchange but for its end. Strings only: they hash once."""
    alias = exchange.alias
    caller = exchange.caller
    caller_id = caller.id if caller is not None else None
    if alias is None:
        return exchange.request.spec.operation, caller_id, exchange.attempts > 0
    deployment = alias.deployment  # as configured: a wildcard's is the caller's text by now
    return (
        exchange.request.spec.operation,
        caller_id,
        exchange.attempts > 0,
        alias.name,
        deployment.provider,
        deployment.name,
        deployment.provider_key_id,
        deployment.provider_key_name,
    )


def _target(alias_name: str, deployment: Deployment) -> Target:
    return Target(
        provider=deployment.provider.lower() or UNKNOWN,
        model=alias_name,
        upstream_model=deployment.name or UNKNOWN,
        provider_key_id=deployment.provider_key_id or UNKNOWN,
        provider_key_name=deployment.provider_key_name or UNKNOWN,
    )


def _exchange_target(exchange: Exchange) -> Target:
    alias = exchange.alias
    if alias is None:
        return UNRESOLVED
    return _target(alias.name, alias.deployment)


def _dimensions(exchange: Exchange) -> dict[str, str]:
    """Every label an exchange can have; each metric picks its own."""
    streaming = "true" if exchange.streaming else "false"
    return {
        **_exchange_target(exchange)._asdict(),
        API_KEY_LABEL: exchange.caller.id if exchange.caller is not None else UNKNOWN,
        "endpoint": exchange.request.spec.template,
        "inbound_protocol": INBOUND_PROTOCOL,
        "is_fallback": "false",
        "stream": streaming,
        "streaming": streaming,
        "status": str(exchange.status) if exchange.status else UNKNOWN,
        "status_class": figures.status_class(exchange.status),
        "outcome": exchange.outcome,
    }


def _closed(word: str, words: frozenset[str]) -> str:
    return word if word in words else "other"


def _retain(family: Family, targets: set[Target], key_ids: set[str]) -> None:
    """Drop the series of `family` whose target or caller key is not configured any more."""
    labels = family.row.labels
    at = [labels.index(label) for label in TARGET_LABELS if label in labels]
    fields = [i for i, label in enumerate(TARGET_LABELS) if label in labels]
    live = {tuple([target[i] for i in fields]) for target in targets}
    key_at = labels.index(API_KEY_LABEL) if API_KEY_LABEL in labels else None

    def keep(values: tuple[str, ...]) -> bool:
        known = key_at is None or values[key_at] in key_ids
        return known and (not at or tuple([values[i] for i in at]) in live)

    if at or key_at is not None:
        family.retain(keep)
