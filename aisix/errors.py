"""Every error a caller can meet, in one tree, and the one renderer of its JSON form. Pure.

    GatewayError                     abstract
    ├─ RequestRejected               we said no; nothing was sent upstream
    │  ├─ BadRequest 400 · Unauthenticated 401 · Forbidden 403 · NotFound 404 · UnknownAlias 404
    │  ├─ MethodNotAllowed 405 · RequestTimeout 408 · BodyTooLarge 413 · UnsupportedEncoding 415
    │  └─ UpgradeRequired 426 · LimitExceeded 429 · HeadTooLarge 431
    ├─ UpstreamFailed                Azure gave no usable answer
    │  ├─ UpstreamUnreachable 502 · UpstreamBroken 502 · UpstreamTimeout 504
    │  ├─ UpstreamMisconfigured 400 · CredentialUnusable 401
    │  └─ CredentialRefused 500 · CredentialUnavailable 502
    ├─ UpstreamRejected              Azure answered with an error; its status, our wording
    ├─ Overloaded 503                draining, or too many connections
    └─ InternalError 500             every other exception; text hidden

`message` is for the caller: it never holds a secret, an upstream host or a deployment name.
`detail` is for the log. `CallerDeparted` is no error to show: nobody is left to read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

MAX_RETRY_HINT_S = 60.0
"""Upstream retry hints are clamped to this: some SDKs sleep as long as they are told."""


class CallerDeparted(Exception):
    """The caller closed its connection before the answer was complete."""


class FieldError(ValueError):
    """A value an operator wrote cannot be used; the text says why and how to mend it, never the
    value of a secret."""


class GatewayError(Exception):
    """Base of all errors with an HTTP form. Never raised itself."""

    status = 500
    type = "internal_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        detail: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if type(self) is GatewayError:
            raise TypeError("GatewayError is abstract; raise one of its kinds")
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.param = param
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.extra: dict[str, Any] = {}
        self.headers: dict[str, str] = dict(headers or {})


class RequestRejected(GatewayError):
    """The gateway refused the request; nothing was sent upstream."""

    status = 400
    type = "invalid_request_error"


class BadRequest(RequestRejected):
    """The request cannot be understood."""


class Unauthenticated(RequestRejected):
    """No credential, or one that opens nothing."""

    status = 401
    type = "invalid_api_key"
    code = "invalid_api_key"


class Forbidden(RequestRejected):
    """A good credential that does not cover this alias."""

    status = 403
    type = "permission_denied"
    code = "permission_denied"


class NotFound(RequestRejected):
    """No such route."""

    status = 404
    code = "not_found"


class UnknownAlias(RequestRejected):
    """No model resource has this name."""

    status = 404
    type = "model_not_found"
    code = "model_not_found"


class MethodNotAllowed(RequestRejected):
    """The route exists under another method."""

    status = 405
    code = "method_not_allowed"


class UpgradeRequired(RequestRejected):
    """The route is not plain HTTP: it speaks WebSocket."""

    status = 426
    code = "upgrade_required"


class RequestTimeout(RequestRejected):
    """The caller took too long to send its request."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestRejected):
    """The request body is over the configured limit."""

    status = 413
    code = "request_too_large"


def body_too_large(limit: int) -> BodyTooLarge:
    """The 413 of a body over `limit` bytes."""
    return BodyTooLarge(f"request body exceeds {limit}-byte limit")


class UnsupportedEncoding(RequestRejected):
    """The request body is compressed, which no Azure OpenAI endpoint accepts."""

    status = 415
    code = "unsupported_content_encoding"


class HeadTooLarge(RequestRejected):
    """Request line and headers are larger than any SDK makes them."""

    status = 431
    code = "request_head_too_large"


class LimitExceeded(RequestRejected):
    """One of the caller's or the model's limits is exhausted.

    `scope` is "requests", "tokens" or "concurrency"; `layer` is "api_key" or "model"; `limit` the
    policy field ("rpm").
    """

    status = 429
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, layer: str, limit: str, scope: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.layer = layer
        self.limit = limit
        self.scope = scope


class UpstreamFailed(GatewayError):
    """The upstream gave no usable answer."""

    status = 502
    type = "upstream_error"


class UpstreamUnreachable(UpstreamFailed):
    """No connection, or it broke before an answer began.

    `reason` is for whoever can mend it: "dns", "connect", "tls", "tls_untrusted", "tls_time",
    "tls_host", "tls_ca_file", "proxy", "unanswered" or "other".
    """

    type = "transport_error"
    code = "transport_error"

    def __init__(self, message: str, *, reason: str = "other", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.reason = reason


class UpstreamBroken(UpstreamFailed):
    """An answer began and then was cut, or could not be read.

    `kind` is one of "cut", "decode", "in_band"; it becomes type and code.
    """

    KINDS: ClassVar[dict[str, str]] = {
        "cut": "stream_aborted",
        "decode": "upstream_decode_error",
        "in_band": "upstream_in_band_error",
    }

    def __init__(self, message: str, *, kind: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.kind = kind
        self.type = self.KINDS[kind]
        self.code = fields.get("code") or self.type


class UpstreamTimeout(UpstreamFailed):
    """A deadline passed. `phase` is "connect", "first_byte", "idle" or "total"."""

    status = 504
    type = "timeout"
    code = "timeout"

    def __init__(self, message: str, *, phase: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.phase = phase


class UpstreamMisconfigured(UpstreamFailed):
    """The stored api_base, api_version or deployment name cannot be used."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_upstream_configuration"


class CredentialUnusable(UpstreamFailed):
    """The stored secret cannot be used (decisions §9)."""

    status = 401
    type = "authentication_error"
    code = "authentication_error"


class CredentialRefused(UpstreamFailed):
    """The token authority answered 4xx: the credential itself is wrong (decisions §9)."""

    status = 500
    type = "config_error"
    code = "config_error"


class CredentialUnavailable(UpstreamFailed):
    """The token authority cannot be reached or answers 5xx."""

    type = "transport_error"
    code = "transport_error"


class UpstreamRejected(GatewayError):
    """Azure answered with an error status. `upstream_status` is Azure's own, `status` what callers
    get.
    """

    status = 502
    type = "upstream_error"

    def __init__(self, message: str, *, status: int, upstream_status: int, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.status = status
        self.upstream_status = upstream_status


class Overloaded(GatewayError):
    """The gateway cannot take the request now."""

    status = 503
    type = "overloaded"
    code = "overloaded"


class InternalError(GatewayError):
    """Anything unforeseen. The text is fixed; the traceback is in the log under the request id."""

    code = "internal_error"


def envelope(error: GatewayError) -> dict[str, Any]:
    """The OpenAI error envelope. All four keys are present: SDKs read them (decisions §4)."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code if error.code is not None else error.type,
    }
    body.update(error.extra)
    return {"error": body}


def answer_headers(error: GatewayError) -> dict[str, str]:
    """Headers that belong to an error: retry hints in the forms SDKs read, and its own extras.

    An own limit tells the true Retry-After and forbids SDK retries above 60 s; an upstream's hint
    is clamped to 60 s instead (decisions §9). Seconds are rounded up so that a caller never comes
    early.
    """
    headers = dict(error.headers)
    wait = error.retry_after_s
    should_retry = error.should_retry
    if wait is not None:
        if not isinstance(error, LimitExceeded):
            wait = min(wait, MAX_RETRY_HINT_S)
        elif wait > MAX_RETRY_HINT_S and should_retry is None:
            should_retry = False
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait * 1000)))
    if should_retry is not None:
        headers["x-should-retry"] = "true" if should_retry else "false"
    return headers
