"""The access line: one record for each settled exchange, refused ones too. Writes to the log.

It names ids and figures, never a prompt, an answer or a credential. What callers or Azure spelt
(path, user agent, error text) is bounded, freed of control characters and, like all else, redacted.
Fields without a value are left out.

There are two ways to the same line. The long one is a record of the log, for any exchange. One
without an error, as nearly all are, takes the short one: what recurs (who asked for what, how it
ended) is kept as finished text, and the rest goes into one format operation.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from aisix.core.exchange import Exchange
from aisix.telemetry import figures, logs
from aisix.telemetry.lines import LineHandler

EVENT = "request.completed"
CLIENT_CLOSED_REQUEST = 499

MAX_ERROR_CHARS = 2048
MAX_METHOD_CHARS = 32
MAX_PATH_CHARS = 512
MAX_WORD_CHARS = 256

MAX_KEPT = 4096
"""Finished texts that are kept, of each kind; the next one clears them."""

MAX_KEPT_CHARS = 1024
"""What callers spelt at greater length is not kept."""

_FIGURES = (
    '"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"cached_tokens":%d,'
    '"reasoning_tokens":%d,"usage_estimated":%s,%s"overhead_ms":%.3f,"upstream_ms":%.3f,'
    '"latency_ms":%.3f}\n'
)
"""The end of most lines. For numbers `%` is faster than an f-string."""

_log = logging.getLogger("aisix.access")
_own_log = logging.getLogger("aisix.telemetry")


class AccessLogger:
    """Implements AccessLog. Never raises. For the event loop's thread."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._reported = False
        self._short_way: ShortWay | None = None

    def write(self, exchange: Exchange) -> None:
        """Log a settled exchange."""
        if not self._enabled or not _log.isEnabledFor(logging.INFO):
            return
        try:
            if exchange.error is None and not exchange.departed:
                way = self._short_way
                if way is None or way.handler.closed:
                    way = self._short_way = _short_way()
                if way is not None:
                    way.handler.put(way.render(exchange, time.time()))
                    return
            _log.info(EVENT, extra={"fields": access_fields(exchange)})
        except Exception:
            # an exchange must not fail because its line does; once is enough to know
            if not self._reported:
                self._reported = True
                _own_log.exception("access.failed", extra={"request_id": exchange.id})


def access_fields(exchange: Exchange) -> dict[str, Any]:
    """The fields of the line, in reading order."""
    error = exchange.error
    fields = {
        "request_id": one_line(exchange.id, MAX_WORD_CHARS),
        **_asked(exchange),
        **_ended(exchange),
        "provider_request_id": _word(exchange.upstream_request_id),
        **_usage(exchange),
        **_durations(exchange),
        "error_kind": figures.error_kind(exchange),
        "error": one_line(error.detail or error.message, MAX_ERROR_CHARS) if error else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _asked(exchange: Exchange) -> dict[str, Any]:
    """Who asked, and how."""
    request = exchange.request
    caller = exchange.caller
    return {
        "method": one_line(request.method, MAX_METHOD_CHARS),
        "path": one_line(request.path.partition("?")[0], MAX_PATH_CHARS),
        "endpoint": request.spec.template,
        "api_key_id": caller.id if caller is not None else None,
        "api_key_name": caller.display_name if caller is not None else None,
        "client_source_ip": request.client_address or None,
        "user_agent": _word(request.headers.get("user-agent")),
    }


def _asked_key(exchange: Exchange) -> tuple[object, ...]:
    """All that `_asked` reads."""
    request = exchange.request
    caller = exchange.caller
    return (
        request.method,
        request.path.partition("?")[0],
        request.spec.path,
        request.headers.get("user-agent"),
        request.client_address,
        None if caller is None else caller.id,
        None if caller is None else caller.display_name,
    )


def _ended(exchange: Exchange) -> dict[str, Any]:
    """Where it went and how it ended, as far as that recurs.

    Alias, deployment and served model: three identities, three fields. A name that met no alias is
    not repeated: it may be anything.
    """
    fields = {
        "stream": exchange.streaming,
        "status": CLIENT_CLOSED_REQUEST if exchange.departed else exchange.status,
        "outcome": exchange.outcome,
        "upstream_status": exchange.upstream_status,
        "attempts": exchange.attempts,
        "finish_reason": _word(exchange.finish_reason),
        "closed_by": exchange.closed_by,
        "close_code": exchange.close_code,
    }
    alias = exchange.alias
    if alias is not None:
        deployment = exchange.deployment or alias.deployment
        requested = exchange.payload.requested if exchange.payload is not None else None
        fields["provider"] = deployment.provider.lower()
        fields["model"] = alias.name
        fields["requested_model"] = _word(requested)
        fields["upstream_model"] = deployment.name
        fields["served_by_model"] = _word(exchange.served_model)
        fields["provider_key_id"] = deployment.provider_key_id
    return fields


def _ended_key(exchange: Exchange) -> tuple[object, ...]:
    """All that `_ended` reads of an exchange without an error, whose caller has stayed."""
    alias = exchange.alias
    payload = exchange.payload
    if alias is None:
        return (
            payload is not None and payload.stream,
            exchange.status,
            exchange.upstream_status,
            exchange.attempts,
            exchange.finish_reason,
            exchange.closed_by,
            exchange.close_code,
        )
    deployment = exchange.deployment or alias.deployment
    return (
        payload is not None and payload.stream,
        exchange.status,
        exchange.upstream_status,
        exchange.attempts,
        exchange.finish_reason,
        exchange.closed_by,
        exchange.close_code,
        deployment.provider,
        alias.name,
        None if payload is None else payload.requested,
        deployment.name,
        exchange.served_model,
        deployment.provider_key_id,
    )


def _usage(exchange: Exchange) -> dict[str, int | float | bool | None]:
    usage = exchange.usage
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_seconds": usage.audio_seconds or None,
        "usage_estimated": usage.estimated,
    }


def _durations(exchange: Exchange) -> dict[str, float | None]:
    latency, ttft, overhead, upstream = figures.durations(exchange)
    return {
        "ttft_ms": _ms(ttft),
        "overhead_ms": _ms(overhead),
        "upstream_ms": _ms(upstream),
        "latency_ms": _ms(latency),
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


class ShortWay:
    """Renders the line of an exchange that has no error and whose caller has stayed, as the JSON
    formatter of `handler` would."""

    def __init__(
        self, handler: LineHandler, formatter: logs.JsonFormatter, *, kept: int = MAX_KEPT
    ) -> None:
        self.handler = handler
        self._own_fields = formatter.own_fields
        self._limit = kept
        self._redactor = handler.redactor
        self._revision = -1
        self._head = ""
        self._asked: dict[tuple[object, ...], str] = {}
        self._ended: dict[tuple[object, ...], str] = {}
        self._millis = -1
        self._start = ""

    def __len__(self) -> int:
        """How many finished texts are kept."""
        return len(self._asked) + len(self._ended)

    def render(self, exchange: Exchange, now: float) -> str:
        """The line, with its line break; `now` is UTC epoch seconds."""
        if self._revision != self._redactor.revision:
            self._forget()
        millis = int(now * 1000)
        if millis != self._millis:
            self._millis = millis
            self._start = f'{{"time":"{logs.timestamp(now)}",{self._head}"request_id":"'
        key = _asked_key(exchange)
        asked = self._asked.get(key) or self._kept(self._asked, key, _asked(exchange))
        key = _ended_key(exchange)
        ended = self._ended.get(key) or self._kept(self._ended, key, _ended(exchange))
        own, theirs = exchange.request.request_id, exchange.upstream_request_id or ""
        if not self._redactor.are_harmless_uuids(own, theirs):
            own, theirs = self._redacted(own), self._redacted(theirs)
        if theirs:
            theirs = f'"provider_request_id":"{theirs}",'
        return f'{self._start}{own}",{asked}{ended}{theirs}{_figures_text(exchange)}'

    def _forget(self) -> None:
        """What is kept was redacted by the secrets of its time."""
        self._revision = self._redactor.revision
        self._millis = -1
        self._asked.clear()
        self._ended.clear()
        constant = {
            "level": "info",
            "logger": _log.name,
            "event": self._redactor.text(EVENT),
            **self._own_fields,
        }
        self._head = _members(constant)

    def _kept(
        self, texts: dict[tuple[object, ...], str], key: tuple[object, ...], fields: dict[str, Any]
    ) -> str:
        """`fields` as finished text, kept under `key` unless a caller spelt too much."""
        known = {name: value for name, value in fields.items() if value is not None}
        text = _members(self._redactor.fields(known))
        if sum(len(part) for part in key if isinstance(part, str)) <= MAX_KEPT_CHARS:
            if len(texts) >= self._limit:
                texts.clear()
            texts[key] = text
        return text

    def _redacted(self, text: str) -> str:
        """An id that is not a UUID, as the inside of a JSON string."""
        return logs.render_json(self._redactor.text(one_line(text, MAX_WORD_CHARS)))[1:-1]


def _figures_text(exchange: Exchange) -> str:
    """Usage and durations, and the end of the object: there always is a latency."""
    usage = exchange.usage
    latency, ttft, overhead, upstream = figures.durations(exchange)
    if usage is None or usage.audio_seconds or overhead is None or upstream is None:
        known = {**_usage(exchange), **_durations(exchange)}
        known = {name: value for name, value in known.items() if value is not None}
        return logs.render_json(known)[1:] + "\n"
    return _FIGURES % (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        "true" if usage.estimated else "false",
        "" if ttft is None else f'"ttft_ms":{ttft * 1000.0:.3f},',
        overhead * 1000.0,
        upstream * 1000.0,
        latency * 1000.0,
    )


def _members(fields: dict[str, Any]) -> str:
    """`fields` as members of a JSON object, with a comma behind each."""
    return logs.render_json(fields)[1:-1] + ","


def _short_way() -> ShortWay | None:
    """The short way to the log that is configured now; there is none to a log that is not JSON, or
    whose records others filter."""
    handler = logs.current()
    if handler is None or handler.filters or not isinstance(handler.formatter, logs.JsonFormatter):
        return None
    return ShortWay(handler, handler.formatter)
