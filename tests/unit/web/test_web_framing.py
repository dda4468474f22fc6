"""Heads that say clearly where the body ends, and those that do not."""

from __future__ import annotations

import pytest

from aisix.web.framing import UNLIMITED_BYTES, is_framed


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Length": "0"},
        {"Content-Length": "17"},
        {"Content-Length": "17, 17,17"},
        {"Content-Length": str(UNLIMITED_BYTES)},
        {"Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "Chunked"},
    ],
)
def test_a_clear_head_is_framed(headers: dict[str, str]) -> None:
    assert is_framed(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": ""},
        {"Content-Length": "x"},
        {"Content-Length": "-1"},
        {"Content-Length": "+1"},
        {"Content-Length": "1.5"},
        {"Content-Length": "\u0661"},
        {"Content-Length": "17, 18"},
        {"Content-Length": "17,"},
        {"Content-Length": "0x10"},
        {"Content-Length": str(UNLIMITED_BYTES + 1)},
        {"Content-Length": "9" * 5_000},
        {"Transfer-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked, chunked"},
        {"Transfer-Encoding": "chunked", "Content-Length": "0"},
    ],
)
def test_an_unclear_head_is_not(headers: dict[str, str]) -> None:
    assert not is_framed(headers)
