"""What the caller sees of a chunk, and what the rewriter knows of its stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.errors import UpstreamBroken
from aisix.relay.rewrite import DONE, StreamRewriter
from aisix.relay.sse import Event
from tests.support.azure_streams import (
    CREATED,
    FILTER_VERDICT,
    STREAM_ID,
    annotation,
    delta,
    frame,
    prompt_annotation,
    split,
    to_event,
    usage_block,
)

SPECS = {spec.operation: spec for spec in ENDPOINTS}
CHAT, COMPLETIONS = SPECS["chat_completions"], SPECS["completions"]


def make_rewriter(
    spec: EndpointSpec = CHAT, *, include_usage: bool = False, keep_extensions: bool = False
) -> StreamRewriter:
    return StreamRewriter(
        spec,
        alias_name="my-gpt",
        include_usage=include_usage,
        keep_extensions=keep_extensions,
        observe=lambda document: None,
    )


def feed(rewriter: StreamRewriter, *documents: dict[str, Any] | bytes) -> bytes:
    """What comes out for these documents."""
    wire = b"".join(to_event(document) for document in documents)
    return b"".join(rewriter.feed(event) for event in split(wire))


def seen(wire: bytes) -> list[Any]:
    """The JSON documents in a stream."""
    events = split(wire)
    return [json.loads(event.data) for event in events if event.data and not event.is_done]


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────


def test_the_model_becomes_the_name_asked_for_and_all_else_stays_in_order() -> None:
    chunk = frame(
        choices=[{"index": 0, "delta": {"content": "a/b", "new": 10**30}, "finish_reason": None}],
        unknown={"x": [1.5, None]},
    )
    out = feed(make_rewriter(), chunk)
    (document,) = seen(out)
    assert document == {**chunk, "model": "my-gpt"}
    assert list(document) == list(chunk)
    assert b"a/b" in out


def test_a_chunk_that_needs_no_edit_passes_as_it_came() -> None:
    wire = b'data:  {"model" : "my-gpt", "choices":[{"delta":{"content":"x"},"index":0}]}\n\n'
    assert feed(make_rewriter(), wire) == wire


def test_extension_fields_go_from_chunk_and_choice() -> None:
    chunk = delta({"content": "x"}, prompt_filter_results=[], content_filters=[])
    chunk["choices"][0]["content_filter_results"] = FILTER_VERDICT
    (document,) = seen(feed(make_rewriter(), chunk))
    assert document == frame(
        model="my-gpt",
        choices=[{"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None}],
    )


def test_fields_of_the_same_name_inside_a_delta_are_not_ours_to_strip() -> None:
    fields = {"content": "x", "content_filters": 1}
    (document,) = seen(feed(make_rewriter(), delta(fields)))
    assert document["choices"][0]["delta"] == fields


@pytest.mark.parametrize(
    "chunk",
    [
        prompt_annotation(),
        annotation(),
        frame(choices=[]),
        frame(choices=[], usage=None, service_tier="default"),
        {"id": "", "prompt_filter_results": []},
        {"usage": usage_block(1, 2)},
        frame(choices=[], usage=usage_block(1, 2)),
    ],
)
def test_a_chunk_with_nothing_for_the_caller_is_dropped(chunk: dict[str, Any]) -> None:
    rewriter = make_rewriter()
    assert feed(rewriter, chunk) == b""
    assert rewriter.delivered == 0
    assert not rewriter.first_content_seen


@pytest.mark.parametrize(
    "chunk",
    [
        frame(choices=[], citations=["https://example.org"], prompt_filter_results=[]),
        frame(choices=[{"index": 0, "content_filter_results": {}, "citation": 1}]),
    ],
)
def test_a_chunk_that_also_carries_something_unknown_is_kept(chunk: dict[str, Any]) -> None:
    (document,) = seen(feed(make_rewriter(), chunk))
    assert "citations" in document or "citation" in document["choices"][0]


def test_only_the_annotating_choice_of_a_mixed_chunk_is_dropped() -> None:
    chunk = delta({"content": "x"}, index=1)
    chunk["choices"] += annotation()["choices"]
    (document,) = seen(feed(make_rewriter(), chunk))
    assert [choice["index"] for choice in document["choices"]] == [1]


def test_a_late_filter_verdict_is_kept_in_the_form_of_the_stream() -> None:
    rewriter = make_rewriter()
    out = feed(
        rewriter,
        prompt_annotation(),
        delta({"content": "x"}),
        delta({}, finish_reason="stop"),
        annotation(0, "content_filter"),
    )
    late = seen(out)[-1]
    assert late == {
        "choices": [{"index": 0, "finish_reason": "content_filter", "delta": {}}],
        "created": CREATED,
        "id": STREAM_ID,
        "model": "my-gpt",
        "object": "chat.completion.chunk",
    }
    assert rewriter.complete


def test_a_finish_without_delta_keeps_an_identity_of_its_own() -> None:
    late: dict[str, Any] = {"id": "own", "object": "o", "created": 7, "model": "m"}
    late["choices"] = [{"index": 0, "finish_reason": "stop"}]
    document = seen(feed(make_rewriter(), delta({"content": "x"}), late))[-1]
    assert (document["id"], document["object"], document["created"]) == ("own", "o", 7)
    assert document["choices"][0]["delta"] == {}


def test_a_late_filter_verdict_of_a_completion_has_an_empty_text() -> None:
    rewriter = make_rewriter(COMPLETIONS)
    first = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}
    text = {**first, "choices": [{"index": 0, "text": "x", "finish_reason": None}]}
    late = {"choices": [{"index": 0, "finish_reason": "content_filter"}], "id": "", "object": ""}
    document = seen(feed(rewriter, text, late))[-1]
    assert document["choices"] == [{"index": 0, "finish_reason": "content_filter", "text": ""}]
    assert (document["id"], document["object"], document["created"]) == (
        "cmpl-1",
        "text_completion",
        5,
    )
    assert document["model"] == "my-gpt"


def test_usage_is_hidden_unless_asked_for() -> None:
    chunks = [
        delta({"content": "x"}, usage=None),
        delta({}, finish_reason="stop", usage=usage_block(1, 2)),
        frame(choices=[], usage=usage_block(1, 2)),
    ]
    hidden = seen(feed(make_rewriter(), *chunks))
    assert len(hidden) == 2
    assert not any("usage" in document for document in hidden)
    shown = seen(feed(make_rewriter(include_usage=True), *chunks))
    assert [document["usage"] for document in shown] == [
        None,
        usage_block(1, 2),
        usage_block(1, 2),
    ]
    assert shown[-1]["choices"] == []


def test_kept_extensions_keep_every_chunk_that_has_them() -> None:
    chunks = [prompt_annotation(), delta({"content": "x"}), annotation()]
    documents = seen(feed(make_rewriter(keep_extensions=True), *chunks))
    assert documents == [{**chunk, "model": "my-gpt"} for chunk in chunks]


def test_kept_extensions_still_mend_a_late_verdict_and_hide_usage() -> None:
    rewriter = make_rewriter(keep_extensions=True)
    out = feed(
        rewriter,
        delta({"content": "x"}),
        annotation(0, "content_filter"),
        frame(choices=[], usage=usage_block(1, 2)),
    )
    late = seen(out)[-1]
    assert late["choices"][0]["delta"] == {}
    assert late["choices"][0]["content_filter_results"] == FILTER_VERDICT
    assert late["id"] == STREAM_ID


@pytest.mark.parametrize(
    "event",
    [
        b": comment\n\n",
        b"event: ping\n\n",
        b"data: not json\n\n",
        b"data: [1,2]\n\n",
        b'data: {"type":"ping"}\n\n',
        b"data: {}\n\n",
        b'event: x\r\nid: 4\r\ndata: {"choices":7,"error":null}\r\n\r\n',
        b"data: " + b"[" * 5000 + b"\n\n",
    ],
)
def test_events_we_do_not_know_pass_as_they_came(event: bytes) -> None:
    assert feed(make_rewriter(), event) == event


def test_the_other_lines_of_an_edited_event_stay() -> None:
    out = feed(make_rewriter(), b'event: chunk\nid: 9\ndata: {"model":\ndata: "m"}\n\n')
    assert out == b'event: chunk\nid: 9\ndata: {"model":"my-gpt"}\n\n'


def test_a_chunk_of_odd_types_is_relayed_and_does_no_harm() -> None:
    odd: dict[str, Any] = {
        "model": None,
        "id": 5,
        "choices": [None, 3, {"index": "x", "delta": "y"}, {"index": [], "text": 0, "delta": None}],
    }
    rewriter = make_rewriter()
    (document,) = seen(feed(rewriter, odd))
    assert document == {**odd, "model": "my-gpt"}
    assert not rewriter.complete


def test_lone_surrogates_and_large_integers_survive_an_edit() -> None:
    out = feed(make_rewriter(), delta({"content": "\ud83d", "n": 2**70}))
    assert seen(out)[0]["choices"][0]["delta"] == {"content": "\ud83d", "n": 2**70}
    assert out.isascii()


def test_text_keeps_the_spelling_of_its_source() -> None:
    chunk = delta({"content": "日本\u2028"})
    assert feed(make_rewriter(), chunk).isascii()
    raw = to_event(chunk, ascii_only=False)
    assert "日本\u2028".encode() in feed(make_rewriter(), raw)
    mixed = raw.replace("\u2028".encode(), b"\\u2028")
    assert feed(make_rewriter(), mixed).isascii()


# ── how far the stream has come ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "x"},
        {"tool_calls": [{"index": 0}]},
        {"refusal": "no"},
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"function_call": {"name": "f"}},
    ],
)
def test_the_first_event_with_something_to_read_is_seen(fields: dict[str, Any]) -> None:
    rewriter = make_rewriter()
    feed(rewriter, prompt_annotation(), delta({"role": "assistant", "content": ""}))
    assert not rewriter.first_content_seen
    feed(rewriter, delta(fields))
    assert rewriter.first_content_seen


def test_the_first_text_of_a_completion_is_seen() -> None:
    rewriter = make_rewriter(COMPLETIONS)
    feed(rewriter, {"choices": [{"index": 0, "text": "", "finish_reason": None}]})
    assert not rewriter.first_content_seen
    feed(rewriter, {"choices": [{"index": 0, "text": "x", "finish_reason": None}]})
    assert rewriter.first_content_seen


def test_a_stream_is_complete_when_every_started_choice_is_finished() -> None:
    rewriter = make_rewriter()
    assert not rewriter.complete
    feed(rewriter, delta({"content": "a"}), delta({"content": "b"}, index=1))
    feed(rewriter, delta({}, finish_reason="stop"))
    assert not rewriter.complete
    feed(rewriter, annotation(2))
    feed(rewriter, delta({}, index=1, finish_reason=""))
    assert not rewriter.complete
    feed(rewriter, delta({}, index=1, finish_reason="length"))
    assert rewriter.complete


def test_a_complete_stream_without_end_mark_is_given_one() -> None:
    rewriter = make_rewriter()
    feed(rewriter, delta({"content": "a"}, finish_reason="stop"))
    assert rewriter.end() == DONE
    assert rewriter.saw_done
    assert rewriter.end() == b""


@pytest.mark.parametrize("documents", [[], [prompt_annotation()], [delta({"content": "a"})]])
def test_an_end_before_the_choices_ended_is_a_cut(documents: list[dict[str, Any]]) -> None:
    rewriter = make_rewriter()
    feed(rewriter, *documents)
    with pytest.raises(UpstreamBroken) as caught:
        rewriter.end()
    assert caught.value.kind == "cut"
    assert caught.value.type == "stream_aborted"
    assert not rewriter.saw_done


def test_nothing_passes_after_the_end_mark() -> None:
    rewriter = make_rewriter()
    assert feed(rewriter, DONE, delta({"content": "a"}), DONE, b'data: {"error":{}}\n\n') == DONE
    assert rewriter.end() == b""
    assert rewriter.delivered == 1


def test_half_an_event_at_the_end_is_not_passed_on() -> None:
    rewriter = make_rewriter()
    feed(rewriter, delta({"content": "a"}))
    assert rewriter.feed(Event(b'data: {"id":"ab\n\n', b'{"id":"ab', None, complete=False)) == b""
    assert rewriter.feed(Event(b": ha\n\n", None, None, complete=False)) == b""


def test_an_unterminated_end_mark_counts() -> None:
    rewriter = make_rewriter()
    (event,) = split(b"data: [DONE]")
    assert rewriter.feed(event) == DONE
    assert rewriter.saw_done


def test_a_form_without_usage_has_no_end_rule_and_only_the_model_is_edited() -> None:
    rewriter = make_rewriter(OTHER)
    out = feed(rewriter, {"model": "m", "choices": [], "usage": None, "content_filters": []})
    assert seen(out) == [{"model": "my-gpt", "choices": [], "usage": None}]
    assert rewriter.end() == b""


# ── errors inside a 200 ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429, "message": "m"}, 429),
        ({"code": "429", "message": "m"}, 429),
        ({"code": "rate_limit_exceeded", "status": 503}, 503),
        ({"code": None, "statusCode": 400}, 400),
        ({"code": "server_error"}, 502),
        ({"code": 200}, 502),
        ({"code": True, "status": "4290"}, 502),
        ({}, 502),
    ],
)
def test_an_error_in_the_stream_is_raised_with_its_status(
    error: dict[str, Any], status: int
) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        feed(make_rewriter(), {"error": error})
    assert caught.value.status == status
    assert (caught.value.type, caught.value.code) == ("upstream_in_band_error",) * 2


def test_the_text_of_an_error_in_the_stream_is_for_the_log_only() -> None:
    secret = "deployment prod-eu at https://acme.openai.azure.com " + "x" * 2000
    with pytest.raises(UpstreamBroken) as caught:
        feed(make_rewriter(), {"error": {"message": secret, "type": secret, "code": secret}})
    assert caught.value.message == "upstream reported an error in the stream"
    assert caught.value.extra == {}
    assert "prod-eu" not in f"{caught.value} {caught.value.code} {caught.value.type}"
    assert "prod-eu" in (caught.value.detail or "")
    assert len(caught.value.detail or "") <= 500


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_content_filter_error_keeps_its_code_and_status(code: str) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        feed(make_rewriter(), {"error": {"code": code, "status": 500}})
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    "event", [b'event: error\ndata: {"message":"x","code":"500"}\n\n', b'data: {"error":"x"}\n\n']
)
def test_other_spellings_of_an_error_are_known(event: bytes) -> None:
    with pytest.raises(UpstreamBroken) as caught:
        feed(make_rewriter(), event)
    assert caught.value.kind == "in_band"


def test_a_null_error_is_none() -> None:
    assert seen(feed(make_rewriter(), delta({"content": "x"}, error=None)))


def test_the_observer_sees_documents_before_they_are_edited() -> None:
    observed: list[Any] = []

    def observe(document: dict[str, Any]) -> None:
        observed.append(json.loads(json.dumps(document)))

    chunk = frame(choices=[], usage=usage_block(1, 1))
    rewriter = StreamRewriter(
        CHAT, alias_name="a", include_usage=False, keep_extensions=False, observe=observe
    )
    feed(rewriter, chunk)
    assert observed == [chunk]
