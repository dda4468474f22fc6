"""Following a WebSocket's frames: what is read, what is replaced, and what only passes."""

from __future__ import annotations

import pytest

from aisix.relay.frames import (
    BEGINNING_BYTES,
    MAX_MESSAGE_BYTES,
    NO_STATUS,
    FrameFollower,
    Interest,
    close_frame,
    text_frame,
    unmasked,
)
from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MASK,
    PING,
    PONG,
    TEXT,
    Frame,
    close,
    decode,
    text,
)

masks = pytest.mark.parametrize("mask", [b"", MASK], ids=["unmasked", "masked"])


class Reading:
    """A follower; what begins with R is read, with X replaced by `by`."""

    def __init__(self, by: bytes | None = b"replaced") -> None:
        self.beginnings: list[bytes] = []
        self.messages: list[bytes] = []
        self._by = by
        self.follower = FrameFollower(self._judge, self._read)

    def feed(self, *pieces: bytes) -> bytes:
        return b"".join(self.follower.feed(piece) for piece in pieces)

    def _judge(self, beginning: bytes) -> Interest:
        self.beginnings.append(beginning)
        wishes = {b"R": Interest.READ, b"X": Interest.REPLACE}
        return wishes.get(beginning[:1], Interest.NONE)

    def _read(self, message: bytes) -> bytes | None:
        self.messages.append(message)
        return self._by


@masks
def test_a_message_nobody_wants_passes_unread(mask: bytes):
    reading = Reading()
    data = Frame(TEXT, b"plain" * 500, mask=mask).encode()
    assert reading.feed(data) == data
    assert reading.beginnings == [(b"plain" * 500)[:BEGINNING_BYTES]]
    assert reading.messages == []


@masks
def test_a_message_that_is_read_passes_as_it_came(mask: bytes):
    reading = Reading()
    payload = b"R" + bytes(range(256)) * 300
    data = Frame(TEXT, payload, mask=mask).encode()
    assert reading.feed(*(data[at : at + 999] for at in range(0, len(data), 999))) == data
    assert reading.messages == [payload]


@masks
def test_a_message_may_be_replaced(mask: bytes):
    reading = Reading(by=b"y" * 70_000)
    before, after = Frame(PING, b"p", mask=mask).encode(), Frame(PONG, mask=mask).encode()
    out = reading.feed(before + Frame(TEXT, b"X" * 1000, mask=mask).encode() + after)
    frames, rest = decode(out)
    assert (frames, rest) == (
        [
            Frame(PING, b"p", mask=mask),
            Frame(TEXT, b"y" * 70_000, mask=mask),
            Frame(PONG, mask=mask),
        ],
        b"",
    )


def test_a_message_is_as_it_was_when_its_reader_gives_nothing():
    reading = Reading(by=None)
    data = text(b"X" * 1000)
    assert reading.feed(data) == data
    assert reading.messages == [b"X" * 1000]


def test_fragments_are_read_as_one_message_but_never_replaced():
    reading = Reading()
    data = b"".join(
        (
            Frame(TEXT, b"X" * 300, final=False).encode(),
            Frame(PING, b"between").encode(),
            Frame(CONTINUATION, b"yz", final=False).encode(),
            Frame(CONTINUATION, b"").encode(),
            text(b"R"),
        )
    )
    assert reading.feed(*(data[at : at + 1] for at in range(len(data)))) == data
    assert reading.messages == [b"X" * 300 + b"yz", b"R"]


def test_binary_messages_and_their_fragments_are_not_shown():
    reading = Reading()
    data = Frame(BINARY, b"R", final=False).encode() + Frame(CONTINUATION, b"X").encode()
    assert reading.feed(data) == data
    assert (reading.beginnings, reading.messages) == ([], [])


def test_a_compressed_message_is_not_read():
    reading = Reading()
    data = Frame(TEXT, b"Xcompressed", reserved=4).encode()
    assert reading.feed(data) == data
    assert (reading.beginnings, reading.messages) == ([], [])


@pytest.mark.parametrize("wish", [b"R", b"X"])
def test_a_message_over_the_bound_passes_unread(wish: bytes):
    reading = Reading()
    large = text(wish + bytes(MAX_MESSAGE_BYTES))
    assert reading.feed(large) == large
    part = Frame(CONTINUATION, bytes(MAX_MESSAGE_BYTES // 2), final=False).encode()
    fragments = Frame(TEXT, wish, final=False).encode() + part * 3 + Frame(CONTINUATION).encode()
    assert reading.feed(fragments) == fragments
    assert reading.messages == []
    assert reading.feed(text(b"R")) == text(b"R")
    assert reading.messages == [b"R"]


@masks
def test_a_close_is_noted_and_nothing_follows_it(mask: bytes):
    reading = Reading()
    data = Frame(CLOSE, b"\x0f\xa0going", mask=mask).encode()
    assert reading.feed(data[:3], data[3:] + text("late"), b"later") == data
    assert reading.follower.closed
    assert reading.follower.close_code == 4000


def test_a_close_without_a_code_has_a_code_of_its_own():
    reading = Reading()
    assert reading.feed(Frame(CLOSE).encode()) == b"\x88\x00"
    assert reading.follower.close_code == NO_STATUS


def test_frames_of_ones_own_go_between_those_that_pass():
    reading = Reading()
    data = text(b"p" * 400)
    assert reading.feed(data[:100]) == b""  # its beginning is not known yet
    places = [reading.follower.between_frames]
    for piece in (data[100:300], data[300:], text(b"X" * 900)[:500]):  # the last is held
        reading.feed(piece)
        places.append(reading.follower.between_frames)
    assert places == [True, False, True, True]


def test_a_frame_without_end_passes():
    reading = Reading()
    data = b"\x82\x7f" + b"\xff" * 8
    assert reading.feed(data) == data
    assert reading.feed(b"x" * 1000) == b"x" * 1000
    assert not reading.follower.between_frames


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
@masks
def test_own_frames_are_well_formed(size: int, mask: bytes):
    payload = b"a" * size
    assert decode(text_frame(payload, mask)) == ([Frame(TEXT, payload, mask=mask)], b"")


def test_own_closes_are_well_formed():
    assert close_frame(1011, "broken") == close(1011, "broken")
    assert close_frame(NO_STATUS, "no room for this") == b"\x88\x00"
    frame = decode(close_frame(1001, "ä" * 200))[0][0]
    assert frame.payload[2:].decode() == "ä" * 61


def test_a_mask_is_taken_off_from_any_offset():
    assert unmasked(unmasked(b"hello", MASK), MASK) == b"hello"
    whole = unmasked(bytes(range(50)), MASK)
    for at in range(50):
        assert unmasked(bytes(range(50))[at:], MASK, at) == whole[at:]
    assert unmasked(b"as it is", b"") == b"as it is"
