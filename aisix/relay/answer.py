"""Turns Azure's whole JSON answers into the form the caller expects. Pure.

The model's name becomes the one the caller asked for and Azure's extension fields go (unless kept).
An answer that needs no edit passes as the bytes that came, and of a large one that only needs the
name nothing else is written anew. Where extension fields go, rendering is faster than finding the
bytes of each, even in an answer of 100 KB: its time is spent on the text, at memory speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ujson

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.document import (
    DETAIL_CHARS,
    Observe,
    in_band_error,
    is_rate_limit,
    rate_limited,
    rename,
    render,
    render_renamed,
    seal_ids,
    strip,
)


def rewrite_answer(
    body: bytes,
    spec: EndpointSpec,
    *,
    alias_name: str,
    keep_extensions: bool,
    observe: Observe,
    seal: Callable[[str], str] | None = None,
) -> bytes:
    """A whole JSON answer as the caller gets it; `seal` makes callers' ids of response ids.

    Raises UpstreamBroken: decode when it is no JSON object though the endpoint answers with one,
    in_band when it is an error in the guise of a success.
    """
    try:
        # a picture is a long text, and ujson spends four bytes on each character while it reads
        document = json.loads(body) if spec.usage is UsageForm.IMAGE else ujson.loads(body)
    except (ValueError, RecursionError) as error:
        raise UpstreamBroken(
            "upstream answer could not be decoded",
            kind="decode",
            detail=f"{len(body)} bytes, no JSON: {error}"[:DETAIL_CHARS],
        ) from error
    if not isinstance(document, dict):
        if spec.usage is UsageForm.NONE:
            return body
        raise UpstreamBroken(
            "upstream answer could not be decoded",
            kind="decode",
            detail=f"{len(body)} bytes, JSON but no object",
        )
    failure = _failure(document, spec)
    if failure is not None:
        raise failure
    observe(document)
    edited = not keep_extensions and _strip_all(document)
    if seal is not None:
        edited |= seal_ids(document, seal)
    renamed = rename(document, alias_name)
    if edited:
        return render(document, body)
    return render_renamed(document, body) if renamed else body


def _failure(document: dict[str, Any], spec: EndpointSpec) -> UpstreamBroken | None:
    """The error that a success is in truth. A failed response is none: its error is its content,
    but for a rate limit, which Azure reports so."""
    if spec.usage is UsageForm.RESPONSE and "status" in document:
        error = document.get("error")
        return rate_limited(error) if isinstance(error, dict) and is_rate_limit(error) else None
    if spec.usage is UsageForm.NONE or "choices" in document or "data" in document:
        return None
    return in_band_error(document, None)


def _strip_all(document: dict[str, Any]) -> bool:
    """Take Azure's extension fields out of an answer and its items; whether it had any."""
    edited = strip(document)
    for name in ("choices", "data"):
        items = document.get(name)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict):
                edited |= strip(item)
    return edited
