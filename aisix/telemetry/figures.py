"""What a settled exchange says in numbers and closed words: durations, error kinds. Pure.

The one place of this arithmetic, so that metrics and the access line can never disagree. Durations
are seconds, never negative, None when the exchange did not get far enough to have one. Words come
from closed sets: they may be metric labels. Written for speed: every exchange passes here twice.
"""

from __future__ import annotations

from aisix.core.exchange import Exchange, Phase
from aisix.errors import (
    CredentialRefused,
    CredentialUnavailable,
    CredentialUnusable,
    GatewayError,
    InternalError,
    LimitExceeded,
    Overloaded,
    RequestRejected,
    UpstreamBroken,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)

UNKNOWN = "unknown"
"""Stands for a dimension that this exchange does not have."""

CLIENT_DISCONNECTED = "client_disconnected"

Durations = tuple[float, float | None, float | None, float | None]
"""Latency, time to the first token, overhead, upstream time; seconds, see `durations`."""

_DONE = Phase.DONE

_STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

_UPSTREAM_KINDS: dict[type[GatewayError], str] = {
    UpstreamUnreachable: "unreachable",
    UpstreamMisconfigured: "misconfigured",
    CredentialUnusable: "credential_unusable",
    CredentialRefused: "credential_refused",
    CredentialUnavailable: "credential_unavailable",
}

_TIMEOUT_KINDS = {phase: f"timeout_{phase}" for phase in ("connect", "first_byte", "idle", "total")}


def durations(exchange: Exchange) -> Durations:
    """Latency, time to the first token, overhead and upstream time (decisions §9).

    Latency runs from arrival to settlement; for a stream that is its last byte. Time to the first
    token, streams only, runs from arrival to the first event with content. Upstream time runs from
    hand-over of the last attempt to the newest byte that Azure sent.

    Overhead is what the gateway added. A whole answer: total less (handed to curl → last byte in).
    A stream: (arrival → handed to curl) plus (first byte in → first byte out). None when no good
    answer was relayed, and after a repaired attempt, whose wait for Azure would count as ours.
    """
    timings = exchange.timings
    payload = exchange.payload
    arrived = timings.arrived
    dispatched = timings.dispatched
    first_byte = timings.upstream_first_byte
    last_byte = timings.upstream_last_byte
    latency = timings.ended - arrived
    ttft = overhead = upstream = None
    if payload is not None and payload.stream:
        if timings.first_token > 0.0:
            ttft = timings.first_token - arrived
        if timings.first_out > 0.0 and first_byte > 0.0:
            overhead = dispatched - arrived + (timings.first_out - first_byte)
    elif last_byte > 0.0 and exchange.phase is _DONE:
        overhead = dispatched - arrived + (timings.ended - last_byte)
    if dispatched <= 0.0:
        overhead = None
    else:
        if exchange.attempts != 1:
            overhead = None
        newest = last_byte or first_byte
        if newest > 0.0:
            upstream = newest - dispatched
    return (
        latency if latency > 0.0 else 0.0,
        ttft if ttft is None or ttft > 0.0 else 0.0,
        overhead if overhead is None or overhead > 0.0 else 0.0,
        upstream if upstream is None or upstream > 0.0 else 0.0,
    )


def status_class(status: int | None) -> str:
    """ "2xx" and so on; "unknown" for no status or one that HTTP does not have."""
    if status is None or not 100 <= status <= 599:
        return UNKNOWN
    return _STATUS_CLASSES[status // 100 - 1]


def failure_kind(error: GatewayError | None) -> str | None:
    """How the upstream failed, from a closed set; None when the upstream is not to blame."""
    if isinstance(error, UpstreamRejected):
        return "rejected"
    if not isinstance(error, UpstreamFailed):
        return None
    if isinstance(error, UpstreamTimeout):
        return _TIMEOUT_KINDS.get(error.phase, "timeout")
    if isinstance(error, UpstreamBroken):
        return error.kind
    for kind, word in _UPSTREAM_KINDS.items():
        if isinstance(error, kind):
            return word
    return "other"


def error_kind(exchange: Exchange) -> str | None:
    """Why the exchange failed, from a closed set; None for a good one."""
    if exchange.departed:
        return CLIENT_DISCONNECTED
    error = exchange.error
    if error is None:
        return None
    kind = failure_kind(error)
    if kind is not None:
        return kind
    if isinstance(error, LimitExceeded):
        return "rate_limited"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, InternalError):
        return "internal_error"
    if isinstance(error, RequestRejected):
        return type(error).code or error.type
    return "other"
