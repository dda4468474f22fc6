"""Request ids: which of a caller's are taken over, and what ours are."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.web.base import RequestIds, given_id
from tests.support.builders import Headers

ACCEPT = ("x-aisix-request-id", "x-request-id")


def test_a_new_id_is_a_random_uuid_of_version_4():
    ids = RequestIds()
    made = [ids.new() for _ in range(1_000)]
    assert len(set(made)) == len(made)
    for text in made:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_all_four_variant_digits_occur():
    ids = RequestIds()
    assert {ids.new()[19] for _ in range(1_000)} == set("89ab")


def test_two_sources_make_other_ids():
    first, second = RequestIds(), RequestIds()
    assert {first.new() for _ in range(300)}.isdisjoint({second.new() for _ in range(300)})


def test_the_first_acceptable_name_wins():
    headers = Headers({"x-request-id": "second", "x-aisix-request-id": "first"})
    assert given_id(headers, ACCEPT) == "first"
    assert given_id(Headers({"x-request-id": "second"}), ACCEPT) == "second"


@pytest.mark.parametrize("value", ["", "two words", "a\tb", "ünïcode", "x" * 257, "a\x7f", "a\x00"])
def test_an_id_that_is_not_visible_ascii_of_256_characters_is_not_taken(value):
    assert given_id(Headers({"x-request-id": value}), ACCEPT) is None


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x17F), min_size=1, max_size=8))
def test_visible_ascii_and_nothing_else_is_taken(value):
    taken = given_id(Headers({"x-request-id": value}), ACCEPT) == value
    assert taken == all("!" <= char <= "~" for char in value)
