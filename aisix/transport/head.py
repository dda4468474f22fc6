"""Reads the head of an answer from the header lines that libcurl hands over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_FOLDED = b" \t"
_SHORT_BYTES = 160


def status_of(line: bytes) -> int:
    """The code of a status line: "HTTP/2 200 " has no reason; libcurl has checked the digits."""
    return int(line.split(None, 2)[1])


def fields_of(lines: Sequence[bytes]) -> dict[str, str]:
    """Header fields from their lines, with line ends, the blank line among them or not.

    Names are lower-cased, repeated ones joined by ", "; an obsolete folded line continues the
    value before it.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[0] in _FOLDED:
            if name:
                fields[name] = f"{fields[name]} {line.decode('latin-1').strip()}".strip()
            continue
        known = _recurring(line) if len(line) <= _SHORT_BYTES else _field(line)
        if known is not None:
            name, value = known
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _field(line: bytes) -> tuple[str, str] | None:
    """Name and value of a line, None for one without a colon."""
    name, colon, value = line.decode("latin-1").partition(":")
    return (name.strip().lower(), value.strip()) if colon else None


_recurring = lru_cache(maxsize=2048)(_field)
"""The same for short lines: most of them are in every answer of an upstream."""
