"""Follows the frames of a WebSocket (RFC 6455) in one direction, as their bytes pass. Pure.

The bytes are the peers' own and go on as they came: nothing is unpacked, joined or answered here.
Two things are read on the way. Of each text message the beginning is shown to a judge, who may want
to see all of it, or to replace it; and the code of the Close frame is noted, behind which nothing
follows.

Invariants: the bytes that come out do not depend on how those that go in are cut. What is held back
is at most the beginning of a frame, or one that is to be replaced (`MAX_MESSAGE_BYTES`); a message
that is larger, comes in fragments or is compressed is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

MAX_MESSAGE_BYTES = 1024 * 1024
"""Messages larger than this are not read."""

BEGINNING_BYTES = 256
"""So much of a text message is shown to the judge, less when there is no more of it."""

MAX_REASON_BYTES = 123
"""Of a Close frame: what is left of the 125 bytes of a control frame behind the code."""

NO_STATUS = 1005
"""What stands for the code of a Close frame without one; it is never sent."""

_TEXT, _CLOSE, _CONTROL = 0x1, 0x8, 0x8
_FIN, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED, _LENGTH = 0x80, 0x7F
_MAX_CONTROL_BYTES = 125


class Interest(Enum):
    """What a judge wants of a text message."""

    __hash__ = object.__hash__

    NONE = "none"
    READ = "read"
    REPLACE = "replace"


Judge = Callable[[bytes], Interest]
"""Told the beginning of a text message."""

Reader = Callable[[bytes], bytes | None]
"""Told a text message in full; what it gives replaces the message where that is possible."""


class FrameFollower:
    """One direction. `closed` once its Close frame has passed, whose code is `close_code`."""

    __slots__ = (
        "_held",
        "_judge",
        "_left",
        "_mask",
        "_message",
        "_of_message",
        "_offset",
        "_opening",
        "_read",
        "_whole",
        "close_code",
        "closed",
    )

    def __init__(self, judge: Judge, read: Reader) -> None:
        self._judge = judge
        self._read = read
        self._opening = bytearray()  # a head and the beginning of its payload, not passed yet
        self._left = 0  # bytes of the frame behind that
        self._mask = b""
        self._offset = 0  # of those bytes, in the mask
        self._of_message = False  # whether the frame is part of a message, and not a control frame
        self._whole = True  # whether it is the last part
        self._message: bytearray | None = None  # what somebody wants to read
        self._held: bytearray | None = None  # a frame that may be replaced
        self.closed = False
        self.close_code: int | None = None

    @property
    def between_frames(self) -> bool:
        """Whether what has passed ends with a frame: another one may follow it."""
        return not self._left or self._held is not None

    def feed(self, data: bytes) -> bytes:
        """Take in what has come; what may go on. Behind a Close frame nothing does."""
        if self._left >= len(data) and self._message is None:
            self._left -= len(data)  # nobody reads this frame
            return data
        out: list[bytes | memoryview | bytearray] = []
        view = memoryview(data)
        while view and not self.closed:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._pass(piece, out)
            else:
                missing = self._missing()
                self._opening += view[:missing]
                view = view[missing:]
            if not self._left and self._opening and not self._missing():
                self._begin(out)
        return b"".join(out)

    # ── the beginning of a frame ──

    def _missing(self) -> int:
        """How many bytes are needed before it can be said what to do with the frame."""
        opening = self._opening
        if len(opening) < 2:
            return 2 - len(opening)
        head = _head_bytes(opening[1])
        if len(opening) < head:
            return head - len(opening)
        opcode, length = opening[0] & _OPCODE, _payload_bytes(opening)
        if opcode == _TEXT:
            wanted = min(length, BEGINNING_BYTES)
        elif opcode == _CLOSE:
            wanted = min(length, _MAX_CONTROL_BYTES)
        else:
            wanted = 0
        return head + wanted - len(opening)

    def _begin(self, out: list[bytes | memoryview | bytearray]) -> None:
        opening, self._opening = self._opening, bytearray()
        first, length, head = opening[0], _payload_bytes(opening), _head_bytes(opening[1])
        opcode = first & _OPCODE
        self._mask = bytes(opening[head - 4 : head]) if opening[1] & _MASKED else b""
        self._offset = len(opening) - head
        self._left = length - self._offset
        self._of_message = opcode < _CONTROL  # a control frame may stand between two parts
        payload = unmasked(opening[head:], self._mask)
        if opcode == _CLOSE:
            self._note_close(payload)
        elif self._of_message:
            self._whole = bool(first & _FIN)
            if opcode == _TEXT:
                self._begin_message(opening, payload, readable=not first & _RESERVED)
            elif opcode:
                self._message = None  # binary: nobody reads it
        if self._held is None:
            out.append(opening)
        if not self._left:
            self._end(out)

    def _begin_message(self, opening: bytearray, payload: bytes, *, readable: bool) -> None:
        self._message = self._held = None
        interest = self._judge(payload) if readable else Interest.NONE
        size = len(payload) + self._left
        if interest is Interest.NONE or size > MAX_MESSAGE_BYTES:
            return
        self._message = bytearray(payload)
        if interest is Interest.REPLACE and self._whole:
            self._held = opening

    def _note_close(self, payload: bytes) -> None:
        self.closed = True
        self.close_code = int.from_bytes(payload[:2]) if len(payload) >= 2 else NO_STATUS
        self._message = None
        self._left = 0  # a longer one breaks the protocol; what is left of it does not matter

    # ── the rest of it ──

    def _pass(self, piece: memoryview, out: list[bytes | memoryview | bytearray]) -> None:
        self._left -= len(piece)
        if self._of_message and self._message is not None:
            self._message += unmasked(piece, self._mask, self._offset)
            self._offset += len(piece)
            if len(self._message) > MAX_MESSAGE_BYTES:  # of many fragments
                self._message = None
        if self._held is not None:
            self._held += piece
        else:
            out.append(piece)
        if not self._left:
            self._end(out)

    def _end(self, out: list[bytes | memoryview | bytearray]) -> None:
        """The frame is complete, and its message too when it was the last."""
        if not (self._of_message and self._whole) or self._message is None:
            return
        message, held = bytes(self._message), self._held
        self._message = self._held = None
        replacement = self._read(message)
        if held is None:
            return
        out.append(held if replacement is None else text_frame(replacement, self._mask))


def unmasked(data: bytes | bytearray | memoryview, mask: bytes, offset: int = 0) -> bytes:
    """`data`, which begins at `offset` of its frame's payload, without (or with) its mask."""
    size = len(data)
    if not mask or not size:
        return bytes(data)
    turn = offset % 4
    key = (mask[turn:] + mask[:turn]) * (size // 4 + 1)
    number = int.from_bytes(data) ^ int.from_bytes(key[:size])
    return number.to_bytes(size)


def text_frame(text: bytes, mask: bytes = b"") -> bytes:
    """A whole text message as one frame."""
    return _frame(_FIN | _TEXT, text, mask)


def close_frame(code: int, reason: str = "", mask: bytes = b"") -> bytes:
    """A Close frame; NO_STATUS is one without a code."""
    if code == NO_STATUS:
        return _frame(_FIN | _CLOSE, b"", mask)
    text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return _frame(_FIN | _CLOSE, code.to_bytes(2) + text, mask)


def _frame(first: int, payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    flag = _MASKED if mask else 0
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 1 << 16:
        head = bytes((first, flag | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, flag | 127)) + size.to_bytes(8)
    return head + mask + unmasked(payload, mask)


def _head_bytes(second: int) -> int:
    """The size of a head, by its second byte."""
    length = second & _LENGTH
    extended = 2 if length == 126 else 8 if length == 127 else 0
    return 2 + extended + (4 if second & _MASKED else 0)


def _payload_bytes(head: bytearray) -> int:
    """The size of the payload, by a head."""
    length = head[1] & _LENGTH
    if length == 126:
        return int.from_bytes(head[2:4])
    if length == 127:
        return int.from_bytes(head[2:10])
    return length
