"""Whether a head says where its body ends, for the listeners that Tornado's own server runs. Pure.

Tornado refuses an unclear message itself, but only after the head has been handed to a handler;
an answer of ours beside Tornado's would be read as two.
"""

from __future__ import annotations

import re

from aisix.core.request import HeaderView

UNLIMITED_BYTES = 1 << 50
"""The limit that Tornado is given where ours is to refuse first."""

_LIST = re.compile(r",[ \t]*")
_MAX_DIGITS = 20


def is_framed(headers: HeaderView) -> bool:
    """Whether the head says clearly where the body ends."""
    coding = headers.get("Transfer-Encoding")
    length = headers.get("Content-Length")
    if coding is not None:
        return length is None and coding.lower() == "chunked"
    first, *repeats = _LIST.split(length if length is not None else "0")
    number = first.isascii() and first.isdecimal() and len(first) < _MAX_DIGITS
    return number and int(first) <= UNLIMITED_BYTES and all(again == first for again in repeats)
