"""Splits a byte stream into server-sent events, whatever pieces it arrives in. Pure (sans-I/O).

Invariants: joining the `raw` of all events gives back the bytes pushed, less a byte order mark at
the start, so that an event nobody edits passes byte for byte; the events do not depend on where the
input was cut; time is linear in the input, even byte by byte; no event is held beyond
`max_event_bytes`. Only bytes are compared, so a character cut in two is no special case.

Lines end in LF, CRLF or CR, also mixed. One reading is ours: in CR CR LF the event ends at the
second CR and the LF is a blank line of its own. It means the same to every parser and lets a
CR-only stream be split without waiting for a byte that may never come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aisix.errors import UpstreamBroken

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Largest event held; base64 images in chunks stay far below."""

_BOM = b"\xef\xbb\xbf"
_LF = 0x0A
_LINE_ENDS = (0x0A, 0x0D)
_LINE_END = re.compile(rb"\r\n|\n|\r")
# A CR at the very end may be half of a CRLF: both patterns want to see the byte behind it.
_BLANK_LINE = re.compile(rb"\r\n|\n|\r(?=[^\n])")
_EVENT_END = re.compile(rb"(?:\r\n|\n)(?:\r\n|\n|\r(?=[^\n]))|\r\r")
_LONGEST_OPEN_END = 3
"""An event end that is not yet certain is at most CR LF CR."""


@dataclass(slots=True)
class Event:
    """One event, or a stray blank line. `data` is None when it has no data line.

    `complete` is False for what was left at the end of input without its blank line; `raw` then
    has one added, so that whatever is written after it cannot run into it.
    """

    raw: bytes
    data: bytes | None = None
    name: str | None = None
    complete: bool = True

    @property
    def is_done(self) -> bool:
        """Whether this is OpenAI's end mark."""
        return self.data is not None and self.data.strip() == b"[DONE]"

    def with_data(self, data: bytes) -> bytes:
        """This event with other data; its further lines (event, id, retry, comments) stay."""
        if b"\n" in data:
            data = data.replace(b"\n", b"\ndata: ")
        fresh = b"data: " + data
        if _is_one_data_line(self.raw):
            return fresh + b"\n\n"
        lines: list[bytes] = []
        for line in _LINE_END.split(self.raw):
            if not line:
                continue
            if line.partition(b":")[0] != b"data":
                lines.append(line)
            elif fresh:
                lines.append(fresh)
                fresh = b""
        return b"\n".join(lines) + b"\n\n"


def parse_event(raw: bytes, *, complete: bool = True) -> Event:
    """Read the fields of one event."""
    if _is_one_data_line(raw):
        return Event(raw, raw[6:-2], None, complete)
    data: list[bytes] = []
    name: str | None = None
    for line in _LINE_END.split(raw):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return Event(raw, b"\n".join(data) if data else None, name, complete)


def _is_one_data_line(raw: bytes) -> bool:
    """The form nearly every event has: `data: …` and a blank line, ended by LF."""
    return raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw


class SseSplitter:
    """Push bytes, then take events until there is none; `finish` at the end of input.

    `data` from `at` on is what waits to be taken, and begins with an event: whoever knows that
    event by its bytes may move `at` behind it instead of taking it.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.data = b""
        self.at = 0
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()
        self._fresh = True
        self._seen_cr = False
        self._overflowed = False

    def push(self, piece: bytes) -> None:
        """Take in `piece`; nothing of what came before may wait to be taken.

        Raises UpstreamBroken (decode) for an event over the bound.
        """
        if self._overflowed:
            raise self._overflow()
        if not self._seen_cr and b"\r" in piece:
            self._seen_cr = True
        if self._held:
            if not self._ends_held(piece):
                self._hold(piece)
                return
            piece = b"".join((self._held, piece))
            self._held.clear()
        self.data = piece
        self.at = 0
        if self._fresh:
            self._skip_bom()

    def take(self) -> Event | None:
        """The next event; None when none is complete.

        Raises UpstreamBroken (decode) for an event over the bound.
        """
        data, start = self.data, self.at
        end = self._find_end(data, start) if start < len(data) else -1
        if end < 0:
            self.data, self.at = b"", 0
            if start < len(data):
                self._hold(data[start:])
            return None
        if end - start > self._max_event_bytes:
            raise self._overflow()
        self.at = end
        return parse_event(data[start:end])

    def finish(self) -> Event | None:
        """What was left unterminated at the end of input, if anything."""
        if self._overflowed:
            raise self._overflow()
        rest = bytes(self._held)
        self._held.clear()
        if not rest or (self._fresh and _BOM.startswith(rest)):
            return None
        if rest == b"\r" or rest.endswith(b"\n\r"):
            return parse_event(rest)  # the CR that waited for an LF was a line end by itself
        ending = b"\n" if rest.endswith(b"\n") else b"\n\n"
        return parse_event(rest + ending, complete=False)

    def _skip_bom(self) -> None:
        if len(self.data) < len(_BOM) and _BOM.startswith(self.data):
            return  # not yet known; no event can end in a part of the mark
        self._fresh = False
        if self.data.startswith(_BOM):
            self.at = len(_BOM)

    def _find_end(self, data: bytes, start: int) -> int:
        """Where the event that begins at `start` ends; -1 when that is not yet known."""
        if self._seen_cr:
            if data[start] in _LINE_ENDS:
                found = _BLANK_LINE.match(data, start)
            else:
                found = _EVENT_END.search(data, start)
            return found.end() if found else -1
        at = data.find(b"\n", start)  # one byte is found several times faster than two
        if at == start:
            return at + 1
        while at >= 0:
            if data.startswith(b"\n", at + 1):
                return at + 2
            at = data.find(b"\n", at + 1)
        return -1

    def _ends_held(self, piece: bytes) -> bool:
        """Whether the event that is held ends in `piece`: only then the two are joined."""
        if self._fresh:
            return True
        if self._seen_cr:
            tail = bytes(self._held[-_LONGEST_OPEN_END:]) + piece
            return _EVENT_END.search(tail) is not None or self._held == b"\r"
        return b"\n\n" in piece or (self._held[-1] == _LF and piece.startswith(b"\n"))

    def _hold(self, rest: bytes) -> None:
        """Keep what no event end was found for."""
        self._held += rest
        if len(self._held) > self._max_event_bytes:
            raise self._overflow()

    def _overflow(self) -> UpstreamBroken:
        self._overflowed = True
        self._held.clear()
        return UpstreamBroken(
            "upstream sent a stream event that is too large",
            kind="decode",
            detail=f"event larger than {self._max_event_bytes} bytes",
        )
