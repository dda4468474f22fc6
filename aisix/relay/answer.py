"""Turns Azure's whole JSON answers into the form the caller expects. Pure.

The model's name becomes the one the caller asked for and Azure's extension fields go (unless kept).
An answer that needs no edit passes as the bytes that came, and of a large one that only needs the
name nothing else is written anew. Where extension fields go, rendering is faster than finding the
bytes of each, even in an answer of 100 KB: its time is spent on the text, at memory speed.
"""

from __future__ import annotations

from typing import Any

import ujson

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.document import (
    DETAIL_CHARS,
    Observe,
    in_band_error,
    rename,
    render,
    render_renamed,
    strip,
)


def rewrite_answer(
    body: bytes,
    spec: EndpointSpec,
    *,
    alias_name: str,
    keep_extensions: bool,
    observe: Observe,
) -> bytes:
    """A whole JSON answer as the caller gets it.

    Raises UpstreamBroken: decode when it is no JSON object though the endpoint answers with one,
    in_band when it is an error in the guise of a success.
    """
    try:
        document = ujson.loads(body)
    except ValueError as error:
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
    if spec.usage is not UsageForm.NONE and "choices" not in document and "data" not in document:
        failure = in_band_error(document, None)
        if failure is not None:
            raise failure
    observe(document)
    edited = not keep_extensions and _strip_all(document)
    renamed = rename(document, alias_name)
    if edited:
        return render(document, body)
    return render_renamed(document, body) if renamed else body


def _strip_all(document: dict[str, Any]) -> bool:
    """Take Azure's extension fields out of an answer and its items; whether it had any."""
    edited = strip(document)
    for name in ("choices", "data"):
        items = document.get(name)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict):
                edited |= strip(item)
    return edited
