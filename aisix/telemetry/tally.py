"""Counts settled exchanges. One lookup finds the slots that all exchanges with the same labels
write to; the rest is those writes. Pure, for the event loop's thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aisix.core.endpoints import Action
from aisix.core.exchange import Exchange
from aisix.telemetry import figures
from aisix.telemetry.labels import Names, Target, dimensions, exchange_target
from aisix.telemetry.series import Family, Slots, add, observe

INFERENCE = frozenset({Action.RELAY, Action.SESSION})
"""What a model answers."""


@dataclass(slots=True)
class _Line:
    """The slots that every exchange with the same labels writes to. None: does not apply, or, for
    `tokens`, not yet."""

    dimensions: Mapping[str, str]
    counters: tuple[Slots, ...]
    summaries: tuple[Slots, ...]
    e2e: Slots
    overhead: Slots | None
    ttft: Slots | None
    ttft_summary: Slots | None
    tokens: tuple[Slots, Slots, Slots, Slots] | None = None


class Tally:
    """The series of exchanges. It notes the configured names in their labels, since a later
    snapshot may lose them."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._e2e_bounds = families["aisix_request_e2e_latency_seconds"].row.buckets
        self._ttft_bounds = families["aisix_request_ttft_seconds"].row.buckets
        self._overhead_bounds = families["aisix_gateway_overhead_seconds"].row.buckets
        self._lines: dict[tuple[object, ...], _Line] = {}
        self.targets: set[Target] = set()
        self.key_ids: set[str] = set()

    def count(self, exchange: Exchange) -> None:
        """Count what every exchange counts, good or bad."""
        key = _line_key(exchange)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._new_line(exchange)
        latency, ttft, overhead, _ = figures.durations(exchange)
        for slots in line.counters:
            slots[0] += 1.0
        for slots in line.summaries:
            slots[0] += 1.0
            slots[1] += latency
        observe(line.e2e, self._e2e_bounds, latency)
        if overhead is not None and line.overhead is not None:
            observe(line.overhead, self._overhead_bounds, overhead)
        if ttft is not None and line.ttft is not None and line.ttft_summary is not None:
            observe(line.ttft, self._ttft_bounds, ttft)
            add(line.ttft_summary, ttft)
        usage = exchange.usage
        if usage is not None:
            prompt, completion, total, consumed = line.tokens or self._new_tokens(line)
            prompt[0] += usage.prompt_tokens
            completion[0] += usage.completion_tokens
            total[0] += usage.total_tokens
            consumed[0] += usage.total_tokens
            if usage.audio_seconds:
                seconds = self._families["aisix_llm_audio_seconds_total"].child(line.dimensions)
                seconds[0] += usage.audio_seconds
            if usage.estimated:
                self._families["aisix_usage_estimated_total"].child(line.dimensions)[0] += 1.0

    def _new_line(self, exchange: Exchange) -> _Line:
        if exchange.alias is not None:
            self.targets.add(exchange_target(exchange))
        if exchange.caller is not None:
            self.key_ids.add(exchange.caller.id)
        counters = ["aisix_requests_total", "aisix_proxy_requests_total"]
        if exchange.outcome != "success":
            counters.append("aisix_proxy_failed_requests_total")
        if exchange.departed:
            counters.append("aisix_proxy_client_cancelled_requests_total")
        summaries = ["aisix_request_duration_seconds", "aisix_proxy_request_duration_seconds"]
        inference = exchange.request.spec.action in INFERENCE
        if inference:
            counters.append("aisix_llm_requests_total")
            summaries.append("aisix_llm_request_duration_seconds")
        relayed = inference and exchange.attempts > 0
        streamed = relayed and exchange.streaming
        labels = dimensions(exchange)

        def child(name: str) -> Slots:
            return self._families[name].child(labels)

        return _Line(
            dimensions=labels,
            counters=tuple([child(name) for name in counters]),
            summaries=tuple([child(name) for name in summaries]),
            e2e=child("aisix_request_e2e_latency_seconds"),
            overhead=child("aisix_gateway_overhead_seconds") if relayed else None,
            ttft=child("aisix_request_ttft_seconds") if streamed else None,
            ttft_summary=child("aisix_llm_time_to_first_token_seconds") if streamed else None,
        )

    def _new_tokens(self, line: _Line) -> tuple[Slots, Slots, Slots, Slots]:
        """The token counters of `line`, once it has used some."""
        line.tokens = (
            self._families["aisix_llm_input_tokens_total"].child(line.dimensions),
            self._families["aisix_llm_output_tokens_total"].child(line.dimensions),
            self._families["aisix_llm_total_tokens_total"].child(line.dimensions),
            self._families["aisix_tokens_consumed_total"].child(line.dimensions),
        )
        return line.tokens

    def is_within(self, names: Names) -> bool:
        """Whether every name that was noted is one of `names`."""
        return self.targets <= names.targets and self.key_ids <= names.key_ids

    def retain(self, names: Names) -> None:
        """The families have dropped the series of all but `names`: find slots anew."""
        self._lines.clear()
        self.targets &= names.targets
        self.key_ids &= names.key_ids


def _line_key(exchange: Exchange) -> tuple[object, ...]:
    """What decides the labels of an exchange; outcome is told by three fields."""
    alias = exchange.alias
    caller = exchange.caller
    payload = exchange.payload
    caller_id = None if caller is None else caller.id
    if alias is None:
        return (
            exchange.request.spec.operation,
            caller_id,
            exchange.attempts > 0,
            payload is not None and payload.stream,
            exchange.status,
            exchange.departed,
            exchange.error is None,
            exchange.phase,
        )
    deployment = alias.deployment  # as configured: a wildcard's is the caller's text by now
    return (
        exchange.request.spec.operation,
        caller_id,
        exchange.attempts > 0,
        payload is not None and payload.stream,
        exchange.status,
        exchange.departed,
        exchange.error is None,
        exchange.phase,
        alias.name,
        deployment.provider,
        deployment.name,
        deployment.provider_key_id,
        deployment.provider_key_name,
    )
