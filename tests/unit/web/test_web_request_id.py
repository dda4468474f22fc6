"""Request ids: which of a caller's are taken over, and what ours are."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.web.base import new_request_id, request_id
from tests.support.builders import Headers

ACCEPT = ("x-aisix-request-id", "x-request-id")


def test_a_new_id_is_a_random_uuid_of_version_4():
    made = [new_request_id() for _ in range(1_000)]
    assert len(set(made)) == len(made)
    for text in made:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_all_four_variant_digits_occur():
    assert {new_request_id()[19] for _ in range(1_000)} == set("89ab")


def test_a_forked_process_makes_other_ids():
    new_request_id()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, new_request_id().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as theirs:
        assert theirs.read() != new_request_id()
    os.waitpid(child, 0)


def test_the_first_acceptable_name_wins():
    headers = Headers({"x-request-id": "second", "x-aisix-request-id": "first"})
    assert request_id(headers, ACCEPT) == "first"
    assert request_id(Headers({"x-request-id": "second"}), ACCEPT) == "second"


@pytest.mark.parametrize("value", ["", "two words", "a\tb", "ünïcode", "x" * 257, "a\x7f", "a\x00"])
def test_an_id_that_is_not_visible_ascii_of_256_characters_is_replaced(value):
    made = request_id(Headers({"x-request-id": value}), ACCEPT)
    assert uuid.UUID(made).version == 4


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x17F), min_size=1, max_size=8))
def test_visible_ascii_and_nothing_else_is_taken(value):
    taken = request_id(Headers({"x-request-id": value}), ACCEPT) == value
    assert taken == all("!" <= char <= "~" for char in value)
