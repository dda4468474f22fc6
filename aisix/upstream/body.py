"""The body of a call to Azure: the caller's document with our changes, in its own order. Pure.

What an operator changes (`shaping`) comes first, then `model` and `stream_options`.

Two ways to the same document. A small one is rendered anew. A large one (pictures, long
conversations) is its caller's own bytes with the model's name exchanged and what is new put before
the last brace: it is not built a second time, and every number stays as it was spelt. Where the
bytes are not certain, or shaping changed the document, the large one is rendered too.
"""

from __future__ import annotations

import re
from typing import Any

import ujson

from aisix.core.exchange import Payload
from aisix.core.shaping import Shaping
from aisix.errors import BadRequest
from aisix.upstream.shaping import shape_document

SPLICE_BYTES = 4096
"""Smaller bodies are rendered anew faster than their model's name is found."""

# Possessive: a name can be as long as a body, and each way back costs 140 bytes.
_MODEL_MEMBER = re.compile(rb'("model"[ \t\r\n]*+:[ \t\r\n]*+)(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|null)')
_UNBROKEN_TEXTS = re.compile(rb'[^"]*+(?:"[^"\\\n\r\t]*+(?:\\[^\n\r\t][^"\\\n\r\t]*+)*+"[^"]*+)*+')
_USAGE_WISH = b'"stream_options":{"include_usage":true}'


def render_body(
    payload: Payload,
    deployment_name: str,
    *,
    streaming: bool,
    inject: bool,
    shaping: Shaping | None = None,
) -> bytes:
    """The bytes of `payload` for a deployment.

    The usage block of a stream is always asked for (`inject`): without it tokens would go
    uncounted, and a caller could choose that. Where the api-version does not know `stream_options`,
    the caller's own go too. Raises BadRequest when the document cannot be written as JSON.
    """
    document = payload.document
    if shaping is not None:
        document = shape_document(document, shaping)
    if len(payload.raw) >= SPLICE_BYTES and document is payload.document:
        spliced = _spliced(payload, deployment_name, streaming=streaming, inject=inject)
        if spliced is not None:
            return spliced
    return _render(_edited(document, deployment_name, streaming=streaming, inject=inject))


def _edited(
    original: dict[str, Any], deployment_name: str, *, streaming: bool, inject: bool
) -> dict[str, Any]:
    """The document, edited: a shallow copy, never the original."""
    document = dict(original)
    document["model"] = deployment_name
    if streaming and inject:
        options = document.get("stream_options") or {}
        document["stream_options"] = {**options, "include_usage": True}
    elif streaming:
        document.pop("stream_options", None)
    return document


def _spliced(
    payload: Payload, deployment_name: str, *, streaming: bool, inject: bool
) -> bytes | None:
    """The same by bytes; None when that is not certain, or not worth it."""
    raw, document = payload.raw, payload.document
    if not document or _has_broken_text(raw):
        return None
    if streaming and "stream_options" in document and not (inject and payload.include_usage):
        return None
    name = ujson.dumps(deployment_name, escape_forward_slashes=False).encode()
    added = []
    start = end = 0
    if "model" not in document:
        added.append(b'"model":' + name)
    else:
        # the document has the member, and nothing in it can be spelt in another way: when the
        # plain spelling occurs once, that is the one
        if raw.count(b'"model"') != 1 or b"\\u006" in raw:
            return None
        found = _MODEL_MEMBER.search(raw)
        if found is None:
            return None
        start, end = found.end(1), found.end()
    if streaming and inject and "stream_options" not in document:
        added.append(_USAGE_WISH)
    last = raw.rfind(b"}")
    view = memoryview(raw)
    pieces: list[bytes | memoryview] = (
        [view[:start], name, view[end:last]] if end else [view[:last]]
    )
    for member in added:
        pieces += (b",", member)
    pieces.append(b"}")
    return b"".join(pieces)


def _has_broken_text(raw: bytes) -> bool:
    """Whether a text holds a line break or a tab as it is: we read that, but it is no JSON."""
    if b"\n" in raw or b"\r" in raw or b"\t" in raw:
        return _UNBROKEN_TEXTS.fullmatch(raw) is None
    return False


def _render(document: dict[str, Any]) -> bytes:
    try:
        try:
            return _dumps(document, ascii_only=False)
        except UnicodeEncodeError:
            # a lone surrogate is legal in JSON text but not in UTF-8: only its escape can carry it
            return _dumps(document, ascii_only=True)
    except (OverflowError, RecursionError, ValueError) as error:
        raise BadRequest(
            "request payload is invalid: a number is out of range or the nesting is too deep"
        ) from error


def _dumps(document: dict[str, Any], *, ascii_only: bool) -> bytes:
    text = ujson.dumps(
        document, ensure_ascii=ascii_only, escape_forward_slashes=False, allow_nan=False
    )
    return text.encode()
