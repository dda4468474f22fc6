"""The splitter: line ends, fields, byte order mark, bounds, the end of input."""

from __future__ import annotations

import time

import pytest

from aisix.errors import UpstreamBroken
from aisix.relay.sse import SseSplitter
from tests.support.azure_streams import split, taken


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data\n\n", b""),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\rdata: b\r\r", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\n\r\n", b"a\nb"),
        (b"id: 1\nretry: 5\ndata: a\n\n", b"a"),
        (b": comment\n\n", None),
        (b"event: ping\n\n", None),
        (b"database: a\n\n", None),
    ],
)
def test_data_lines_are_joined_and_other_lines_are_not_data(
    wire: bytes, data: bytes | None
) -> None:
    events = split(wire)
    assert [event.data for event in events] == [data]
    assert events[0].raw == wire
    assert events[0].complete


def test_the_event_name_is_read() -> None:
    (event,) = split(b"event: error\ndata: {}\n\n")
    assert event.name == "error"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_splits_events(end: bytes) -> None:
    wire = b"".join(b"data: %d" % number + end + end for number in range(3)) + b":" + end + end
    events = split(wire)
    assert [event.data for event in events] == [b"0", b"1", b"2", None]
    assert b"".join(event.raw for event in events) == wire


def test_a_cr_only_event_is_given_out_without_waiting_for_more() -> None:
    assert [event.data for event in taken(SseSplitter(), b"data: a\r\r")] == [b"a"]


def test_a_crlf_cut_in_two_stays_one_line_end() -> None:
    splitter = SseSplitter()
    assert taken(splitter, b"data: a\r\n\r") == []
    events = taken(splitter, b"\ndata: b\r\n\r\n")
    assert [event.raw for event in events] == [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]


def test_stray_blank_lines_are_events_without_data() -> None:
    events = split(b"\n\r\ndata: a\n\n\n")
    assert [(event.raw, event.data) for event in events] == [
        (b"\n", None),
        (b"\r\n", None),
        (b"data: a\n\n", b"a"),
        (b"\n", None),
    ]


@pytest.mark.parametrize(
    "pieces", [[b"\xef\xbb\xbfdata: a\n\n"], [b"\xef", b"\xbb", b"\xbfdata: a\n\n"]]
)
def test_a_byte_order_mark_at_the_start_is_skipped(pieces: list[bytes]) -> None:
    assert [event.raw for event in split(*pieces)] == [b"data: a\n\n"]


def test_what_only_begins_like_a_byte_order_mark_is_kept() -> None:
    assert [event.raw for event in split(b"\xef", b"\xbbx\n\n")] == [b"\xef\xbbx\n\n"]
    assert split(b"\xef\xbb") == []
    assert split(b"") == []


def test_a_character_cut_in_two_arrives_whole() -> None:
    wire = "data: 🙂é\n\n".encode()
    pieces = [wire[at : at + 1] for at in range(len(wire))]
    assert [event.data for event in split(*pieces)] == ["🙂é".encode()]


@pytest.mark.parametrize(
    ("rest", "raw"),
    [
        (b"data: a", b"data: a\n\n"),
        (b"data: a\n", b"data: a\n\n"),
        (b"data: a\r", b"data: a\r\n\n"),
        (b"data: a\r\n", b"data: a\r\n\n"),
    ],
)
def test_an_unterminated_event_is_flushed_ended_and_marked(rest: bytes, raw: bytes) -> None:
    (event,) = split(rest)
    assert (event.raw, event.data, event.complete) == (raw, b"a", False)


@pytest.mark.parametrize("rest", [b"data: a\r\n\r", b"data: a\n\r"])
def test_a_final_cr_that_waited_for_its_lf_ends_the_event(rest: bytes) -> None:
    (event,) = split(rest)
    assert (event.raw, event.data, event.complete) == (rest, b"a", True)


def test_the_end_mark_is_known_with_or_without_spaces() -> None:
    assert [
        event.is_done for event in split(b"data:[DONE]\n\ndata: [DONE] \n\ndata: x\n\n:\n\n")
    ] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("first", [b"data: ok\n\n", b"data: ok\r\n\r\n"])
def test_an_event_over_the_bound_is_refused_after_those_before_it(first: bytes) -> None:
    splitter = SseSplitter(max_event_bytes=20)
    splitter.push(first + b"data: " + b"x" * 30)
    assert splitter.take() is not None
    with pytest.raises(UpstreamBroken) as caught:
        splitter.take()
    assert caught.value.kind == "decode"
    with pytest.raises(UpstreamBroken):
        splitter.push(b"\n\n")
    with pytest.raises(UpstreamBroken):
        splitter.finish()


def test_the_bound_does_not_depend_on_how_the_event_arrives() -> None:
    wire = b"data: " + b"x" * 12 + b"\n\n"
    assert len(wire) == 20
    for pieces in ([wire], [wire[at : at + 1] for at in range(20)]):
        splitter = SseSplitter(max_event_bytes=20)
        assert sum(len(taken(splitter, piece)) for piece in pieces) == 1
        splitter = SseSplitter(max_event_bytes=19)
        with pytest.raises(UpstreamBroken):
            [taken(splitter, piece) for piece in pieces]


@pytest.mark.parametrize("start", [b"\n", b"\r\n"])
def test_a_large_event_fed_byte_by_byte_takes_linear_time(start: bytes) -> None:
    """Four times the input may take eight times as long; rescanning would take sixteen."""

    def seconds(size: int) -> float:
        wire = start + b"data: " + b"x" * size + b"\n\n"
        splitter = SseSplitter()
        began = time.process_time()
        count = sum(len(taken(splitter, wire[at : at + 1])) for at in range(len(wire)))
        assert count == 2
        return time.process_time() - began

    assert min(seconds(120_000) for _ in range(3)) < 8 * min(seconds(30_000) for _ in range(3))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: old\n\n", b"data: new\n\n"),
        (b"data:old\r\n\r\n", b"data: new\n\n"),
        (b"event: e\nid: 7\ndata: o\ndata: ld\n: c\n\n", b"event: e\nid: 7\ndata: new\n: c\n\n"),
        (b"data: o\revent: e\n\n", b"data: new\nevent: e\n\n"),
    ],
)
def test_new_data_leaves_the_other_lines(raw: bytes, expected: bytes) -> None:
    (event,) = split(raw)
    assert event.with_data(b"new") == expected


def test_new_data_of_several_lines_becomes_several_data_lines() -> None:
    (event,) = split(b"data: old\n\n")
    (again,) = split(event.with_data(b"a\nb"))
    assert again.data == b"a\nb"
