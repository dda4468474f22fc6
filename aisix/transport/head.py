"""Reads the head of an answer from the header lines that libcurl hands over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_FOLDED = b" \t"


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
        raw, colon, rest = line.partition(b":")
        if colon:
            name, value = _name(raw), rest.decode("latin-1").strip()
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


@lru_cache(maxsize=1024)
def _name(raw: bytes) -> str:
    """A field's name in lower case; upstreams send the same few again and again."""
    return raw.decode("latin-1").strip().lower()
