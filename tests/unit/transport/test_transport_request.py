"""Header lines of targets and calls, in libcurl's form."""

from __future__ import annotations

from typing import cast

import pycurl
import pytest

from aisix.core.ports import UpstreamTarget
from aisix.errors import UpstreamMisconfigured
from aisix.transport.request import PreparedTarget, Wire, milliseconds, set_target

URL = "https://contoso.openai.azure.com/openai/x"
TARGET = UpstreamTarget(
    "POST", URL, [("api-key", "k"), ("Content-Type", "application/json"), ("Accept", "a/b")]
)


def prepared(*headers: tuple[str, str]) -> PreparedTarget:
    target = UpstreamTarget("POST", URL, headers) if headers else TARGET
    return PreparedTarget.of(target, user_agent="aisix/1")


def names(lines: list[bytes]) -> list[str]:
    return [line.partition(b":")[0].decode().lower() for line in lines]


def test_a_call_adds_its_own_lines_to_those_of_its_target():
    target = prepared()
    constant = target.lines([])
    assert target.lines([("x-own", "1"), ("x-empty", " ")]) == [
        *constant,
        b"x-own: 1",
        b"x-empty;",
    ]
    assert target.lines([]) == constant, "one call leaves nothing for the next"


def test_what_target_and_call_leave_out_is_added_or_taken_away_once():
    lines = prepared(("api-key", "k")).lines([("x-own", "1")])
    assert sorted(lines) == sorted(
        [
            b"api-key: k",
            b"User-Agent: aisix/1",
            b"Accept-Encoding: identity",
            b"Accept:",
            b"Content-Type:",
            b"Expect:",
            b"x-own: 1",
        ]
    )


@pytest.mark.parametrize("name", ["User-Agent", "accept", "Accept-Encoding", "content-type"])
def test_a_calls_own_header_takes_the_place_of_a_default(name: str):
    lines = prepared(("api-key", "k")).lines([(name, "mine")])
    assert names(lines).count(name.lower()) == 1
    assert f"{name}: mine".encode() in lines


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection", "EXPECT"])
def test_framing_is_nobodys_but_libcurls(name: str):
    for lines in (prepared().lines([(name, "1")]), prepared((name, "1")).lines([])):
        assert not any(line.lower().startswith(f"{name}: 1".lower().encode()) for line in lines)


@pytest.mark.parametrize("header", [("x y", "v"), ("x", "s3cret\r\nY: 1"), ("x", "s3cret\0")])
def test_a_call_is_checked_each_time_and_nothing_is_echoed(header: tuple[str, str]):
    target = prepared()
    for _ in range(2):
        with pytest.raises(UpstreamMisconfigured) as caught:
            target.lines([header])
        assert "s3cret" not in str(caught.value)
    assert target.lines([]) == prepared().lines([])


def test_a_prepared_target_shows_no_header():
    assert "api-key" not in repr(prepared())


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 2**31 - 1), (0.0001, 1), (2.5, 2500), (1e9, 2**31 - 1)]
)
def test_milliseconds_are_rounded_up_and_none_is_for_ever(seconds: float, expected: int):
    assert milliseconds(seconds) == expected


def test_a_handle_has_the_smallest_send_buffer_there_is():
    """libcurl keeps one per handle for as long as a stream lasts; 16 KiB is its least."""
    curl = Options()
    set_target(cast("pycurl.Curl", curl), TARGET, Wire(user_agent="aisix/1"))
    assert curl.options[pycurl.UPLOAD_BUFFERSIZE] == 16 * 1024


class Options:
    """A handle that only remembers what was set."""

    def __init__(self) -> None:
        self.options: dict[int, object] = {}

    def setopt(self, option: int, value: object) -> None:
        self.options[option] = value
