"""Any cut of any WebSocket: the same bytes out, the same messages read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aisix.relay.frames import FrameFollower, Interest
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, Frame, decode

payloads = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda lead, size: lead + b"." * size,
        st.sampled_from([b"R", b"X"]),
        st.sampled_from([0, 3, 123, 124, 125, 254, 255, 256, 257, 700, 65_534, 65_535, 65_536]),
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Frame]:
    """Frames in an order that RFC 6455 allows; some with a Close at the end."""
    mask = draw(st.sampled_from([b"", b"\x00\x00\x00\x00", b"\x01\x80\xfe\x37"]))
    frames: list[Frame] = []
    for _ in range(draw(st.integers(0, 5))):
        opcode = draw(st.sampled_from([TEXT, TEXT, BINARY]))
        parts = draw(st.lists(payloads, min_size=1, max_size=3))
        for at, part in enumerate(parts):
            if draw(st.booleans()):
                frames.append(Frame(PING, draw(st.binary(max_size=125)), mask=mask))
            kind = CONTINUATION if at else opcode
            frames.append(Frame(kind, part, at == len(parts) - 1, mask))
    if draw(st.booleans()):
        frames.append(Frame(CLOSE, b"\x03\xe8" + draw(st.binary(max_size=20)), mask=mask))
    return frames


class Reading:
    """What begins with R is read, with X replaced by its own length."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.follower = FrameFollower(self.judge, self.read)

    def judge(self, beginning: bytes) -> Interest:
        wishes = {b"R": Interest.READ, b"X": Interest.REPLACE}
        return wishes.get(beginning[:1], Interest.NONE)

    def read(self, message: bytes) -> bytes | None:
        self.messages.append(message)
        return b"%d" % len(message)


def expected(frames: list[Frame]) -> tuple[list[Frame], list[bytes]]:
    """What comes out and what is read, by whole frames."""
    out: list[Frame] = []
    read: list[bytes] = []
    text: bytes | None = None
    for frame in frames:
        passed = frame
        if frame.opcode in (TEXT, BINARY):
            text = frame.payload if frame.opcode == TEXT else None
            if frame.payload[:1] not in (b"R", b"X"):
                text = None
        elif frame.opcode == CONTINUATION and text is not None:
            text += frame.payload
        if frame.opcode in (TEXT, CONTINUATION) and frame.final and text is not None:
            read.append(text)
            if frame.opcode == TEXT and text[:1] == b"X":
                passed = Frame(TEXT, b"%d" % len(text), mask=frame.mask)
        out.append(passed)
    return out, read


@given(conversations(), st.lists(st.integers(1, 5000), max_size=30), st.booleans())
def test_any_cut_gives_the_same_bytes_and_messages(
    frames: list[Frame], sizes: list[int], byte_by_byte: bool
):
    data = b"".join(frame.encode() for frame in frames)
    if byte_by_byte and len(data) < 3000:
        sizes = [1] * len(data)
    reading = Reading()
    out = bytearray()
    at = 0
    for size in [*sizes, len(data)]:
        out += reading.follower.feed(data[at : at + size])
        at += size
    assert (decode(bytes(out)), reading.messages) == (
        (expected(frames)[0], b""),
        expected(frames)[1],
    )
    assert reading.follower.closed == bool(frames and frames[-1].opcode == CLOSE)
    assert reading.follower.between_frames


@given(st.binary(max_size=2000), st.lists(st.integers(0, 50), max_size=40))
def test_no_bytes_at_all_make_it_fail(data: bytes, sizes: list[int]):
    whole = Reading().follower.feed(data)
    reading = Reading()
    out = bytearray()
    at = 0
    for size in [*sizes, len(data)]:
        out += reading.follower.feed(data[at : at + size])
        at += size
    assert bytes(out) == whole
