"""The access line: one record for each settled exchange, refused ones too. Writes to the log.

It names ids and figures, never a prompt, an answer or a credential. What callers or Azure spelt
(path, user agent, error text) is bounded, freed of control characters and, like all else, redacted
by the log's formatter. Fields without a value are left out.
"""

from __future__ import annotations

import logging
from typing import Any

from aisix.core.exchange import Exchange
from aisix.telemetry import figures

EVENT = "request.completed"
CLIENT_CLOSED_REQUEST = 499

MAX_ERROR_CHARS = 2048
MAX_PATH_CHARS = 512
MAX_WORD_CHARS = 256

_log = logging.getLogger("aisix.access")
_own_log = logging.getLogger("aisix.telemetry")


class AccessLogger:
    """Implements AccessLog. Never raises."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._reported = False

    def write(self, exchange: Exchange) -> None:
        """Log a settled exchange."""
        if not self._enabled or not _log.isEnabledFor(logging.INFO):
            return
        try:
            _log.info(EVENT, extra={"fields": access_fields(exchange)})
        except Exception:
            # an exchange must not fail because its line does; once is enough to know
            if not self._reported:
                self._reported = True
                _own_log.exception("access.failed", extra={"request_id": exchange.id})


def access_fields(exchange: Exchange) -> dict[str, Any]:
    """The fields of the line, in reading order."""
    request = exchange.request
    error = exchange.error
    fields = {
        "request_id": exchange.id,
        "method": one_line(request.method, 32),
        "path": one_line(request.path.partition("?")[0], MAX_PATH_CHARS),
        "endpoint": request.spec.template,
        "status": CLIENT_CLOSED_REQUEST if exchange.departed else exchange.status,
        "outcome": exchange.outcome,
        "latency_ms": _ms(figures.latency_s(exchange)),
        "ttft_ms": _ms(figures.ttft_s(exchange)),
        "overhead_ms": _ms(figures.overhead_s(exchange)),
        "upstream_ms": _ms(figures.upstream_s(exchange)),
        "stream": exchange.streaming,
        **_target_fields(exchange),
        **_caller_fields(exchange),
        **_usage_fields(exchange),
        "finish_reason": _word(exchange.finish_reason),
        "provider_request_id": _word(exchange.upstream_request_id),
        "upstream_status": exchange.upstream_status,
        "attempts": exchange.attempts,
        "error_kind": figures.error_kind(exchange),
        "error": one_line(error.detail or error.message, MAX_ERROR_CHARS) if error else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _target_fields(exchange: Exchange) -> dict[str, Any]:
    """Alias, deployment and served model: three identities, three fields. A name that met no
    alias is not repeated: it may be anything."""
    alias = exchange.alias
    if alias is None:
        return {}
    deployment = exchange.deployment or alias.deployment
    requested = exchange.payload.requested if exchange.payload is not None else None
    return {
        "provider": deployment.provider.lower(),
        "model": alias.name,
        "requested_model": _word(requested),
        "upstream_model": deployment.name,
        "served_by_model": _word(exchange.served_model),
        "provider_key_id": deployment.provider_key_id,
    }


def _caller_fields(exchange: Exchange) -> dict[str, Any]:
    caller = exchange.caller
    return {
        "api_key_id": caller.id if caller is not None else None,
        "api_key_name": caller.display_name if caller is not None else None,
        "client_source_ip": exchange.request.client_address or None,
        "user_agent": _word(exchange.request.headers.get("user-agent")),
    }


def _usage_fields(exchange: Exchange) -> dict[str, Any]:
    usage = exchange.usage
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_estimated": usage.estimated,
    }


def one_line(text: str, limit: int) -> str:
    """`text` on one line, without control characters, at most `limit` characters."""
    if text.isprintable():
        return text[:limit]
    # what is cut is cut first, so that a huge text costs nothing
    return "".join(char if char.isprintable() else " " for char in text[:limit])


def _word(text: str | None) -> str | None:
    return one_line(text, MAX_WORD_CHARS) if text else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
