"""What operators change about the requests of a provider key or model, and what they may not. Pure.

`Shaping` is the compiled value; `aisix.upstream.shaping` applies it. The checks here are made when
a resource is written. What makes a call ours can be changed by nobody: authentication, framing,
host, and the fields that say what is asked of which deployment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aisix.core.patterns import matches
from aisix.errors import FieldError

MAX_CUSTOM_HEADERS = 8
"""Headers of a call that are neither ours nor HTTP's: Azure answers 431 to more than ten."""

MAX_DEFAULT_HEADERS = MAX_CUSTOM_HEADERS - 1
"""The request id is always among them."""

DEFAULT_STRIP_HEADERS = ("authorization", "cookie", "set-cookie", "x-api-key")

FIXED_FIELDS: Mapping[str, str] = {
    "model": "it names the deployment",
    "stream": "the gateway answers in the form that the caller asked for",
    "stream_options": "the gateway sets it to count tokens",
    "messages": "it is what the caller asks",
    "input": "it is what the caller asks",
    "prompt": "it is what the caller asks",
}
"""Body fields that are neither renamed nor defaulted, and why."""

OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "ocp-apim-subscription-key",
        "proxy-authorization",
        "sec-websocket-extensions",
        "sec-websocket-version",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-api-key",
    }
)
"""Never taken from a caller, whatever an operator allows: ours, or the connection's."""

_CREDENTIALS = frozenset(
    {
        "cookie2",
        "proxy-authenticate",
        "set-cookie",
        "www-authenticate",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token",
        "x-goog-api-key",
    }
)
_CONNECTION = frozenset(
    {"http2-settings", "proxy-connection", "traceparent", "tracestate", "trailers"}
)
_NEVER = OWN_HEADERS | _CREDENTIALS | _CONNECTION
_NEVER_BEGINNINGS = ("accept-", "content-", "proxy-", "x-aisix-", "x-stainless-")
_DEFAULTABLE = frozenset({"ocp-apim-subscription-key"})
"""A caller's is never passed on, but a front door may want the operator's."""

_SECRET_WORDS = re.compile(
    "apikey|api-key|auth|cookie|credential|jwt|password|secret|session|subscription-key|token"
)
"""Parts of names that tell of a credential; such a header passes only where it is named in full."""

_MAX_NAME_CHARS = 128
_NAME = re.compile(rf"[A-Za-z0-9!#$%&'*+.^_`|~-]{{1,{_MAX_NAME_CHARS}}}")
_GLOB = re.compile(r"[a-z0-9!#$%&'+.^_`|~-]*\*?[a-z0-9!#$%&'+.^_`|~-]*")


@dataclass(frozen=True, slots=True)
class Shaping:
    """Changes to the requests for one deployment.

    To the body, in this order: `renames` (from, to), the temperature's bounds, `default_fields`
    for what is absent. To the headers: `default_headers` are sent with every call;
    `forward_headers` are patterns of callers' headers to pass on, `strip_headers` names of those
    that are not. All header names are lower-case.
    """

    renames: tuple[tuple[str, str], ...] = ()
    temperature_min: float | None = None
    temperature_max: float | None = None
    default_fields: tuple[tuple[str, Any], ...] = ()
    default_headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    forward_headers: tuple[str, ...] = ()
    strip_headers: tuple[str, ...] = ()


def may_forward(name: str) -> bool:
    """Whether a caller's header of this lower-case name may go upstream at all."""
    return name not in _NEVER and not name.startswith(_NEVER_BEGINNINGS)


def passes(pattern: str, name: str) -> bool:
    """Whether `pattern` lets a caller's header of this lower-case name go upstream."""
    if len(name) > _MAX_NAME_CHARS or not may_forward(name) or not matches(pattern, name):
        return False
    return "*" not in pattern or _SECRET_WORDS.search(name) is None


def check_renames(renames: Mapping[str, str]) -> None:
    """Raises FieldError."""
    for source, target in renames.items():
        for name in (source, target):
            if name in FIXED_FIELDS:
                raise FieldError(f'"{name}" cannot be renamed or replaced: {FIXED_FIELDS[name]}')
        if not source or not target:
            raise FieldError("a field's name must not be empty")
    if len(set(renames.values())) < len(renames):
        raise FieldError("two fields have the same new name; rename at most one to each")


def check_default_fields(names: Iterable[str]) -> None:
    """Raises FieldError."""
    for name in names:
        if name in FIXED_FIELDS:
            raise FieldError(f'"{name}" cannot have a default: {FIXED_FIELDS[name]}')


def check_default_headers(headers: Mapping[str, str]) -> None:
    """Raises FieldError, which names the header and never its value."""
    if len({name.lower() for name in headers}) < len(headers):
        raise FieldError("a header is given twice: upper and lower case make no difference")
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise FieldError("a header's name may hold only letters, digits and -_.!#$%&'*+^`|~")
        lower = name.lower()
        if not may_forward(lower) and lower not in _DEFAULTABLE:
            raise FieldError(
                f'"{lower}" cannot be set: it belongs to the gateway, to authentication or to '
                "the connection"
            )
        if not (value.isascii() and value.isprintable()):
            raise FieldError(f'the value of "{lower}" must be printable ASCII without line breaks')


def parse_forward_headers(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns in normal form: trimmed, lower-case, each once. Raises FieldError."""
    parsed = normal_names(patterns)
    for pattern in parsed:
        if not _GLOB.fullmatch(pattern):
            raise FieldError('must be names of headers, each with at most one "*"')
        if "*" not in pattern and not may_forward(pattern):
            raise FieldError(
                f'"{pattern}" is never passed on: it belongs to the gateway, to authentication or '
                "to the connection"
            )
    return parsed


def normal_names(names: Iterable[str]) -> tuple[str, ...]:
    """Trimmed, lower-case, each once, in order; empty ones are dropped."""
    return tuple(dict.fromkeys(text for name in names if (text := name.strip().lower())))
