"""What whole answers and stream events have in common as JSON documents. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ujson

from aisix.errors import UpstreamBroken

EXTENSION_FIELDS = frozenset(
    {
        "prompt_filter_results",
        "prompt_annotations",
        "content_filter_results",
        "content_filter_result",
        "content_filter_offsets",
        "content_filter_raw",
        "content_filters",
    }
)
"""What Azure adds to OpenAI's answers, at the top and in the items of `choices` and `data`."""

DETAIL_CHARS = 500
"""How much of a foreign text goes into a log."""

Observe = Callable[[dict[str, Any]], None]
"""Called with every JSON document of an answer before it is edited."""

_SPLICE_BYTES = 1024
"""Smaller documents are rendered anew faster than their model's name is found."""

_MODEL = b'"model"'
_MODEL_VALUE = re.compile(rb'[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
_RATE_CODES = frozenset({"rate_limit_exceeded", "too_many_requests"})
_RESPONSE_IDS = ("id", "previous_response_id", "response_id")
_RESPONSE_PREFIX = "resp_"


def parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object that `data` is, None for anything else."""
    try:
        document = ujson.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def strip(holder: dict[str, Any]) -> bool:
    """Take Azure's extension fields out of `holder`; whether it had any."""
    if EXTENSION_FIELDS.isdisjoint(holder):
        return False
    for name in EXTENSION_FIELDS & holder.keys():
        del holder[name]
    return True


def rename(document: dict[str, Any], name: str) -> bool:
    """Write `name` over the model's name, if there is one; whether that changed anything."""
    if document.get("model", name) == name:
        return False
    document["model"] = name
    return True


def render(document: dict[str, Any], source: bytes) -> bytes:
    """`document` as bytes, non-ASCII spelt as in `source`, the bytes it was read from."""
    # Raw UTF-8 only for a source that escaped nothing: then no lone surrogate and no line
    # separator that the source had escaped (some SSE clients split at U+2028) comes out raw.
    ascii_only = source.isascii() or b"\\u" in source
    text = ujson.dumps(document, ensure_ascii=ascii_only, escape_forward_slashes=False)
    return text.encode("utf-8", "surrogatepass")


def render_renamed(document: dict[str, Any], source: bytes) -> bytes:
    """The same for a document that differs from its source in the model's name only.

    A large one is mostly numbers or text that need not be written anew.
    """
    if len(source) >= _SPLICE_BYTES:
        spliced = splice_model(source, document["model"])
        if spliced is not None:
            return spliced
    return render(document, source)


def splice_model(source: bytes, name: str) -> bytes | None:
    """`source` with another value of its top-level `model`; None when that is not certain.

    The document is known to have that member. When no ASCII letter of `source` is escaped, its key
    is spelt plainly; when the spelling occurs once, that one is it.
    """
    at = source.find(_MODEL)
    if at < 0 or source.find(_MODEL, at + 1) >= 0 or b"\\u006" in source:
        return None
    found = _MODEL_VALUE.match(source, at + len(_MODEL))
    if found is None:
        return None
    value = ujson.dumps(name, escape_forward_slashes=False).encode()
    return b"".join((source[: found.start(1)], value, source[found.end(1) :]))


def seal_ids(holder: dict[str, Any], seal: Callable[[str], str]) -> bool:
    """Write the callers' form of response ids over the upstream's; whether there were any."""
    edited = False
    for name in _RESPONSE_IDS:
        id = holder.get(name)
        if isinstance(id, str) and id.startswith(_RESPONSE_PREFIX):
            holder[name] = seal(id)
            edited = True
    return edited


def is_rate_limit(error: dict[str, Any]) -> bool:
    """Whether an error object inside a success reports a rate limit."""
    return error.get("code") in _RATE_CODES or error.get("type") in _RATE_CODES


def rate_limited(error: dict[str, Any]) -> UpstreamBroken:
    """The error for a rate limit that came inside a success."""
    failure = UpstreamBroken(
        "upstream rate limited",
        kind="in_band",
        code="rate_limit_exceeded",
        detail=f"rate limit inside a success: {error.get('message')!r}"[:DETAIL_CHARS],
    )
    failure.status = 429
    return failure


def in_band_error(document: dict[str, Any], event_name: str | None) -> UpstreamBroken | None:
    """The error that a document of a 200 answer reports, with our wording and its status."""
    error = document.get("error")
    if isinstance(error, str) and "choices" not in document:
        error = {"message": error}
    elif event_name == "error" and not isinstance(error, dict):
        error = document
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    detail = f"code {code!r}, type {error.get('type')!r}: {error.get('message')!r}"[:DETAIL_CHARS]
    if isinstance(code, str) and code in _FILTER_CODES:
        failure = UpstreamBroken(
            "upstream's content filter stopped the answer", kind="in_band", code=code, detail=detail
        )
        failure.status = 400
        return failure
    failure = UpstreamBroken(
        "upstream reported an error in the stream", kind="in_band", detail=detail
    )
    for hint in (code, error.get("status"), error.get("statusCode"), document.get("status")):
        if (status := _error_status(hint)) is not None:
            failure.status = status
            return failure
    return rate_limited(error) if is_rate_limit(error) else failure


def _error_status(hint: Any) -> int | None:
    """`hint` as an HTTP error status, when it is one."""
    if isinstance(hint, str) and hint.isdecimal() and len(hint) == 3:
        hint = int(hint)
    return hint if isinstance(hint, int) and 400 <= hint <= 599 else None
