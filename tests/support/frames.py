"""WebSocket frames (RFC 6455) for tests: written and read by code of their own. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Frame:
    """One frame; `mask` b"" is none."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    mask: bytes = b""
    reserved: int = 0

    def encode(self) -> bytes:
        """Its bytes."""
        flag, size = (0x80 if self.mask else 0), len(self.payload)
        first = (0x80 if self.final else 0) | self.reserved << 4 | self.opcode
        if size < 126:
            head = struct.pack("!BB", first, flag | size)
        elif size < 65536:
            head = struct.pack("!BBH", first, flag | 126, size)
        else:
            head = struct.pack("!BBQ", first, flag | 127, size)
        return head + self.mask + _xor(self.payload, self.mask)

    @property
    def code(self) -> int:
        """Of a Close frame."""
        assert self.opcode == CLOSE
        return int(struct.unpack("!H", self.payload[:2])[0]) if self.payload else 1005


def decode(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames of `data`, and what is left of it."""
    frames = []
    while (found := _first(data)) is not None:
        frame, size = found
        frames.append(frame)
        data = data[size:]
    return frames, data


def text(payload: bytes | str, *, masked: bool = False, final: bool = True) -> bytes:
    """A text frame."""
    raw = payload.encode() if isinstance(payload, str) else payload
    return Frame(TEXT, raw, final, MASK if masked else b"").encode()


def close(code: int, reason: str = "", *, masked: bool = False) -> bytes:
    """A Close frame."""
    payload = struct.pack("!H", code) + reason.encode()
    return Frame(CLOSE, payload, mask=MASK if masked else b"").encode()


def _first(data: bytes) -> tuple[Frame, int] | None:
    if len(data) < 2:
        return None
    size, at = data[1] & 0x7F, 2
    if size == 126:
        at, size = 4, int.from_bytes(data[2:4])
    elif size == 127:
        at, size = 10, int.from_bytes(data[2:10])
    mask = data[at : at + 4] if data[1] & 0x80 else b""
    at += len(mask)
    if len(data) < at + size or (data[1] & 0x80 and len(mask) < 4):
        return None
    payload = _xor(data[at : at + size], mask)
    frame = Frame(data[0] & 15, payload, bool(data[0] & 0x80), mask, data[0] >> 4 & 7)
    return frame, at + size


def _xor(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)) if mask else data
