"""Splits a byte stream into server-sent events, whatever pieces it arrives in. Pure (sans-I/O).

Invariants: joining the `raw` of all events gives back the bytes fed, less a byte order mark at the
start, so that an event nobody edits passes byte for byte; the events do not depend on where the
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


def _is_one_data_line(raw: bytes) -> bool:
    """The form nearly every event has: `data: …` and a blank line, ended by LF."""
    return raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw


def _parse(raw: bytes, *, complete: bool = True) -> Event:
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


class SseSplitter:
    """Feed bytes, take events; `finish` at the end of input."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._fresh = True
        self._seen_cr = False
        self._overflowed = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes.

        Raises UpstreamBroken (decode) for an event over the bound, after all events before it
        have been handed out.
        """
        if self._overflowed:
            raise self._overflow()
        if not self._seen_cr and b"\r" in data:
            self._seen_cr = True
        if self._is_one_event(data):
            return [_parse(data)]
        view: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            view = self._buffer
        start = self._skip_bom(view)
        events: list[Event] = []
        scan = max(start, self._scanned)
        while (end := self._find_end(view, start, scan)) > 0:
            if end - start > self._max_event_bytes:
                break
            events.append(_parse(bytes(view[start:end])))
            start = scan = end
        if not self._keep(view, start) and not events:
            raise self._overflow()
        return events

    def finish(self) -> list[Event]:
        """What was left unterminated at the end of input, if anything."""
        if self._overflowed:
            raise self._overflow()
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        if not rest or (self._fresh and _BOM.startswith(rest)):
            return []
        if rest == b"\r" or rest.endswith(b"\n\r"):
            return [_parse(rest)]  # the CR that waited for an LF was a line end by itself
        ending = b"\n" if rest.endswith(b"\n") else b"\n\n"
        return [_parse(rest + ending, complete=False)]

    def _is_one_event(self, data: bytes) -> bool:
        """The common case, worth knowing early: nothing is waiting and one event came whole."""
        if self._buffer or self._seen_cr or self._fresh:
            return False
        size = len(data)
        return (
            2 < size <= self._max_event_bytes and data.find(b"\n\n") == size - 2 and data[0] != _LF
        )

    def _skip_bom(self, view: bytes | bytearray) -> int:
        if not self._fresh:
            return 0
        if len(view) < len(_BOM) and _BOM.startswith(bytes(view)):
            return 0  # not yet known; no event can end in a part of the mark
        self._fresh = False
        return len(_BOM) if view.startswith(_BOM) else 0

    def _find_end(self, view: bytes | bytearray, start: int, scan: int) -> int:
        """Where the event that begins at `start` ends; -1 when that is not yet known."""
        if start >= len(view):
            return -1
        if not self._seen_cr:
            if view[start] == _LF:
                return start + 1
            at = view.find(b"\n\n", scan)
            return at + 2 if at >= 0 else -1
        if view[start] in _LINE_ENDS:
            found = _BLANK_LINE.match(view, start)
        else:
            found = _EVENT_END.search(view, scan)
        return found.end() if found else -1

    def _keep(self, view: bytes | bytearray, start: int) -> bool:
        """Hold what no event end was found for; False when that is too much."""
        if view is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += view[start:]
        self._scanned = max(0, len(self._buffer) - _LONGEST_OPEN_END)
        if len(self._buffer) <= self._max_event_bytes:
            return True
        self._overflowed = True
        self._buffer.clear()
        return False

    def _overflow(self) -> UpstreamBroken:
        return UpstreamBroken(
            "upstream sent a stream event that is too large",
            kind="decode",
            detail=f"event larger than {self._max_event_bytes} bytes",
        )
