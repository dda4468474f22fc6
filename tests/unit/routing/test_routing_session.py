"""What a request for a session asks for."""

from __future__ import annotations

import pytest

from aisix.core.uplink import Uplink
from aisix.errors import BadRequest
from aisix.routing.session import parse_session


@pytest.mark.parametrize(
    ("query", "requested"),
    [
        ("model=voice", "voice"),
        ("deployment=voice&api-version=2025-04-01-preview", "voice"),
        ("model=other&deployment=voice", "voice"),
        ("model=gpt%204o%C3%BC", "gpt 4oü"),
        ("model=voice&model=voice&unknown", "voice"),
    ],
)
def test_the_query_names_the_model(query: str, requested: str):
    payload = parse_session(query)
    assert payload.requested == requested
    assert payload.query == ()
    assert isinstance(payload.source, Uplink)
    assert payload.stream


def test_only_what_is_known_goes_on():
    payload = parse_session("model=v&intent=transcription&api-key=secret&host=evil")
    assert payload.query == (("intent", "transcription"),)


@pytest.mark.parametrize(
    ("query", "param", "text"),
    [
        ("", "model", "is required"),
        ("api-version=v1", "model", "is required"),
        ("model=", "model", "must not be empty"),
        ("deployment=&model=v", "deployment", "must not be empty"),
        ("model=a&model=b", "model", "more than one model"),
        ("model=a&intent=mischief", "intent", "must be transcription"),
        ("&".join(f"a{n}=1" for n in range(65)), None, "more than 64 parameters"),
    ],
)
def test_a_query_that_names_none_is_refused_in_words(query: str, param: str | None, text: str):
    with pytest.raises(BadRequest) as caught:
        parse_session(query)
    assert caught.value.param == param
    assert text in caught.value.message
