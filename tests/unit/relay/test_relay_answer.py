"""What the caller sees of a whole answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.errors import UpstreamBroken
from aisix.relay.answer import rewrite_answer
from tests.support.azure_streams import CREATED, FILTER_VERDICT, STREAM_ID, usage_block

SPECS = {spec.operation: spec for spec in ENDPOINTS}
CHAT, EMBEDDINGS = SPECS["chat_completions"], SPECS["embeddings"]


def answer(body: bytes, spec: EndpointSpec = CHAT, *, keep: bool = False) -> bytes:
    return rewrite_answer(
        body, spec, alias_name="my-gpt", keep_extensions=keep, observe=lambda document: None
    )


CHAT_ANSWER: dict[str, Any] = {
    "id": STREAM_ID,
    "object": "chat.completion",
    "created": CREATED,
    "model": "gpt-4o-2024-08-06",
    "system_fingerprint": "fp",
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTER_VERDICT}],
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": {"content": []},
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "content_filter_results": FILTER_VERDICT,
        }
    ],
    "usage": usage_block(9, 3),
}


def test_a_chat_answer_loses_extensions_and_the_served_name_only() -> None:
    document = json.loads(answer(json.dumps(CHAT_ANSWER).encode()))
    expected = {**CHAT_ANSWER, "model": "my-gpt"}
    del expected["prompt_filter_results"]
    choice = dict(CHAT_ANSWER["choices"][0])
    del choice["content_filter_results"]
    expected["choices"] = [choice]
    assert document == expected
    assert list(document) == list(expected)


def test_a_chat_answer_keeps_extensions_when_told() -> None:
    document = json.loads(answer(json.dumps(CHAT_ANSWER).encode(), keep=True))
    assert document == {**CHAT_ANSWER, "model": "my-gpt"}


def test_items_of_data_lose_extensions_too() -> None:
    body = {"data": [{"url": "u", "content_filter_results": {}, "prompt_filter_results": {}}, 5]}
    document = json.loads(answer(json.dumps(body).encode(), OTHER))
    assert document == {"data": [{"url": "u"}, 5]}


def test_an_answer_that_needs_no_edit_passes_as_it_came() -> None:
    body = b'{ "model":"my-gpt", "choices":[1.50] }'
    assert answer(body) == body
    assert answer(b"[1, 2]", OTHER) == b"[1, 2]"


def test_a_large_answer_differs_only_in_the_model() -> None:
    body = b'{"data":[%s],  "model" : "text-emb\\"x", "usage":{}}' % b", ".join([b"0.10"] * 500)
    assert answer(body, EMBEDDINGS) == body.replace(b'text-emb\\"x', b"my-gpt")


@pytest.mark.parametrize(
    "head",
    [
        b'{"x":{"model":"inner"},"model":"m",',
        b'{"x":"model","model":"m",',
        b'{"x":{"model":"inner"},"mod\\u0065l":"m",',
        b'{"model":null,',
        b'{"model":"m","model":"n",',
    ],
)
def test_a_large_answer_whose_model_is_hard_to_find_is_still_right(head: bytes) -> None:
    body = head + b'"data":[%s]}' % b",".join([b"0.5"] * 500)
    assert json.loads(answer(body, EMBEDDINGS)) == {**json.loads(body), "model": "my-gpt"}


@pytest.mark.parametrize("spec", [CHAT, SPECS["generate_images"]], ids=["chat", "images"])
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'{"a":', b"[]", b"7", b'{"a":"\xff"}', b'{"a":' * 100_000],
    ids=lambda body: body[:9].decode("latin-1"),
)
def test_an_answer_that_is_no_json_object_cannot_be_decoded(
    body: bytes, spec: EndpointSpec
) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        answer(body, spec)
    assert (caught.value.status, caught.value.type) == (502, "upstream_decode_error")


def test_an_error_in_the_guise_of_a_success_is_an_error() -> None:
    with pytest.raises(UpstreamBroken) as caught:
        answer(b'{"error":{"code":"429","message":"slow down"}}')
    assert (caught.value.kind, caught.value.status) == ("in_band", 429)


def test_the_observer_sees_the_answer_before_it_is_edited() -> None:
    observed: list[Any] = []

    def observe(document: dict[str, Any]) -> None:
        observed.append(json.loads(json.dumps(document)))

    body = json.dumps(CHAT_ANSWER).encode()
    rewrite_answer(body, CHAT, alias_name="a", keep_extensions=False, observe=observe)
    assert observed == [CHAT_ANSWER]
