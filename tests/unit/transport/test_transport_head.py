"""Heads from header lines."""

from __future__ import annotations

from aisix.transport.head import HeadReader


def read(*lines: bytes) -> HeadReader:
    reader = HeadReader()
    for line in lines:
        reader.feed(line)
    return reader


def test_a_head_is_complete_at_its_blank_line_only():
    reader = HeadReader()
    lines = [b"HTTP/1.1 200 OK\r\n", b"A: 1\r\n", b"\r\n"]
    assert [reader.feed(line) for line in lines] == [False, False, True]
    assert (reader.status, reader.headers()) == (200, {"a": "1"})


def test_interim_heads_are_forgotten():
    reader = read(b"HTTP/1.1 103 Hints\r\n", b"Link: x\r\n", b"\r\n")
    assert not reader.complete
    reader = read(
        *[b"HTTP/1.1 100 Continue\r\n", b"A: 1\r\n", b"\r\n"],
        *[b"HTTP/1.1 404 Not Found\r\n", b"B: 2\r\n", b"\r\n"],
    )
    assert (reader.complete, reader.status, reader.headers()) == (True, 404, {"b": "2"})


def test_http2_status_lines_have_no_reason():
    assert read(b"HTTP/2 200 \r\n", b"\r\n").status == 200
    assert read(b"HTTP/1.1 429\r\n", b"\r\n").status == 429


def test_names_are_lower_case_and_repeated_values_joined():
    reader = read(
        b"HTTP/1.1 200 OK\r\n",
        *[b"Set-Cookie: a=b\r\n", b"X:1\r\n", b"set-cookie:   c=d  \r\n", b"Empty:\r\n", b"\r\n"],
    )
    assert reader.headers() == {"set-cookie": "a=b, c=d", "x": "1", "empty": ""}


def test_a_folded_line_continues_the_value_before_it():
    reader = read(b"HTTP/1.1 200 OK\n", b"A: 1\n", b"\t2\n", b"B:\n", b" 3\n", b"\n")
    assert reader.headers() == {"a": "1 2", "b": "3"}


def test_bytes_beyond_ascii_are_kept_as_they_are():
    reader = read(b"HTTP/1.1 200 OK\r\n", b"A: \xfc:\xe9\r\n", b"\r\n")
    assert reader.headers()["a"].encode("latin-1") == b"\xfc:\xe9"
