"""A request body becomes a checked JSON document. Pure.

We check only what we need ourselves (decisions §9): a JSON object, `model`, `stream`,
`stream_options` and the one list an endpoint cannot do without. Everything else is Azure's to
judge and passes untouched. ujson is lenient where JSON is strict: it accepts NaN and Infinity, so
a body that may hold them as values is parsed a second time, strictly. The letters alone are no
reason to: a picture of some megabytes has them by chance.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import ujson

from aisix.core.endpoints import EndpointSpec
from aisix.core.exchange import Payload
from aisix.core.request import HeaderView
from aisix.errors import BadRequest, UnsupportedEncoding

_PREFIX = "request payload is invalid: "
_JSON = "application/json"
_CONSTANTS = (b"NaN", b"Infinity")
MAX_VALUES = 1_000_000
"""Objects and arrays of a body: each costs many times its own two bytes."""

_LARGE_BYTES = 256 * 1024
_BEFORE_VALUE = b"[:,- \t\r\n"


def check_encoding(headers: HeaderView) -> None:
    """Refuse a compressed body. Raises UnsupportedEncoding."""
    encoding: str | None = headers.get("content-encoding")
    if encoding and encoding.strip().lower() != "identity":
        raise UnsupportedEncoding(
            "Content-Encoding is not supported: send the request body uncompressed"
        )


def check_headers(headers: HeaderView) -> None:
    """Refuse what cannot be JSON before reading it. Raises BadRequest, UnsupportedEncoding."""
    check_encoding(headers)
    content_type: str | None = headers.get("content-type")
    if content_type is None or content_type == _JSON:
        return
    media = content_type.split(";", 1)[0].strip().lower()
    if media != _JSON and not (media.startswith("application/") and media.endswith("+json")):
        raise BadRequest(f"{_PREFIX}send it with Content-Type: application/json")


def parse_payload(raw: bytes, spec: EndpointSpec, path_name: str | None) -> Payload:
    """The checked body of a request to `spec`. The alias in the path wins over body `model`.

    Raises BadRequest naming the field.
    """
    document = _parse_object(raw)
    requested = _requested_name(document, path_name)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream", "must be true or false")
    options = document.get("stream_options")
    if options is not None and not isinstance(options, dict):
        _refuse("stream_options", "must be an object")
    if spec.required_list is not None:
        _check_list(document, spec.required_list)
    return Payload(
        document=document,
        requested=requested,
        stream=bool(stream) and spec.may_stream,
        include_usage=bool(options and options.get("include_usage") is True),
        raw=raw,
    )


def _parse_object(raw: bytes) -> dict[str, Any]:
    if not raw or raw.isspace():
        raise BadRequest(f"{_PREFIX}the body is empty, a JSON object is needed")
    try:
        if len(raw) > _LARGE_BYTES:
            if raw.count(b"{") + raw.count(b"[") > MAX_VALUES:
                raise _NotJson(f"the body holds more than {MAX_VALUES} objects and arrays")
            # ujson spends four bytes on each character of a text while it reads it
            document = _strict(raw)
        else:
            document = ujson.loads(raw)
            if _may_hold_constants(raw):
                _strict(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{_PREFIX}{_json_reason(error)}") from error
    if not isinstance(document, dict):
        raise BadRequest(f"{_PREFIX}the body must be a JSON object")
    return document


def _strict(raw: bytes) -> Any:
    """Python's own parser: no constants, and a large text costs its size. Line breaks inside texts
    are let through, as ujson does."""
    return json.loads(raw.decode(), parse_constant=_refuse_constant, strict=False)


def _may_hold_constants(raw: bytes) -> bool:
    """Whether NaN or Infinity stands where a value may. Words in a text can look like that."""
    for constant in _CONSTANTS:
        # one byte is found ten times faster than several, and often there is none
        at = raw.find(constant) if constant[0] in raw else -1
        while at >= 0:
            if at == 0 or raw[at - 1] in _BEFORE_VALUE:
                return True
            at = raw.find(constant, at + len(constant))
    return False


def _json_reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, _NotJson):
        return text
    if isinstance(error, RecursionError) or "depth" in text:
        return "the JSON is nested too deeply"
    return "the body is not valid JSON"


class _NotJson(ValueError):
    """A constant that JavaScript knows and JSON does not, or more than we build. Says so."""


def _refuse_constant(constant: str) -> NoReturn:
    raise _NotJson(f"{constant} is not a JSON value")


def _requested_name(document: dict[str, Any], path_name: str | None) -> str:
    name = document.get("model")
    if path_name is not None:
        return path_name
    if name is None:
        _refuse("model", "is required: the name of a model this gateway serves")
    if not isinstance(name, str):
        _refuse("model", "must be a string")
    if not name:
        _refuse("model", "must not be empty")
    return name


def _check_list(document: dict[str, Any], field: str) -> None:
    if field not in document:
        _refuse(field, "is required")
    value = document[field]
    if not isinstance(value, list):
        _refuse(field, "must be an array")
    if not value:
        _refuse(field, "must not be empty")


def _refuse(field: str, reason: str) -> NoReturn:
    raise BadRequest(f"{_PREFIX}{field} {reason}", param=field)
