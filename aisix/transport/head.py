"""Reads the head of an answer from the header lines that libcurl hands over. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FOLD = re.compile(r"\r?\n[ \t]+")


def status_of(line: bytes) -> int:
    """The code of a status line: "HTTP/2 200 " has no reason; libcurl has checked the digits."""
    return int(line.split(None, 2)[1])


def fields_of(lines: Sequence[bytes]) -> dict[str, str]:
    """Header fields from their lines, with line ends, the blank line among them or not.

    Names are lower-cased, repeated ones joined by ", "; an obsolete folded line continues the
    value before it.
    """
    text = b"".join(lines).decode("latin-1")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
