"""What the simulated model says, and how it is told as JSON and as events."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest

from aisix.simulator.answers import (
    Identity,
    chat_answer,
    embeddings_answer,
    models_answer,
    text_answer,
)
from aisix.simulator.content import compose_chat, compose_text, message_characters, sample
from aisix.simulator.events import ChatStream, text_events
from aisix.simulator.script import parse

IDENTITY = Identity("chatcmpl-1", 1_732_400_000, "gpt-4o-2024-08-06", "fp_1")
HELLO = "Hello from Azure OpenAI! You said: ping"


def body_of(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "ping"}], **more}


def chat(script: str = "", **more: Any) -> Any:
    body = body_of(**more)
    parsed = parse(script)
    return chat_answer(body, compose_chat(body, parsed), script=parsed, identity=IDENTITY)


def stream(script: str = "", *, usage: bool = False, **more: Any) -> list[Any]:
    body = body_of(stream=True, **more)
    if usage:
        body["stream_options"] = {"include_usage": True}
    parsed = parse(script)
    events = list(ChatStream(body, compose_chat(body, parsed), parsed, IDENTITY).events())
    assert all(e.startswith(b"data: ") and e.endswith(b"\n\n") for e in events)
    datas = [e[6:-2].decode() for e in events]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk["choices"]
        if choice["index"] == index and "delta" in choice
    )


def test_the_answer_echoes_the_last_user_message() -> None:
    answer = chat()
    assert answer["choices"][0]["message"]["content"] == HELLO
    assert answer["model"] == "gpt-4o-2024-08-06"
    assert answer["usage"]["total_tokens"] == 1 + 7
    assert answer == chat()


def test_without_words_it_only_greets() -> None:
    answer = chat(messages=[{"role": "user", "content": None}])
    assert answer["choices"][0]["message"]["content"] == "Hello from Azure OpenAI!"


def test_parts_are_read_and_images_counted() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    message = {"role": "user", "content": parts}
    assert chat(messages=[message])["choices"][0]["message"]["content"].endswith("look")
    assert message_characters(message) == 4 + 4 * 85


def test_a_stream_has_azures_order() -> None:
    chunks = stream(usage=True)
    first, role, *deltas, finish, usage, done = chunks
    assert (first["id"], first["object"], first["created"], first["choices"]) == ("", "", 0, [])
    assert first["prompt_filter_results"][0]["prompt_index"] == 0
    assert role["choices"][0]["delta"] == {"content": "", "refusal": None, "role": "assistant"}
    assert role["choices"][0]["content_filter_results"] == {}
    assert all(chunk["usage"] is None for chunk in (role, *deltas, finish))
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["choices"][0]["delta"] == {}
    assert usage["choices"] == []
    assert usage["usage"] == chat()["usage"]
    assert done == "[DONE]"
    assert text_of(chunks) == HELLO


def test_no_usage_unless_asked_for() -> None:
    assert all("usage" not in chunk for chunk in stream()[:-1])
    assert all("usage" not in chunk for chunk in stream("nousage", usage=True)[:-1])


def test_usage_can_sit_on_the_finish_chunk() -> None:
    chunks = stream("finishusage", usage=True)
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["usage"]["completion_tokens"] == 7


def test_annotations_have_no_delta_and_come_after_the_finish_too() -> None:
    chunks = stream("asyncfilter")
    notes = [c for c in chunks[:-1] if c["choices"] and "delta" not in c["choices"][0]]
    assert chunks[-2] is notes[-1]
    assert len(notes) == 3
    assert all((c["id"], c["object"], c["created"]) == ("", "", 0) for c in notes)
    offsets = notes[-1]["choices"][0]["content_filter_offsets"]
    assert offsets == {"check_offset": 43, "end_offset": 43, "start_offset": 4}
    assert notes[-1]["choices"][0]["finish_reason"] is None


def test_a_late_block_is_an_annotation_with_a_finish_reason() -> None:
    late = stream("late")[-2]["choices"][0]
    assert late["finish_reason"] == "content_filter"
    assert late["content_filter_results"]["violence"]["filtered"] is True
    assert "delta" not in late


def test_the_number_and_size_of_pieces_can_be_set() -> None:
    chunks = stream("n50 size3")
    deltas = [c for c in chunks[:-1] if c["choices"] and c["choices"][0]["delta"].get("content")]
    assert len(deltas) == 50
    assert {len(c["choices"][0]["delta"]["content"]) for c in deltas} == {3}
    assert chat("n50")["usage"]["completion_tokens"] == 50


def test_zero_pieces_are_an_empty_answer() -> None:
    assert chat("n0")["choices"][0]["message"]["content"] == ""


def test_every_choice_is_streamed_as_it_is_told_whole() -> None:
    chunks, whole = stream(n=3), chat(n=3)
    for index, choice in enumerate(whole["choices"]):
        assert text_of(chunks, index) == choice["message"]["content"]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


def test_max_tokens_cuts_the_answer() -> None:
    assert chat(max_tokens=2)["choices"][0]["finish_reason"] == "length"
    assert text_of(stream(max_completion_tokens=2)) == "Hello from"


TOOLS = [
    {"type": "function", "function": {"name": "one"}},
    {
        "type": "function",
        "function": {"name": "two", "parameters": {"properties": {"q": {"type": "string"}}}},
    },
]


def test_a_named_tool_is_called() -> None:
    choice = {"type": "function", "function": {"name": "two"}}
    answer = chat(tools=TOOLS, tool_choice=choice)["choices"][0]
    assert answer["message"]["content"] is None
    assert answer["message"]["tool_calls"][0]["function"] == {
        "name": "two",
        "arguments": '{"q": "text"}',
    }
    assert answer["finish_reason"] == "stop"


def test_a_required_tool_call_is_streamed_in_fragments() -> None:
    chunks = stream(tools=TOOLS[1:], tool_choice="required")
    calls = [
        call
        for chunk in chunks[:-1]
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert calls[0]["function"] == {"arguments": "", "name": "two"}
    assert calls[0]["id"].startswith("call_")
    assert "".join(call["function"]["arguments"] for call in calls) == '{"q": "text"}'
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "none", {"type": "function"}, {"function": 7}])
def test_other_tool_choices_talk(choice: Any) -> None:
    assert chat(tools=TOOLS, tool_choice=choice)["choices"][0]["message"]["content"] == HELLO


def test_logprobs_come_when_asked_for() -> None:
    whole = chat(logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    chunks = stream(logprobs=True, top_logprobs=1)
    told = [
        entry
        for chunk in chunks[:-1]
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {}).get("content", [])
    ]
    assert told == whole
    assert len(whole[0]["top_logprobs"]) == 1


def test_refusals_and_filtered_answers_are_told_both_ways() -> None:
    refusal = chat("refuse")["choices"][0]["message"]
    assert refusal["content"] is None
    assert (
        "".join(
            choice["delta"].get("refusal") or ""
            for chunk in stream("refuse")[:-1]
            for choice in chunk["choices"]
        )
        == refusal["refusal"]
    )
    assert chat("filtered")["choices"][0]["finish_reason"] == "content_filter"
    assert stream("filtered")[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_plain_answers_carry_no_extension() -> None:
    assert "filter" not in json.dumps(chat("plain"))
    assert "filter" not in json.dumps(stream("plain asyncfilter"))


def test_the_end_mark_can_be_left_out() -> None:
    assert stream("nodone")[-1]["choices"][0]["finish_reason"] == "stop"


def test_bulk_streams_are_valid_and_as_large_as_told() -> None:
    body = body_of(stream=True, stream_options={"include_usage": True})
    script = parse("bulk1")
    blocks = b"".join(ChatStream(body, compose_chat(body, script), script, IDENTITY).events())
    chunks = [json.loads(part[6:]) for part in blocks.decode().split("\n\n")[:-2]]
    assert len(text_of(chunks)) == 1024 * 1024
    assert chunks[-1]["usage"]["completion_tokens"] == 1024


def completion(script: str = "", **more: Any) -> tuple[Any, list[Any]]:
    body = {"prompt": "ping", **more}
    parsed = parse(script)
    composition = compose_text(body, parsed)
    whole = text_answer(body, composition, script=parsed, identity=IDENTITY)
    events = text_events(
        {**body, "stream_options": {"include_usage": True}},
        composition,
        script=parsed,
        identity=IDENTITY,
    )
    datas = [e[6:-2].decode() for e in events]
    return whole, [data if data == "[DONE]" else json.loads(data) for data in datas]


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"echo": True}, {"prompt": [1, 2, 3]}])
def test_completions_say_the_same_whole_and_streamed(more: dict[str, Any]) -> None:
    whole, chunks = completion(**more)
    for index, choice in enumerate(whole["choices"]):
        pieces = [c["text"] for k in chunks[:-1] for c in k["choices"] if c["index"] == index]
        assert "".join(pieces) == choice["text"]
    assert chunks[-2]["usage"] == whole["usage"]


def test_completions_know_the_form_tokens() -> None:
    assert completion("nodone")[1][-1]["usage"]
    assert completion("finishusage")[1][-2]["usage"]
    assert "filter" not in json.dumps(completion("plain"))


def test_embeddings_are_unit_vectors_that_follow_from_the_input() -> None:
    one, two, again = embeddings_answer({"input": ["a", "b", "a"]}, "m")["data"]
    assert one["embedding"] == again["embedding"] != two["embedding"]
    assert len(one["embedding"]) == 1536
    assert math.isclose(math.fsum(x * x for x in one["embedding"]), 1, abs_tol=1e-4)


def test_base64_embeddings_are_the_same_floats() -> None:
    given = {"input": "a", "dimensions": 8}
    floats = embeddings_answer(given, "m")["data"][0]["embedding"]
    text = embeddings_answer({**given, "encoding_format": "base64"}, "m")["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(text))) == floats


@pytest.mark.parametrize(
    ("given", "rows", "tokens"),
    [("abcdefgh", 1, 2), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3), (["a", "b"], 2, 2)],
)
def test_every_form_of_input_is_counted(given: Any, rows: int, tokens: int) -> None:
    answer = embeddings_answer({"input": given, "dimensions": 4}, "m")
    assert len(answer["data"]) == rows
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_models_are_listed_once_each() -> None:
    names = [m["id"] for m in models_answer(["b", "a", "b"], 1)["data"]]
    assert names == ["a", "b"]


def test_samples_take_the_default_and_stop_at_a_loop() -> None:
    assert sample({"default": 3}) == 3
    assert sample({"allOf": [{"type": "boolean"}]}) is True
    loop: dict[str, Any] = {"properties": {"self": {"$ref": "#"}}}
    assert "self" in sample(loop)
    assert sample({"type": []}) is None
