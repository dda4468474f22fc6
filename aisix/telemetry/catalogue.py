"""Every metric of our own, one row each: the table that docs/metrics.md shows. Pure.

Laws: label values come from configured names (alias, deployment, provider key, caller key id) or
closed sets, never from a caller's text. `api_key_id` stands on at most four counters and on
nothing else. Summaries have `_sum` and `_count` only. A row that nothing emits fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The type of a metric, in the words of the exposition format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric. `buckets` are the upper bounds of a histogram, without the infinite one."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


TARGET_LABELS = (
    "provider",
    "model",
    "upstream_model",
    "provider_key_id",
    "provider_key_name",
)
"""Where an exchange went. Series go when the snapshot no longer has their target."""

API_KEY_LABEL = "api_key_id"

_ENTRY = ("endpoint", "inbound_protocol")
_END = ("stream", "status", "outcome")
_EXCHANGE = (*_ENTRY, *TARGET_LABELS)
_DEPLOYMENT = ("provider", "model", "upstream_model", "provider_key_id")
_LATENCY = ("endpoint", "model", "provider", "status_class", "streaming")

_E2E_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 420.0, 600.0),
)
_TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_OVERHEAD_BUCKETS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005),
    *(0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)


def _counter(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.GAUGE, labels, text)


def _summary(name: str, labels: tuple[str, ...], text: str) -> MetricRow:
    return MetricRow(name, Kind.SUMMARY, labels, text)


def _histogram(
    name: str, labels: tuple[str, ...], buckets: tuple[float, ...], text: str
) -> MetricRow:
    return MetricRow(name, Kind.HISTOGRAM, labels, text, buckets)


CATALOGUE: tuple[MetricRow, ...] = (
    # ── requests ──
    _counter(
        "aisix_requests_total",
        ("provider", "model", "status", "outcome"),
        "Requests answered, refused or abandoned.",
    ),
    _summary(
        "aisix_request_duration_seconds",
        ("provider", "model", "status"),
        "Time from arrival to the last byte of the answer.",
    ),
    _counter(
        "aisix_proxy_requests_total",
        (*_EXCHANGE, API_KEY_LABEL, "is_fallback", *_END),
        "Requests on every proxy endpoint, in full detail.",
    ),
    _counter(
        "aisix_proxy_failed_requests_total",
        (*_EXCHANGE, "is_fallback", *_END),
        "Requests on every proxy endpoint whose outcome is not success.",
    ),
    _summary(
        "aisix_proxy_request_duration_seconds",
        (*_EXCHANGE, *_END),
        "Time from arrival to the last byte, on every proxy endpoint.",
    ),
    _counter(
        "aisix_llm_requests_total",
        (*_EXCHANGE, "is_fallback", *_END),
        "Requests on inference endpoints.",
    ),
    _summary(
        "aisix_llm_request_duration_seconds",
        (*_EXCHANGE, *_END),
        "Time from arrival to the last byte, on inference endpoints.",
    ),
    _histogram(
        "aisix_request_e2e_latency_seconds",
        _LATENCY,
        _E2E_BUCKETS,
        "Time from arrival to the last byte; a stream is observed at its end.",
    ),
    _gauge("aisix_proxy_in_flight_requests", _ENTRY, "Requests being served now."),
    _counter(
        "aisix_proxy_client_cancelled_requests_total",
        ("endpoint", "model", "provider_key_id", "provider_key_name"),
        "Callers that left before their answer was complete.",
    ),
    _counter(
        "aisix_proxy_request_body_limit_rejections_total",
        (*_ENTRY, "outcome"),
        "Requests refused for the size of their body: cap_reached, or client_read_error when the"
        " caller left meanwhile.",
    ),
    # ── streaming and overhead ──
    _histogram(
        "aisix_request_ttft_seconds",
        _LATENCY,
        _TTFT_BUCKETS,
        "Streams: time from arrival to the first event with content.",
    ),
    _summary(
        "aisix_llm_time_to_first_token_seconds",
        _EXCHANGE,
        "Streams: time from arrival to the first event with content.",
    ),
    _histogram(
        "aisix_gateway_overhead_seconds",
        ("endpoint", "streaming"),
        _OVERHEAD_BUCKETS,
        "What the gateway added. Whole answers: total less the wait for Azure. Streams: arrival to"
        " hand-over, plus Azure's first byte to ours. Exchanges with one attempt that was"
        " answered.",
    ),
    # ── tokens ──
    _counter(
        "aisix_tokens_consumed_total", ("provider", "model"), "Tokens used, prompt and completion."
    ),
    _counter(
        "aisix_llm_input_tokens_total", (*_EXCHANGE, API_KEY_LABEL), "Prompt tokens, by caller key."
    ),
    _counter(
        "aisix_llm_output_tokens_total",
        (*_EXCHANGE, API_KEY_LABEL),
        "Completion tokens, by caller key.",
    ),
    _counter(
        "aisix_llm_total_tokens_total", (*_EXCHANGE, API_KEY_LABEL), "All tokens, by caller key."
    ),
    _counter(
        "aisix_llm_audio_seconds_total",
        ("endpoint", "provider", "model"),
        "Seconds of audio transcribed by models that are measured by time and not in tokens.",
    ),
    _counter(
        "aisix_usage_estimated_total",
        ("endpoint", "provider", "model"),
        "Exchanges whose token counts are our estimate because Azure reported none.",
    ),
    # ── upstream ──
    _counter(
        "aisix_deployment_requests_total", _DEPLOYMENT, "Attempts that reached the deployment."
    ),
    _counter(
        "aisix_deployment_success_responses_total",
        _DEPLOYMENT,
        "Attempts that reached the deployment and were answered well.",
    ),
    _counter(
        "aisix_deployment_failure_responses_total",
        _DEPLOYMENT,
        "Attempts that reached the deployment and failed.",
    ),
    _gauge(
        "aisix_deployment_state",
        _DEPLOYMENT,
        "Health of each configured deployment: 0 healthy, 1 shaky, 2 unhealthy.",
    ),
    _counter(
        "aisix_upstream_attempts_total",
        ("provider", "model", "status_class"),
        "Attempts by the class of Azure's status; unknown when no answer began.",
    ),
    _counter(
        "aisix_upstream_failures_total",
        ("provider", "model", "kind"),
        "Exchanges that failed because of the upstream: rejected, unreachable, timeout_connect,"
        " timeout_first_byte, timeout_idle, timeout_total, cut, decode, in_band, misconfigured,"
        " credential_unusable, credential_refused, credential_unavailable.",
    ),
    _counter(
        "aisix_token_refreshes_total",
        ("result", "reason"),
        "Requests to the Entra ID token authority; result is success or failure, reason is cold,"
        " refresh or rejected.",
    ),
    # ── admission ──
    _counter(
        "aisix_auth_decisions_total",
        ("method", "result", "reason"),
        "Caller credentials judged; the only metric that counts a 401.",
    ),
    _counter(
        "aisix_limiter_decisions_total",
        ("decision", "layer", "limit"),
        "Admissions and refusals of the limiter; layer and limit are none on an admission.",
    ),
    _counter(
        "aisix_ratelimit_rejections_total",
        ("scope", "layer"),
        "Requests refused by a limit; concurrency counts as requests.",
    ),
    _counter(
        "aisix_limiter_evictions_total",
        (),
        "Living buckets forgotten because the memory that workers share for them is full; always 0"
        " in a gateway of one process.",
    ),
    # ── process ──
    _gauge("aisix_build_info", ("version", "python"), "Always 1; the labels say what runs."),
    _gauge("aisix_workers", (), "Processes that serve requests now."),
    _counter(
        "aisix_worker_restarts_total",
        (),
        "Workers that ended unasked and were replaced.",
    ),
    _counter(
        "aisix_lagging_workers_total",
        (),
        "Workers that did not take over an admin write in time and were replaced.",
    ),
    _gauge(
        "aisix_config_applied_revision",
        (),
        "Revision of the resources in use.",
    ),
    _gauge(
        "aisix_config_last_reload_success_timestamp_seconds",
        (),
        "When those resources became effective, in Unix time; 0 before the first time.",
    ),
    _counter(
        "aisix_log_lines_dropped_total",
        (),
        "Log lines lost because standard error was closed or too slow.",
    ),
)
