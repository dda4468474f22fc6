"""Typed events: what is edited, what is held back, what ends a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.core.endpoints import UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.sse import SseSplitter
from aisix.relay.typed import DIALECTS, TypedRewriter
from tests.support.rows import RESPONSE_ID, response, typed

REASON = {"code": "rate_limit_exceeded", "message": "Please retry after 7 seconds."}


class Stream:
    """A rewriter that is fed events."""

    def __init__(self, usage: UsageForm = UsageForm.RESPONSE, *, keep: bool = False) -> None:
        self.seen: list[dict[str, Any]] = []
        self.rewriter = TypedRewriter(
            DIALECTS[usage],
            alias_name="my-alias",
            keep_extensions=keep,
            observe=self.seen.append,
            seal=lambda id: f"sealed-{id}",
        )

    def feed(self, *events: bytes) -> bytes:
        splitter = SseSplitter()
        out = b""
        for event in events:
            splitter.push(event)
            while (found := splitter.take()) is not None:
                out += self.rewriter.feed(found)
        return out


def data(event: bytes) -> dict[str, Any]:
    return json.loads(event.split(b"data: ", 1)[1])


def opening(kind: str = "response.created") -> bytes:
    return typed(kind, response=response(status="in_progress", output=[], usage=None))


def failed(error: dict[str, Any] | None) -> bytes:
    return typed("response.failed", response=response(status="failed", error=error, usage=None))


def test_names_ids_and_filters_are_edited_and_the_event_name_stays():
    document = response(content_filters=[{"blocked": False}], previous_response_id="resp_before")
    out = Stream().feed(typed("response.completed", response=document))
    assert out.startswith(b"event: response.completed\ndata: ")
    shown = data(out)["response"]
    assert shown["model"] == "my-alias"
    assert shown["id"] == f"sealed-{RESPONSE_ID}"
    assert shown["previous_response_id"] == "sealed-resp_before"
    assert "content_filters" not in shown
    assert shown["output"][0]["id"] == "msg_1", "ids inside are Azure's own"


def test_filters_are_kept_when_asked():
    document = response(content_filters=[{"blocked": False}])
    out = Stream(keep=True).feed(typed("response.completed", response=document))
    assert data(out)["response"]["content_filters"] == [{"blocked": False}]


def test_what_needs_no_edit_passes_byte_for_byte():
    event = b'event: x.delta\r\ndata: {"type" : "x.delta","delta":"\xc3\xa9"}\r\n\r\n'
    assert Stream().feed(event) == event
    comment = b": ping\n\n"
    assert Stream().feed(comment) == comment


@pytest.mark.parametrize("kind", ["response.created", "response.queued", "response.in_progress"])
def test_what_only_says_that_work_began_delivers_nothing(kind):
    stream = Stream()
    assert stream.feed(opening(kind))
    assert stream.rewriter.delivered == 0
    stream.feed(typed("response.output_item.added", item={}))
    assert stream.rewriter.delivered == 1
    assert not stream.rewriter.first_content_seen
    stream.feed(typed("response.output_text.delta", delta="x"))
    assert stream.rewriter.first_content_seen


@pytest.mark.parametrize(
    "events",
    [
        [typed("error", error={"type": "too_many_requests", "message": "slow"})],
        [typed("error", code="rate_limit_exceeded", message="slow", param=None)],
        [failed(None), typed("error", error={"code": "rate_limit_exceeded", "message": "slow"})],
        [failed(REASON)],
    ],
    ids=["type", "flat", "after an unexplained failure", "in the failed response"],
)
def test_a_rate_limit_inside_a_success_is_429(events):
    stream = Stream()
    stream.feed(opening())
    with pytest.raises(UpstreamBroken) as limited:
        stream.feed(*events)
    assert (limited.value.status, limited.value.code) == (429, "rate_limit_exceeded")
    assert "slow" not in limited.value.message
    assert stream.rewriter.delivered == 0


def test_a_rate_limit_behind_text_passes_as_the_failure_it_is():
    stream = Stream()
    stream.feed(opening(), typed("response.output_text.delta", delta="x"))
    out = stream.feed(failed(REASON))
    assert data(out)["response"]["error"] == REASON
    assert stream.rewriter.saw_done


def test_another_failure_is_an_answer():
    stream = Stream()
    out = stream.feed(opening(), failed({"code": "server_error", "message": "x"}))
    assert b"server_error" in out
    assert stream.rewriter.saw_done
    assert stream.rewriter.delivered == 1


def test_a_failure_without_a_reason_ends_the_stream_when_nothing_follows():
    stream = Stream()
    assert b"response.failed" in stream.feed(opening(), failed(None))
    assert not stream.rewriter.saw_done
    assert stream.rewriter.end() == b""


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_the_last_event_ends_a_response_and_nothing_passes_after_it(kind):
    stream = Stream()
    stream.feed(opening(), typed(kind, response=response()))
    assert stream.rewriter.complete
    assert stream.rewriter.saw_done
    assert stream.feed(b"data: [DONE]\n\n") == b""


@pytest.mark.parametrize(
    ("usage", "closing"),
    [
        (UsageForm.IMAGE, "image_generation.completed"),
        (UsageForm.IMAGE, "image_edit.completed"),
        (UsageForm.TRANSCRIPT, "transcript.text.done"),
        (UsageForm.SPEECH, "speech.audio.done"),
    ],
)
def test_other_streams_may_say_more_after_an_answer(usage, closing):
    stream = Stream(usage)
    stream.feed(typed(closing))
    assert stream.rewriter.complete
    assert not stream.rewriter.saw_done
    assert stream.feed(typed(closing))
    assert stream.rewriter.end() == b""


@pytest.mark.parametrize("usage", DIALECTS)
def test_a_stream_without_its_last_event_is_cut(usage):
    stream = Stream(usage)
    stream.feed(opening(), typed("some.delta", delta="x"))
    with pytest.raises(UpstreamBroken) as broken:
        stream.rewriter.end()
    assert broken.value.kind == "cut"


def test_half_an_event_before_a_cut_is_not_passed_on():
    splitter = SseSplitter()
    splitter.push(b'event: response.completed\ndata: {"type":"resp')
    assert splitter.take() is None
    rest = splitter.finish()
    assert rest is not None
    assert Stream().rewriter.feed(rest) == b""


def test_an_unknown_event_passes():
    event = typed("response.something_new", value={"a": [1]})
    stream = Stream()
    assert stream.feed(event) == event
    assert stream.seen == [{"type": "response.something_new", "value": {"a": [1]}}]
