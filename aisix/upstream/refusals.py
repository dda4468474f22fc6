"""Upstreams' error answers: what they mean, and what a caller may be told of them. Pure.

Azure has no single error form: codes are strings, numbers or missing, the `error` wrapper may be
absent, the inner error has two spellings, and a front door may answer in HTML; servers compatible
with OpenAI add lists of what is wrong with each field. `read_refusal` accepts all of it and never
raises. Of an upstream's text only that of 400, 413 and 422 reaches callers, because it is about
their own request, and only after `aisix.upstream.scrub` has taken out what is about ours; for every
other status the wording is fixed and the upstream's goes to the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ujson

from aisix.core.resources import Deployment
from aisix.core.retry_hint import retry_hint_s
from aisix.errors import MAX_RETRY_HINT_S, UpstreamRejected
from aisix.upstream.scrub import Scrubber, one_line

MAX_BODY_BYTES = 64 * 1024
"""More than this of an error body is not looked at."""

_MAX_DETAIL_CHARS = 2048
_MAX_MESSAGE_CHARS = 4096
_MAX_NAME_CHARS = 128

_PASSED_HEADERS = ("apim-request-id", "x-ms-region")
_QUOTED = frozenset({400, 413, 422})
_QUOTED_OF_OBJECTS = _QUOTED | {404, 409}
"""Where a request names an object of its caller's (a file, a response), these are about that."""
_WORDING = {
    401: "upstream authentication failed",
    403: "upstream authentication failed",
    404: "upstream deployment or model not found",
    408: "upstream request timeout",
    409: "upstream conflict",
    413: "upstream request entity too large",
    429: "upstream rate limited",
}
_WORTH_RETRYING = frozenset({408, 429})
_EXHAUSTED = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a 429 that waiting does not mend: somebody has to pay first."""
_ABOUT_OUR_KEY = frozenset({"invalid_api_key"})
"""Codes that a caller would take to be about its own key."""
_POLICY_CODES = frozenset({"content_filter", "content_policy_violation"})
_INNER = ("innererror", "inner_error")
"""Chat spells it the one way, images the other; callers get it as it came."""
_POLICY_VIOLATION = "ResponsibleAIPolicyViolation"
_STALE_TOKEN_CODES = frozenset(
    {
        "401",
        "unauthorized",
        "invalid_token",
        "token_expired",
        "invalidauthenticationtoken",
        "expiredauthenticationtoken",
    }
)
_UNKNOWN_FIELD = re.compile(
    r"unrecogni[sz]ed|unsupported|not supported|unknown|unexpected|not permitted|not allowed|"
    r"additional propert",
    re.IGNORECASE,
)
# another option inside stream_options is the caller's own mistake, not the upstream's age; pydantic
# prints the path of a field as a tuple
_STREAM_OPTIONS = re.compile(r"\bstream_options\b(?!(?:\.|', ')(?!include_usage\b))")
_MISSING_MODEL = re.compile(r"\bmodel\b.{0,300}?(?:does not exist|not found)", re.I | re.DOTALL)
_WHEN_STREAMING = re.compile(r"only (?:allowed|valid|supported|permitted)|when stream", re.I)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error body says. `wrapped` tells whether it had the usual `error` object."""

    code: str | None = None
    message: str = ""
    param: str | None = None
    inner: Mapping[str, Any] | None = None
    inner_name: str = "innererror"
    wrapped: bool = False
    readable: bool = False

    @property
    def about_content(self) -> bool:
        """Whether Azure's content policy refused the request."""
        inner_code = self.inner.get("code") if self.inner else None
        return self.code in _POLICY_CODES or _POLICY_VIOLATION in (self.code, inner_code)


def read_refusal(body: bytes, content_type: str | None = None) -> Refusal:
    """The structure in an error body; an empty Refusal when there is none."""
    document = _document(body, content_type)
    if document is None:
        return Refusal()
    error = document.get("error")
    if isinstance(error, str):
        return Refusal(message=error, code=_name(document.get("code")), readable=True)
    wrapped = isinstance(error, dict)
    fields = error if isinstance(error, dict) else document
    spelt = [name for name in _INNER if isinstance(fields.get(name), dict)]
    message, param = _words(fields.get("message") or fields.get("detail"))
    return Refusal(
        code=_name(fields.get("code")),
        message=message,
        param=_name(fields.get("param")) or param,
        inner=fields[spelt[0]] if spelt else None,
        inner_name=spelt[0] if spelt else _INNER[0],
        wrapped=wrapped,
        readable=True,
    )


def _words(said: Any) -> tuple[str, str | None]:
    """A message and the field that it is about, if that is told apart.

    FastAPI gives a list of faults, each with the path of its field; some servers put that list into
    an object of its own.
    """
    if isinstance(said, dict):
        said = said.get("detail")
    if isinstance(said, str):
        return said, None
    if not isinstance(said, list):
        return "", None
    faults = [(_path(fault.get("loc")), fault.get("msg")) for fault in said if _is_fault(fault)]
    text = "; ".join(f"{path}: {reason}" if path else str(reason) for path, reason in faults)
    return text, next((path for path, _ in faults if path), None)


def _is_fault(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("msg"), str)


def _path(place: Any) -> str:
    """`["body", "stream_options"]` as `stream_options`."""
    parts = [str(part) for part in place] if isinstance(place, list) else []
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)


def _document(body: bytes, content_type: str | None) -> dict[str, Any] | None:
    start = body[:MAX_BODY_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"{") or (content_type and "json" not in content_type.lower()):
        return None
    try:
        document = ujson.loads(start)
    except (ValueError, RecursionError, OverflowError):
        return None
    return document if isinstance(document, dict) else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def refused_stream_options(status: int, body: bytes) -> bool:
    """Whether the upstream does not know `stream_options` at all."""
    if status not in {400, 422}:
        return False
    refusal = read_refusal(body)
    if refusal.param is not None and not _STREAM_OPTIONS.fullmatch(
        refusal.param.removesuffix(".include_usage")
    ):
        return False
    named = refusal.param is not None or _STREAM_OPTIONS.search(refusal.message) is not None
    reason = f"{refusal.code or ''} {refusal.message}".replace("_", " ")
    return (
        named
        and _UNKNOWN_FIELD.search(reason) is not None
        and _WHEN_STREAMING.search(refusal.message) is None
    )


def refused_token(status: int, body: bytes) -> bool:
    """Whether a token itself was refused. One body stands for missing, expired, invalid and
    wrong audience; a missing role is another one, and a new token does not mend it.
    """
    if status != 401:
        return False
    refusal = read_refusal(body)
    if not refusal.readable:
        return False
    if not refusal.wrapped:
        return bool(refusal.message)
    return refusal.code is None or refusal.code.lower() in _STALE_TOKEN_CODES


def explain(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    deployment: Deployment | None = None,
    of_object: bool = False,
) -> UpstreamRejected:
    """The error a caller gets. `now` is UTC epoch seconds, for retry hints given as a date;
    `of_object` says that the request was about an object of the caller's."""
    refusal = read_refusal(body, headers.get("content-type"))
    scrubber = Scrubber(deployment)
    quoted = status in (_QUOTED_OF_OBJECTS if of_object else _QUOTED)
    shown = status if 400 <= status < 500 else 502
    may_retry = _may_retry(status, refusal)
    wait = retry_hint_s(headers, refusal.message, now) if may_retry else None
    rejected = UpstreamRejected(
        _message(status, refusal, scrubber, quoted=quoted),
        status=shown,
        upstream_status=status,
        code=_code(status, refusal, scrubber),
        param=_clip(scrubber.text(refusal.param or "")) if quoted else None,
        detail=_detail(status, headers, refusal, body=body, quoted=quoted),
        retry_after_s=wait,
        should_retry=None if may_retry and (wait or 0.0) <= MAX_RETRY_HINT_S else False,
        headers=_passed_headers(headers),
    )
    if quoted and refusal.about_content and refusal.inner is not None:
        rejected.extra[refusal.inner_name] = scrubber.value(refusal.inner)
    return rejected


def _message(status: int, refusal: Refusal, scrubber: Scrubber, *, quoted: bool) -> str:
    if quoted:
        said = scrubber.text(refusal.message[:_MAX_MESSAGE_CHARS]).strip()
        if said:
            return said
    return _WORDING.get(status, f"upstream returned {status}")


def _code(status: int, refusal: Refusal, scrubber: Scrubber) -> str | None:
    if not 400 <= status < 500:
        return None
    if refusal.about_content:
        return refusal.code if refusal.code in _POLICY_CODES else "content_filter"
    if status == 401 and refusal.code in _ABOUT_OUR_KEY:
        return None
    if refusal.code == "DeploymentNotFound" or (
        status == 404 and _MISSING_MODEL.search(refusal.message)
    ):
        return "model_not_found"
    return _clip(scrubber.text(refusal.code or ""))


def _clip(text: str) -> str | None:
    return one_line(text, _MAX_NAME_CHARS) or None


def _may_retry(status: int, refusal: Refusal) -> bool:
    if status == 429 and refusal.code in _EXHAUSTED:
        return False
    return status in _WORTH_RETRYING or status >= 500


def _passed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    values = ((name, one_line(headers.get(name, ""), _MAX_NAME_CHARS)) for name in _PASSED_HEADERS)
    return {name: value for name, value in values if value and value.isascii()}


def _detail(
    status: int, headers: Mapping[str, str], refusal: Refusal, *, body: bytes, quoted: bool
) -> str:
    """For the log: the upstream's own words, on one line; not where they may quote the request,
    which the caller gets to see and no log may hold.
    """
    said = refusal.message
    if quoted:
        said = "its text went to the caller only: it may quote the request"
    elif not refusal.readable:
        said = body[:512].decode("utf-8", "replace")
    parts = [f"upstream status {status}"]
    if refusal.code:
        parts.append(f"code {refusal.code[:_MAX_NAME_CHARS]}")
    for name in ("apim-request-id", "policy-id"):
        if headers.get(name):
            parts.append(f"{name} {headers[name][:_MAX_NAME_CHARS]}")
    parts.append(said or "no message")
    return Scrubber.for_log(one_line(": ".join(parts), _MAX_DETAIL_CHARS))
