"""What the meter reads, estimates and remembers."""

from __future__ import annotations

from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.core.exchange import Usage
from aisix.usage.meter import UsageMeter, parse_usage
from tests.support.azure_streams import delta, frame, prompt_annotation, usage_block

SPECS = {spec.operation: spec for spec in ENDPOINTS}
CHAT, EMBEDDINGS = SPECS["chat_completions"], SPECS["embeddings"]


def metered(*documents: dict[str, Any], spec: EndpointSpec = CHAT) -> UsageMeter:
    meter = UsageMeter(spec)
    for document in documents:
        meter.observe(document)
    return meter


def estimated_completion(*documents: dict[str, Any]) -> int:
    usage = metered(*documents).usage(10)
    assert usage.estimated
    assert usage.total_tokens == 10 + usage.completion_tokens
    return usage.completion_tokens


def test_every_count_of_a_full_block_is_read() -> None:
    assert metered({"usage": usage_block(10, 6)}).usage(99) == Usage(
        prompt_tokens=10,
        completion_tokens=6,
        total_tokens=16,
        cached_tokens=5,
        reasoning_tokens=3,
    )


def test_embeddings_have_no_completion() -> None:
    document = {"model": "emb", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    usage = metered(document, spec=EMBEDDINGS).usage(1)
    assert usage == Usage(prompt_tokens=8, total_tokens=8)


@pytest.mark.parametrize(
    ("block", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4, 7)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, Usage(3, 4, 9)),
        ({"prompt_tokens": 3, "prompt_tokens_details": None}, Usage(3, 0, 3)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}}, Usage(3, 0, 3)),
        ({"prompt_tokens": 3, "completion_tokens_details": [1]}, Usage(3, 0, 3)),
        ({"prompt_tokens": "3", "completion_tokens": 4.0, "total_tokens": True}, None),
        ({"prompt_tokens": -1, "total_tokens": 2**60}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
        ({}, None),
        ([], None),
        (5, None),
    ],
)
def test_blocks_of_any_shape_are_read_or_skipped(block: Any, usage: Usage | None) -> None:
    assert parse_usage(block) == usage


def test_usage_is_taken_from_any_chunk_and_merged_by_the_larger_count() -> None:
    meter = metered(
        delta({"content": "x"}, usage=None),
        delta({}, finish_reason="stop", usage={"prompt_tokens": 5, "completion_tokens": 1}),
        frame(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 9}),
        frame(choices=[], usage="junk"),
    )
    assert meter.usage(0) == Usage(prompt_tokens=5, completion_tokens=9, total_tokens=14)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"content": "abcd"}, 1),
        ({"content": "abcde"}, 2),
        ({"content": "日本"}, 2),
        ({"content": "\ud83d"}, 1),
        ({"content": [{"type": "text", "text": "abcd"}, {"text": ["x"]}, 5]}, 1),
        ({"refusal": "abcd"}, 1),
        ({"reasoning_content": "abcd"}, 1),
        ({"reasoning": "abcd", "reasoning_content": "abcd"}, 1),
        ({"tool_calls": [{"function": {"arguments": "abcdefgh"}}, None, {"function": 1}]}, 2),
        ({"tool_calls": [{"custom": {"input": "abcd"}}]}, 1),
        ({"function_call": {"arguments": "abcd"}}, 1),
        ({"content": "", "role": "assistant"}, 0),
        ({"content": 5, "tool_calls": {}, "refusal": None}, 0),
    ],
)
def test_the_estimate_counts_what_the_model_wrote(fields: dict[str, Any], tokens: int) -> None:
    assert estimated_completion(delta(fields)) == tokens
    assert estimated_completion({"choices": [{"message": fields}]}) == tokens


def test_bytes_are_added_up_before_they_are_rounded() -> None:
    assert estimated_completion(*[delta({"content": "a"})] * 5) == 2


def test_the_text_of_completions_is_counted() -> None:
    assert estimated_completion({"choices": [{"text": "abcd"}, {"text": "abcd"}]}) == 2


def test_nothing_delivered_costs_the_prompt_only() -> None:
    assert metered(prompt_annotation()).usage(7) == Usage(
        prompt_tokens=7, total_tokens=7, estimated=True
    )


def test_the_served_model_is_the_first_name_and_the_finish_reason_the_last() -> None:
    meter = metered(
        prompt_annotation(),
        delta({"content": "x"}),
        {"model": "other", "choices": [{"finish_reason": "stop"}]},
        {"model": None, "choices": [{"finish_reason": "content_filter"}]},
        {"choices": [{"finish_reason": None}, {"finish_reason": 5}, None]},
    )
    assert meter.served_model == "gpt-4o-2024-08-06"
    assert meter.finish_reason == "content_filter"


def test_a_finish_reason_after_the_usage_is_still_read() -> None:
    meter = metered(
        {"usage": usage_block(10, 6), "choices": []},
        delta({"content": "x"}, finish_reason="length"),
    )
    assert meter.finish_reason == "length"
    assert meter.usage(0).completion_tokens == 6


def test_an_operation_without_a_model_counts_what_is_reported_and_estimates_nothing() -> None:
    meter = metered({"model": "m", "usage": usage_block(5, 5)}, spec=OTHER)
    assert meter.served_model == "m"
    assert meter.usage(0).total_tokens == 10
    assert metered({"id": "file-1"}, spec=OTHER).usage(0) == Usage()


def test_a_read_counts_nothing_that_was_counted_when_it_was_made() -> None:
    read = SPECS["get_response"]
    meter = metered({"object": "response", "status": "completed", "usage": TYPED}, spec=read)
    assert meter.usage(7) == Usage()


TYPED = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 16,
}


@pytest.mark.parametrize(
    ("operation", "document", "usage"),
    [
        ("create_response", {"object": "response", "usage": TYPED}, Usage(10, 6, 16, 4, 2)),
        (
            "create_response",
            {"type": "response.completed", "response": {"object": "response", "usage": TYPED}},
            Usage(10, 6, 16, 4, 2),
        ),
        (
            "create_transcription",
            {"text": "x", "usage": {"type": "duration", "seconds": 2.5}},
            Usage(audio_seconds=2.5),
        ),
        (
            "create_transcription",
            {
                "type": "transcript.text.done",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 9,
                    "input_token_details": {"audio_tokens": 9, "cached_tokens": 1},
                    "output_tokens": 3,
                    "total_tokens": 12,
                },
            },
            Usage(9, 3, 12, 1),
        ),
        (
            "generate_images",
            {"data": [{}], "usage": {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105}},
            Usage(5, 100, 105),
        ),
    ],
)
def test_every_form_of_usage_is_read(
    operation: str, document: dict[str, Any], usage: Usage
) -> None:
    assert metered(document, spec=SPECS[operation]).usage(1) == usage


@pytest.mark.parametrize(
    ("operation", "documents"),
    [
        (
            "create_response",
            [{"type": "response.output_text.delta", "delta": "12345678"}, {"type": "x"}],
        ),
        (
            "create_response",
            [{"object": "response", "output": [{"content": [{"text": "12345678"}]}]}],
        ),
        (
            "create_response",
            [
                {
                    "object": "response",
                    "output": [{"type": "function_call", "arguments": "12345678"}],
                }
            ],
        ),
        ("create_transcription", [{"type": "transcript.text.delta", "delta": "12345678"}]),
        ("create_transcription", [{"text": "12345678"}]),
    ],
)
def test_what_was_not_reported_is_estimated_from_its_text(
    operation: str, documents: list[dict[str, Any]]
) -> None:
    usage = metered(*documents, spec=SPECS[operation]).usage(7)
    assert usage == Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9, estimated=True)


@pytest.mark.parametrize("seconds", [None, "2", -1, True, float("inf")])
def test_a_duration_that_is_none_counts_nothing(seconds: Any) -> None:
    document = {"usage": {"type": "duration", "seconds": seconds}}
    assert metered(document, spec=SPECS["create_transcription"]).usage(3).estimated


def test_a_background_response_is_unfinished_until_it_ends() -> None:
    created = SPECS["create_response"]
    assert metered({"object": "response", "status": "queued"}, spec=created).unfinished
    done = metered(
        {"object": "response", "status": "queued"},
        {"object": "response", "status": "completed"},
        spec=created,
    )
    assert (done.unfinished, done.finish_reason) == (False, "completed")


def begun(background: Any) -> dict[str, Any]:
    response = {"object": "response", "status": "in_progress", "background": background}
    return {"type": "response.in_progress", "response": response}


@pytest.mark.parametrize(
    ("background", "unfinished"), [(True, True), (False, False), (None, False)]
)
def test_a_broken_stream_is_unfinished_only_of_a_background_response(
    background: Any, unfinished: bool
) -> None:
    """The upstream ends what nobody listens to, unless it was told to go on."""
    assert metered(begun(background), spec=SPECS["create_response"]).unfinished is unfinished
