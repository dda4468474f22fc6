"""Reads the head of an answer from the header lines that libcurl hands over. Pure.

Interim answers (1xx) are skipped: each status line starts afresh, and only the blank line after a
final one completes the head. Names are lower-cased, repeated ones joined.
"""

from __future__ import annotations


class HeadReader:
    """Fed line by line until `complete`."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self._lines: list[bytes] = []

    def feed(self, line: bytes) -> bool:
        """Take one line with its ending; True when it completes the final head."""
        if line.startswith(b"HTTP/"):
            # "HTTP/2 200 " has no reason; libcurl has checked that the code is three digits
            self.status = int(line.split(None, 2)[1])
            self._lines.clear()
        elif line in {b"\r\n", b"\n"}:
            self.complete = self.status >= 200
        else:
            self._lines.append(line)
        return self.complete

    def headers(self) -> dict[str, str]:
        """The final head's fields; obsolete folded lines continue the value before them."""
        fields: dict[str, str] = {}
        name = ""
        for line in self._lines:
            text = line.decode("latin-1")
            if text[0] in " \t" and name:
                fields[name] = f"{fields[name]} {text.strip()}".strip()
                continue
            name, _, value = text.partition(":")
            name, value = name.strip().lower(), value.strip()
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        return fields
