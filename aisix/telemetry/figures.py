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


def latency_s(exchange: Exchange) -> float:
    """From arrival to settlement; for a stream that is its last byte."""
    timings = exchange.timings
    latency = timings.ended - timings.arrived
    return latency if latency > 0.0 else 0.0


def ttft_s(exchange: Exchange) -> float | None:
    """From arrival to the first event with content; streams only (decisions §9)."""
    timings = exchange.timings
    if timings.first_token <= 0.0 or not exchange.streaming:
        return None
    ttft = timings.first_token - timings.arrived
    return ttft if ttft > 0.0 else 0.0


def upstream_s(exchange: Exchange) -> float | None:
    """From hand-over of the last attempt to the newest byte that Azure sent."""
    timings = exchange.timings
    newest = timings.upstream_last_byte or timings.upstream_first_byte
    if newest <= 0.0 or timings.dispatched <= 0.0:
        return None
    waited = newest - timings.dispatched
    return waited if waited > 0.0 else 0.0


def overhead_s(exchange: Exchange) -> float | None:
    """What the gateway added (decisions §9).

    A whole answer: total less (handed to curl → last byte in). A stream: (arrival → handed to
    curl) plus (first byte in → first byte out). None when no good answer was relayed, and after a
    repaired attempt, whose wait for Azure would count as ours.
    """
    timings = exchange.timings
    if exchange.attempts != 1 or timings.dispatched <= 0.0:
        return None
    before = timings.dispatched - timings.arrived
    if exchange.streaming:
        if timings.first_out <= 0.0 or timings.upstream_first_byte <= 0.0:
            return None
        after = timings.first_out - timings.upstream_first_byte
    else:
        if timings.upstream_last_byte <= 0.0 or exchange.phase is not _DONE:
            return None
        after = timings.ended - timings.upstream_last_byte
    overhead = before + after
    return overhead if overhead > 0.0 else 0.0


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
