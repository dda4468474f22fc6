"""What a request is guessed to use, whatever its body looks like."""

from __future__ import annotations

import time

import pytest

from aisix.core.endpoints import OTHER
from aisix.limits.estimate import estimate_text_tokens, output_tokens, prompt_tokens
from tests.support.limited import CHAT, COMPLETION, EMBEDDING


@pytest.mark.parametrize(
    ("byte_count", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (4000, 1000), (4001, 1001)]
)
def test_text_counts_one_token_per_four_bytes_rounded_up(byte_count, expected):
    assert estimate_text_tokens(byte_count) == expected


def user(content):
    return {"role": "user", "content": content}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "A" * 400_000}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("")], 4),
        ([user("12345678")], 6),
        ([user("12345678"), user("1")], 8 + 3),
        ([user("123"), user("1")], 8 + 1),
        ([user("日本語")], 4 + 3),
        ([user("🙂🙂")], 4 + 2),
        ([user("\ud83d")], 4 + 1),
        ([user(None)], 4),
        ([user([{"type": "text", "text": "12345678"}, {"type": "text", "text": "1234"}])], 7),
        ([user([{"type": "refusal", "refusal": "1234"}])], 5),
        ([user([{"type": "text", "text": "1234"}, IMAGE])], 1005),
        ([user([AUDIO])], 1004),
        ([user([IMAGE, IMAGE, AUDIO, FILE])], 4004),
    ],
)
def test_messages_count_text_framing_and_flat_media(messages, expected):
    assert prompt_tokens({"messages": messages}, CHAT) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("12345", 2),
        ("", 0),
        (["12345", "1"], 3),
        ([], 0),
        ([1, 2, 3], 3),
        ([[1, 2, 3], [4]], 4),
        ([None, 7], 1),
        (None, 0),
    ],
)
@pytest.mark.parametrize("spec", [COMPLETION, EMBEDDING], ids=["completion", "embedding"])
def test_prompts_are_texts_lists_of_texts_or_exact_tokens(spec, prompt, expected):
    assert prompt_tokens({spec.prompt_field: prompt}, spec) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, 500),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": 0}, 0),
        ({"max_completion_tokens": 1, "max_tokens": 70}, 70),
        ({"max_tokens": None}, 500),
        ({"max_tokens": -5}, 500),
        ({"max_tokens": "7"}, 500),
        ({"max_tokens": True}, 500),
        ({"max_tokens": 7.5}, 500),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 3}, 1500),
        ({"n": 0}, 500),
        ({"n": -2}, 500),
        ({"n": [3]}, 500),
        ({"max_tokens": 7, "n": 2, "best_of": 4}, 28),
        ({"max_tokens": 10**40, "n": 10**40}, 10**80),
    ],
)
def test_output_is_what_the_request_allows_for_each_choice(document, expected):
    assert output_tokens(document, CHAT, 500) == expected


def test_a_batch_of_prompts_is_answered_once_each():
    assert output_tokens({"prompt": ["a", "b"], "max_tokens": 5}, COMPLETION, 500) == 10
    assert output_tokens({"prompt": [[1, 2], [3]], "max_tokens": 5}, COMPLETION, 500) == 10
    assert output_tokens({"prompt": [1, 2, 3], "max_tokens": 5}, COMPLETION, 500) == 5
    assert output_tokens({"prompt": "abc", "max_tokens": 5}, COMPLETION, 500) == 5


@pytest.mark.parametrize("spec", [EMBEDDING, OTHER], ids=["embedding", "other"])
def test_what_has_no_output_reserves_none(spec):
    assert output_tokens({"input": "abc", "max_tokens": 5}, spec, 500) == 0


def test_an_endpoint_without_a_prompt_has_no_prompt_tokens():
    assert prompt_tokens({"messages": [user("abc")]}, OTHER) == 0


@pytest.mark.parametrize(
    "content",
    [
        [user([user("x")])],
        [user({"text": "x"})],
        [user([{"type": ["image_url"], "text": ["x"]}])],
        [user([None, 3, "x", [IMAGE]])],
        [None, True, 3.5, {}, []],
        {"role": "user"},
        7,
        True,
    ],
)
def test_a_prompt_of_the_wrong_shape_is_not_an_error(content):
    for spec in (CHAT, COMPLETION, EMBEDDING):
        assert spec.prompt_field is not None
        document = {spec.prompt_field: content}
        assert prompt_tokens(document, spec) >= 0
        assert output_tokens(document, spec, 500) >= 0


def test_a_large_prompt_costs_next_to_nothing():
    document = {"messages": [user("a" * 30_000_000)], "prompt": list(range(100_000))}
    began = time.perf_counter()
    for _ in range(1000):
        prompt_tokens(document, CHAT)
        prompt_tokens(document, COMPLETION)
    assert time.perf_counter() - began < 0.5
