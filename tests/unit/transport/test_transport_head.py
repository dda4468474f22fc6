"""Status lines and header fields, from the lines that libcurl hands over."""

from __future__ import annotations

import pytest

from aisix.transport.head import fields_of, status_of


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n", 200),
        (b"HTTP/1.1 404 Not Found\n", 404),
        (b"HTTP/2 429 \r\n", 429),
        (b"HTTP/1.0 200\r\n", 200),
    ],
)
def test_the_status_is_found_with_or_without_a_reason(line, status):
    assert status_of(line) == status


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        ([], {}),
        ([b"\r\n"], {}),
        ([b"X-A: 1\r\n", b"x-a:2\r\n", b"\r\n"], {"x-a": "1, 2"}),
        ([b"X-A:\t a:b \r\n", b"\r\n"], {"x-a": "a:b"}),
        ([b"X-A: a\r\n", b" \t b\r\n", b"\tc\r\n", b"\r\n"], {"x-a": "a b c"}),
        ([b"X-A: a\n", b" b\n", b"\n"], {"x-a": "a b"}),
        ([b"X-A :\r\n", b"\r\n"], {"x-a": ""}),
        ([b"X-A: \xe9\x85\x0b\r\n", b"X-B: b\r\n"], {"x-a": "\xe9", "x-b": "b"}),
    ],
    ids=["none", "blank", "repeated", "colon", "folded", "lf", "empty", "latin-1"],
)
def test_fields_are_lower_case_joined_and_unfolded(lines, fields):
    assert fields_of(lines) == fields
