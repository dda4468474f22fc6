"""Which events of a session are read, and which are put right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.relay.frames import Interest
from aisix.relay.realtime import DownwardEvents, UpwardEvents
from aisix.usage.realtime import SessionMeter


class Heard:
    """A Meter that remembers."""

    def __init__(self) -> None:
        self.documents: list[Any] = []

    def observe(self, document: Any, /) -> None:
        self.documents.append(document)

    def observe_text(self, size_bytes: int, /) -> None: ...

    def usage(self, prompt_estimate_tokens: int) -> Any: ...


def event(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("beginning", "interest", "content"),
    [
        (b'{"type":"session.created","session":{', Interest.REPLACE, False),
        (b'{ "event_id" : "e", "type" : "session.updated",', Interest.REPLACE, False),
        (b'{"type":"response.done","response"', Interest.READ, False),
        (
            b'{"type":"conversation.item.input_audio_transcription.completed"',
            Interest.READ,
            False,
        ),
        (b'{"type":"conversation.item.input_audio_transcription.delta"', Interest.NONE, False),
        (b'{"type":"response.text.delta",', Interest.READ, True),
        (b'{"type":"response.output_text.delta",', Interest.READ, True),
        (b'{"type":"response.audio_transcript.delta",', Interest.READ, True),
        (b'{"type":"response.function_call_arguments.delta",', Interest.READ, True),
        (b'{"type":"response.audio.delta","delta":"AAAA', Interest.NONE, True),
        (b'{"type":"response.output_audio.delta",', Interest.NONE, True),
        (b'{"type":"error","error":{', Interest.NONE, False),
        (b'{"type":"response.created"', Interest.NONE, False),
        (b'{"type":', Interest.NONE, False),
        (b"\xff\xfe not json", Interest.NONE, False),
        (b"", Interest.NONE, False),
    ],
)
def test_the_beginning_of_an_event_says_what_is_wanted_of_it(
    beginning: bytes, interest: Interest, content: bool
):
    events = DownwardEvents(alias_name="voice", meter=Heard())
    assert events.judge(beginning) is interest
    assert events.saw_content is content


def test_a_session_gets_the_name_that_the_caller_knows():
    meter = Heard()
    events = DownwardEvents(alias_name="voice", meter=meter)
    text = event(type="session.created", session={"model": "gpt-realtime", "instructions": "grüß"})
    edited = events.read(text)
    assert edited == event(
        type="session.created", session={"model": "voice", "instructions": "grüß"}
    ).replace(b": ", b":").replace(b", ", b",")
    assert len(meter.documents) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "session.created", "session": {"model": "voice"}},
        {"type": "session.created", "session": {"model": None}},
        {"type": "session.created", "session": {"voice": "ash"}},
        {"type": "session.created", "session": "gpt"},
        {"type": "response.done", "response": {"usage": None}},
    ],
)
def test_an_event_without_another_name_is_left_as_it_is(fields: dict[str, Any]):
    assert DownwardEvents(alias_name="voice", meter=Heard()).read(event(**fields)) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'"x"', b"\xff", b"[" * 5000])
def test_what_is_no_event_is_left_as_it_is(text: bytes):
    meter = Heard()
    assert DownwardEvents(alias_name="voice", meter=meter).read(text) is None
    up = UpwardEvents(alias_name="voice", deployment_name="rt-prod")
    assert up.read(text) is None
    assert meter.documents == []


def test_the_names_of_a_callers_update_becomes_the_deployments():
    events = UpwardEvents(alias_name="voice", deployment_name="rt-prod")
    assert events.judge(b'{"type":"session.update","session"') is Interest.REPLACE
    assert events.judge(b'{"type":"input_audio_buffer.append","audio":"') is Interest.NONE
    edited = events.read(event(type="session.update", session={"model": "voice", "x": 1}))
    assert edited is not None
    assert json.loads(edited) == {"type": "session.update", "session": {"model": "rt-prod", "x": 1}}


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "session.update", "session": {"model": "other"}},
        {"type": "session.update", "session": {"voice": "ash"}},
        {"type": "session.update", "session": None},
        {"type": "session.update"},
    ],
)
def test_an_update_that_does_not_name_the_alias_is_left_as_it_is(fields: dict[str, Any]):
    events = UpwardEvents(alias_name="voice", deployment_name="rt-prod")
    assert events.read(event(**fields)) is None


def test_an_alias_that_is_the_deployment_needs_no_edit():
    events = UpwardEvents(alias_name="same", deployment_name="same")
    assert events.read(event(type="session.update", session={"model": "same"})) is None


# ── usage ──


def done(**usage: Any) -> dict[str, Any]:
    return {"type": "response.done", "response": {"status": "completed", "usage": usage}}


def test_responses_add_up():
    meter = SessionMeter()
    meter.observe({"type": "session.created", "session": {"model": "gpt-realtime-2025"}})
    meter.observe({"type": "session.updated", "session": {"model": "another"}})
    meter.observe({"type": "response.text.delta", "delta": "hidden by its report"})
    meter.observe(
        done(
            input_tokens=20,
            output_tokens=5,
            total_tokens=25,
            input_token_details={"cached_tokens": 8},
        )
    )
    meter.observe(done(input_tokens=30, output_tokens=7))
    usage = meter.usage(0)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (50, 12, 62)
    assert (usage.cached_tokens, usage.estimated) == (8, False)
    assert (meter.served_model, meter.finish_reason) == ("gpt-realtime-2025", "completed")


def test_transcriptions_add_up_too():
    meter = SessionMeter()
    kind = "conversation.item.input_audio_transcription.completed"
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
    meter.observe({"type": kind, "transcript": "hello", "usage": usage})
    meter.observe({"type": kind, "usage": {"type": "duration", "seconds": 3}})
    assert meter.usage(0).total_tokens == 17
    assert not meter.usage(0).estimated


def test_an_unreported_response_is_estimated_by_its_text():
    meter = SessionMeter()
    meter.observe(done(input_tokens=10, output_tokens=1, total_tokens=11))
    meter.observe({"type": "response.text.delta", "delta": "grüße\ud800"})
    meter.observe_text(31)
    usage = meter.usage(4)
    assert usage.estimated
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (14, 12, 26)


def test_a_session_in_which_nothing_was_asked_has_used_nothing():
    usage = SessionMeter().usage(0)
    assert (usage.total_tokens, usage.estimated) == (0, False)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": "response.done"},
        {"type": "response.done", "response": None},
        {"type": "response.done", "response": {"usage": [], "status": 7}},
        {
            "type": "response.done",
            "response": {"usage": {"input_tokens": -1, "output_tokens": "x"}},
        },
        {"type": "response.done", "response": {"usage": {"total_tokens": True}}},
        {"type": "response.done", "response": {"usage": {"total_tokens": 2**60}}},
        {"type": "x", "delta": {"no": "text"}},
        {"type": "session.created", "session": {"model": 3}},
    ],
)
def test_what_cannot_be_read_is_skipped(document: dict[str, Any]):
    meter = SessionMeter()
    meter.observe(document)
    assert meter.usage(0).total_tokens == 0
    assert (meter.served_model, meter.finish_reason) == (None, None)


def test_what_is_transcribed_by_the_second_is_added_up():
    meter = SessionMeter()
    for seconds in (1.5, 2):
        meter.observe({"type": "x.completed", "usage": {"type": "duration", "seconds": seconds}})
    assert meter.usage(0).audio_seconds == 3.5
