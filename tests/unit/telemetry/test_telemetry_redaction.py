"""Secrets, known and unknown, in texts and structures."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.telemetry.redaction import MASK, Redactor

SECRET = 'p@ss"word\\ é/with+every sort'


def redactor(*secrets: str) -> Redactor:
    made = Redactor()
    made.hide("test", secrets)
    return made


def test_a_registered_secret_is_masked_wherever_it_stands():
    assert redactor(SECRET).text(f"before{SECRET}after") == f"before{MASK}after"


def test_a_registered_secret_is_masked_in_its_escaped_forms():
    for form in (json.dumps({"x": SECRET}), f"https://host/?q={quote(SECRET, safe='')}"):
        assert MASK in redactor(SECRET).text(form)
        assert "every" not in redactor(SECRET).text(form)


def test_a_secret_within_a_secret_goes_as_a_whole():
    assert redactor("inner-secret", "an-inner-secret-too").text("an-inner-secret-too") == MASK


def test_a_short_text_is_not_registered_since_it_would_eat_words():
    assert redactor("admin").text("the admin listener") == "the admin listener"


def test_a_group_is_replaced_and_other_groups_stay():
    made = redactor("first-secret")
    made.hide("other", ["second-secret"])
    made.hide("test", ["third-secret"])
    shown = made.text("first-secret second-secret third-secret")
    assert shown == f"first-secret {MASK} {MASK}"


LEAKS = [
    ("Authorization: Bearer abc.def-123_x", "abc.def"),
    ("authorization=Basic dXNlcjpwYXNz", "dXNl"),
    ("sent bearer deadbeefdeadbeef away", "deadbeef"),
    ("api-key: 0123456789abcdef0123456789abcdef", "0123"),
    ("Api_Key=hunter2hunter2", "hunter2"),
    ("{'api-key': 'hunter2hunter2'}", "hunter2"),
    ("[('api-key', 'hunter2hunter2')]", "hunter2"),
    ("[b'api-key', b'hunter2hunter2']", "hunter2"),
    ("b'api-key: hunter2hunter2'", "hunter2"),
    ('{"client_secret":"q~hunter2.x"}', "hunter2"),
    ('{\\"client_secret\\": \\"q~hunter2.x\\"}', "hunter2"),
    ("grant_type=client_credentials&client_secret=hunter2&scope=x", "hunter2"),
    ("Ocp-Apim-Subscription-Key: hunter2", "hunter2"),
    ("password = hunter2", "hunter2"),
    ("key sk-proj-abcd1234 was refused", "abcd1234"),
    ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature here", "nature"),
    ("found " + "Ab3" * 28 + " in a file", "Ab3Ab3"),
]


@pytest.mark.parametrize(("text", "leak"), LEAKS, ids=[text[:24] for text, _ in LEAKS])
def test_what_looks_like_a_secret_is_masked(text, leak):
    shown = Redactor().text(text)
    assert leak not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "api_key_id=3f0c2a1e prompt_tokens=12",
        "the basic plan, and the bearer token was refused",
        "/v1/chat/completions",
        "0b1c9c1e-aaaa-bbbb-cccc-000000000001",
        "invalid API key",
        "task-runner-7 asked for gpt-4o",
    ],
)
def test_ordinary_text_passes_unchanged(text):
    assert Redactor().text(text) == text


def test_a_telling_name_masks_its_value_whatever_it_looks_like():
    shown = Redactor().fields({"api_key": "short", "Authorization": ["x"], "secret": None})
    assert shown == {"api_key": MASK, "Authorization": MASK, "secret": None}


def test_structures_are_searched():
    found = redactor(SECRET).fields(
        {"a": {"b": [SECRET, ("x", {SECRET})]}, "n": 1, "f": 0.5, "t": True}
    )
    assert found == {"a": {"b": [MASK, ["x", [MASK]]]}, "n": 1, "f": 0.5, "t": True}


def test_names_inside_structures_are_searched_too():
    assert redactor(SECRET).fields({"a": {SECRET: 1, 2: 3}}) == {"a": {MASK: 1, "2": 3}}


def test_objects_become_their_text_without_secrets():
    assert redactor(SECRET).fields({"error": ValueError(SECRET)}) == {"error": MASK}


def test_an_object_that_cannot_say_its_text_does_no_harm():
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no")

    shown = Redactor().fields({"a": Mute()})
    assert shown == {"a": "<Mute without text: RuntimeError>"}


def test_a_structure_without_end_is_cut():
    endless: list[object] = []
    endless.append(endless)
    assert Redactor().fields({"a": endless})
    assert len(Redactor().fields({"a": list(range(1000))})["a"]) == 100


def test_fields_without_secrets_come_back_as_they_are():
    fields = {"status": 200, "path": "/v1/models", "error": None, "stream": False}
    assert redactor(SECRET).fields(fields) == fields


@given(st.text(), st.text(st.characters(codec="ascii"), min_size=8, max_size=40), st.text())
def test_no_registered_secret_survives_in_any_surroundings(before, secret, after):
    shown = redactor(secret).fields({"x": f"{before}{secret}{after}", "y": 1})["x"]
    assert secret not in shown or secret in f"{before}{MASK}{after}"


UUID = "1c9ce942-5b46-43bb-ba98-3df05e668948"


@pytest.mark.parametrize(
    ("one", "other", "harmless"),
    [
        *[(UUID, "", True), (UUID, UUID, True), (UUID[:9] + "0" * 4 + UUID[13:], UUID, True)],
        *[("", UUID, False), ("", "", False), (UUID, "x", False), ("x", UUID, False)],
        *[(UUID + UUID, "", False), (f"{UUID} {UUID}", "", False), (f"{UUID} ", UUID, False)],
        *[(UUID[:20], UUID[20:], False), (UUID.upper(), "", False), (UUID, UUID + "\n", False)],
    ],
)
def test_only_whole_uuids_are_harmless(one, other, harmless):
    assert redactor().are_harmless_uuids(one, other) is harmless


def test_a_uuid_that_holds_a_secret_is_not_harmless():
    known = redactor(UUID[9:23])
    other = UUID.replace("5b46", "0000")
    assert known.are_harmless_uuids(other, other)
    assert not known.are_harmless_uuids(UUID, other)
    assert not known.are_harmless_uuids(other, UUID)
