"""What operators may change about requests, and in which words the rest is refused."""

from __future__ import annotations

import pytest

from aisix.core.shaping import (
    FIXED_FIELDS,
    OWN_HEADERS,
    check_default_fields,
    check_default_headers,
    check_renames,
    may_forward,
    normal_names,
    parse_forward_headers,
)
from aisix.errors import FieldError


@pytest.mark.parametrize("name", FIXED_FIELDS)
def test_the_fields_that_make_a_request_are_neither_renamed_nor_defaulted(name):
    for renames in ({name: "x"}, {"x": name}):
        with pytest.raises(FieldError, match=f'"{name}" cannot be renamed or replaced: '):
            check_renames(renames)
    with pytest.raises(FieldError, match=f'"{name}" cannot have a default'):
        check_default_fields([name])


def test_good_renames_and_defaults_pass():
    check_renames({"max_tokens": "max_completion_tokens", "top_p": "top_p"})
    check_default_fields(["user", "service_tier"])


@pytest.mark.parametrize(
    ("renames", "said"),
    [({"a": "c", "b": "c"}, "same new name"), ({"": "a"}, "must not be empty")],
)
def test_renames_that_leave_a_doubt_are_refused(renames, said):
    with pytest.raises(FieldError, match=said):
        check_renames(renames)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "api-key",
        "X-Api-Key",
        "x-goog-api-key",
        "X-AMZ-Security-Token",
        "proxy-authorization",
        "Cookie",
        "Host",
        "Content-Length",
        "transfer-encoding",
        "connection",
        "te",
        "user-agent",
        "accept-encoding",
        "x-aisix-request-id",
        "traceparent",
    ],
)
def test_a_default_header_overrides_nothing_that_is_ours(name):
    with pytest.raises(FieldError, match=f'"{name.lower()}" cannot be set'):
        check_default_headers({name: "secret-value"})


def test_a_front_doors_own_key_may_be_a_default_header():
    check_default_headers({"Ocp-Apim-Subscription-Key": "k", "x-tenant": "a b"})


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-a": "one\r\ntwo"}, '"x-a" must be printable ASCII'),
        ({"x-a": "\x00"}, '"x-a" must be printable ASCII'),
        ({"x-a": "ü"}, '"x-a" must be printable ASCII'),
        ({"x a": "v"}, "name may hold only"),
        ({"x:a": "v"}, "name may hold only"),
        ({"": "v"}, "name may hold only"),
        ({"X-A": "v", "x-a": "w"}, "given twice"),
    ],
)
def test_a_header_that_could_break_its_line_is_refused_without_its_value(headers, said):
    with pytest.raises(FieldError, match=said) as caught:
        check_default_headers(headers)
    assert "two" not in str(caught.value)


def test_patterns_are_brought_to_normal_form():
    assert parse_forward_headers([" X-Team ", "x-team", "x-*-id", ""]) == ("x-team", "x-*-id")
    assert normal_names([" A ", "a", "", "b"]) == ("a", "b")


@pytest.mark.parametrize("pattern", ["x-*-*", "x team", "x:y", "ü"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(FieldError, match="header"):
        parse_forward_headers([pattern])


@pytest.mark.parametrize("name", ["authorization", "Cookie", "content-type", "x-stainless-lang"])
def test_a_name_that_is_never_passed_on_is_refused(name):
    with pytest.raises(FieldError, match=f'"{name.lower()}" is never passed on'):
        parse_forward_headers([name])


def test_everything_of_ours_stays_with_us():
    assert not any(may_forward(name) for name in OWN_HEADERS)
    for name in (
        "accept-language",
        "content-md5",
        "proxy-connection",
        "x-aisix-tags",
        "tracestate",
    ):
        assert not may_forward(name)
    assert may_forward("x-team")
