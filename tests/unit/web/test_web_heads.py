"""Heads that are recognised: which are learnt, what is the same head, and what is not."""

from __future__ import annotations

import pytest

from aisix.web.codec import MAX_WAITING, MessageParser
from aisix.web.heads import MAX_LEARNT_BYTES, learn
from tests.support.messages import parsed, taken

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX-A: 1\r\n\r\n"
REQUEST = HEAD + b"{}"


class Counting(MessageParser):
    """Counts the heads that llhttp has parsed."""

    heads = 0

    def on_headers_complete(self) -> None:
        self.heads += 1
        super().on_headers_complete()


def test_a_head_is_parsed_twice_and_no_more_whatever_the_length_of_the_body():
    parser = Counting()
    parser.feed(REQUEST)
    parser.messages.clear()
    bodies = [b"{}", b"", b'{"model":"x"}', b"x" * 40_000]
    for body in bodies:
        parser.feed(HEAD.replace(b": 2", b": %d" % len(body)) + body)
    found = taken(parser)
    assert parser.heads == 2
    assert [seen.body for seen in found] == bodies
    assert [dict(seen.headers)["content-length"] for seen in found] == ["2", "0", "13", "40000"]
    assert {seen.target for seen in found} == {"/v1/x"}
    assert all(seen.keep_alive and seen.method == "POST" for seen in found)


def test_what_a_request_does_to_its_headers_is_not_learnt():
    parser = parsed(before=(REQUEST, REQUEST))
    for _ in range(3):
        parser.feed(REQUEST)
        headers = parser.messages[-1].headers
        assert list(headers) == ["host", "content-length", "x-a"]
        headers["x-a"] = "changed"


ANOTHER = {
    b"/v1/x": [b"/v1/y"],
    b"X-A: 1": [b"X-A: 2", b"X-A: 1\r\nX-B: 2"],
    b"POST": [b"PUT", b"\r\nPOST"],
    b"HTTP/1.1": [b"HTTP/1.0"],
    b"Length: 2": [
        *(b"Length: " + length for length in (b"", b"+2", b"2 2", b"2, 2", b"9" * 20, b"\xb2")),
        b"Length: 2\r\nTransfer-Encoding: chunked",
    ],
    b"Length: 2\r\n": [b"Length: 2\n"],
    b"\r\n\r\n{}": [b"\r\n\r\n{", b"\r\n"],
}
OTHERS = [REQUEST.replace(piece, other) for piece in ANOTHER for other in ANOTHER[piece]]


@pytest.mark.parametrize("other", OTHERS)
def test_a_head_with_one_byte_more_or_less_is_parsed_like_any(other: bytes):
    before = (REQUEST, REQUEST)
    learnt, plain = (parsed(other, before=before, learning=learning) for learning in (True, False))
    assert (learnt.ended, learnt.in_head) == (plain.ended, plain.in_head)
    assert taken(learnt) == taken(plain)


def test_a_known_head_whose_body_comes_in_pieces_is_parsed():
    learnt = parsed(REQUEST[:-1], b"}", REQUEST, before=(REQUEST, REQUEST))
    assert taken(learnt) == taken(parsed(REQUEST * 2, learning=False))


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"POST", b"PUT"),
        HEAD.replace(b"Content-Length: 2\r\n", b""),
        HEAD.replace(b"X-A: 1", b"X-A: content-length"),
        HEAD.replace(b"X-A: 1", b"X-A: " + b"1" * MAX_LEARNT_BYTES),
        HEAD.replace(b": 2", b": 0000000000002"),
        HEAD[:-2],
    ],
)
def test_what_is_not_certain_is_not_learnt(head: bytes):
    assert learn(head, target="/v1/x", fields={}) is None


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"X-A: 1", b"Expect: 100-continue"),
        HEAD.replace(b"X-A: 1", b"Connection: Upgrade\r\nUpgrade: h2c"),
        HEAD.replace(b"X-A: 1", b"Connection: keep-alive").replace(b"/1.1", b"/1.0"),
    ],
)
def test_a_head_that_asks_something_of_the_connection_is_not_learnt(head: bytes):
    parser = Counting()
    for _ in range(5):
        parser.feed(head + b"{}")
        assert len(taken(parser)) == 1
    # that of an upgrade goes through llhttp twice: the second time for what stands behind it
    assert parser.heads == (10 if b"h2c" in head else 5)


def test_heads_that_differ_each_time_are_not_learnt_for_ever():
    parser = Counting()
    for number in range(10):
        parser.feed(REQUEST.replace(b"X-A: 1", b"X-A: %d" % number))
        parser.messages.clear()
    parser.feed(REQUEST.replace(b"X-A: 1", b"X-A: 9"))
    assert parser.heads == 11


def test_known_heads_sent_ahead_are_bounded_like_any():
    learnt, plain = (
        parsed(REQUEST * (MAX_WAITING + 5), before=(REQUEST, REQUEST), learning=learning)
        for learning in (True, False)
    )
    assert learnt.ended
    assert taken(learnt) == taken(plain)
