"""Hypothesis strategies for Azure-like chat streams: documents, their wire form, and cuts of it.

A stream is drawn as a list of documents (dicts, or bytes for an event that is no JSON document)
and only then written out, so that a test can say what the caller should see of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from aisix.relay.sse import Event, SseSplitter

SERVED_MODEL = "gpt-4o-2024-08-06"
STREAM_ID = "chatcmpl-9mDkqFgYpYtq"
CREATED = 1764000000

FILTER_VERDICT = {"hate": {"filtered": False, "severity": "safe"}}
OFFSETS = {"check_offset": 44, "start_offset": 44, "end_offset": 198}

texts = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["data: [DONE]", "a\n\nb", "\r\n\r\n", '"model"', "日本語", "🙂", "\u2028", "\ud83d"]
)


@dataclass(frozen=True)
class AzureStream:
    """One drawn stream: its documents in order and whether the end mark follows."""

    documents: tuple[dict[str, Any] | bytes, ...]
    done: bool = True


def frame(**fields: Any) -> dict[str, Any]:
    """A chunk that belongs to the stream."""
    return {
        "id": STREAM_ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": SERVED_MODEL,
        "system_fingerprint": "fp_1",
        **fields,
    }


def prompt_annotation() -> dict[str, Any]:
    """Azure's usual first chunk."""
    return {
        "choices": [],
        "created": 0,
        "id": "",
        "model": "",
        "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTER_VERDICT}],
    }


def annotation(index: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
    """A chunk of the asynchronous filter: no delta, no identity."""
    return {
        "choices": [
            {
                "index": index,
                "finish_reason": finish_reason,
                "content_filter_results": FILTER_VERDICT,
                "content_filter_offsets": OFFSETS,
            }
        ],
        "created": 0,
        "id": "",
        "model": "",
        "object": "",
    }


def delta(
    fields: dict[str, Any], *, index: int = 0, finish_reason: str | None = None, **chunk: Any
) -> dict[str, Any]:
    """An ordinary chunk."""
    choice = {
        "index": index,
        "delta": fields,
        "logprobs": None,
        "finish_reason": finish_reason,
        "content_filter_results": {},
    }
    return frame(choices=[choice], **chunk)


def usage_block(prompt: int, completion: int) -> dict[str, Any]:
    """A full usage block, with the nulls Azure puts in."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt // 2, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": completion // 2},
    }


def to_event(document: dict[str, Any] | bytes, *, ascii_only: bool = True) -> bytes:
    """One event with LF line ends; bytes are taken as a whole event."""
    if isinstance(document, bytes):
        return document
    text = json.dumps(document, ensure_ascii=ascii_only, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "surrogatepass") + b"\n\n"


def to_wire(stream: AzureStream, *, ascii_only: bool = True) -> bytes:
    """The whole stream with LF line ends."""
    wire = b"".join(to_event(document, ascii_only=ascii_only) for document in stream.documents)
    return wire + (b"data: [DONE]\n\n" if stream.done else b"")


def taken(splitter: SseSplitter, piece: bytes) -> list[Event]:
    """The events that `piece` completes."""
    splitter.push(piece)
    events = []
    while (event := splitter.take()) is not None:
        events.append(event)
    return events


def split(*pieces: bytes) -> list[Event]:
    """All events of a stream that arrives in `pieces`."""
    splitter = SseSplitter()
    events = [event for piece in pieces for event in taken(splitter, piece)]
    rest = splitter.finish()
    return events if rest is None else [*events, rest]


def cut(wire: bytes, at: Iterable[int]) -> list[bytes]:
    """`wire` in pieces."""
    places = sorted({place % (len(wire) + 1) for place in at} | {0, len(wire)})
    return [wire[a:b] for a, b in itertools.pairwise(places)]


@st.composite
def line_ended(draw: st.DrawFn, wire: bytes) -> bytes:
    """`wire`, each of its line ends replaced by LF or CRLF."""
    lines = wire.split(b"\n")
    ends = draw(
        st.lists(
            st.sampled_from([b"\n", b"\r\n"]), min_size=len(lines) - 1, max_size=len(lines) - 1
        )
    )
    return b"".join(a + b for a, b in zip(lines, [*ends, b""], strict=True))


@st.composite
def azure_streams(draw: st.DrawFn, *, clean: bool = True) -> AzureStream:
    """A stream in any of Azure's moods; `clean` ones finish every choice."""
    n = draw(st.integers(1, 3))
    nulls = {"usage": None} if draw(st.booleans()) else {}
    body: list[dict[str, Any] | bytes] = []
    for index in range(n):
        body.append(delta({"role": "assistant", "content": ""}, index=index, **nulls))
    strays = st.one_of(
        st.builds(annotation, index=st.integers(0, n - 1)),
        st.just(b": keep-alive\n\n"),
        st.just(b'event: extension\ndata: {"note":1}\n\n'),
        st.just(b"data: not json\n\n"),
    )
    pieces = st.one_of(
        st.builds(lambda text: {"content": text}, texts),
        st.builds(lambda text: {"refusal": text}, texts),
        st.builds(
            lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, texts
        ),
    )
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.integers(0, 3)) == 0:
            body.append(draw(strays))
        else:
            body.append(delta(draw(pieces), index=draw(st.integers(0, n - 1)), **nulls))
    if clean:
        for index in range(n):
            reason = draw(st.sampled_from(["stop", "length", "content_filter"]))
            if draw(st.booleans()):
                body.append(delta({}, index=index, finish_reason=reason, **nulls))
            else:
                body.append(annotation(index, reason))
        for _ in range(draw(st.integers(0, 2))):
            body.append(annotation(draw(st.integers(0, n - 1))))
        if draw(st.booleans()):
            counts = usage_block(draw(st.integers(0, 999)), draw(st.integers(0, 999)))
            body.append(frame(choices=[], usage=counts))
    first = [prompt_annotation()] if draw(st.booleans()) else []
    return AzureStream(documents=(*first, *body), done=clean and draw(st.booleans()))


SPELLINGS = st.sampled_from([(",", ":"), (", ", ": ")])
odd_texts = texts | st.sampled_from(
    [
        "",
        '"content":"x"',
        '"model":"y"},',
        "\\",
        '\\"',
        "\t\n",
        "\x7f",
        "}]}",
        '"usage":{"prompt_tokens":9}',
        "aisix puts a probe here",
        "[DONE]",
        "é\u2029",
    ]
)


@st.composite
def wordy_events(draw: st.DrawFn) -> list[bytes]:
    """The events of a stream that is mostly words, as servers of one habit or another send them.

    Every stream has its own order of members, spacing, escapes and extras; some of its chunks
    break the habit.
    """
    separators = draw(SPELLINGS)
    ascii_only = draw(st.booleans())
    prefix = draw(st.sampled_from([b"data: ", b"data:", b"event: chunk\ndata: "]))
    order = draw(st.permutations(["id", "object", "created", "model", "choices", "extras"]))
    inner = draw(st.permutations(["index", "delta", "logprobs", "finish_reason", "verdict"]))
    extras: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"usage": None},
                {"usage": usage_block(7, 3)},
                {"model": None},
                {"error": None, "content": "decoy", "x": {"content": "decoy", "model": "m"}},
                {"cost": 1.50, "n": -0.0, "seed": 2**70, "alias": "my-gpt"},
                {"prompt_filter_results": [{"content_filter_results": FILTER_VERDICT}]},
            ]
        )
    )
    verdict = draw(st.sampled_from([{}, FILTER_VERDICT, None]))
    padded = draw(st.booleans())
    choices = draw(st.integers(1, 3))
    field = draw(st.sampled_from(["content", "refusal", "reasoning", "tool_calls", "text"]))

    more: dict[str, Any] = draw(
        st.sampled_from([{}] * 6 + [{"refusal": "no"}, {"role": "assistant"}])
    )
    custom: dict[str, Any] = draw(st.sampled_from([{}] * 4 + [{"custom": {"input": "x"}}]))
    besides: dict[str, Any] = draw(
        st.sampled_from([{}] * 8 + [{"text": "x"}, {"message": {"content": "x"}}])
    )
    second = draw(st.integers(0, 9)) == 9

    def said(text: str) -> dict[str, Any]:
        if field == "text":
            return {"text": text}
        if field == "tool_calls":
            call = {"index": 0, "function": {"name": None, "arguments": text}, **custom}
            return {"delta": {"tool_calls": [call]}, **besides}
        return {"delta": {field: text, **more}, **besides}

    def event(choice: dict[str, Any], padding: str) -> bytes:
        members: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None, **choice}
        if verdict is not None:
            members["content_filter_results"] = verdict
        names = [("content_filter_results" if name == "verdict" else name) for name in inner]
        names += ["text", "message"]
        told = {name: members[name] for name in names if name in members}
        document = frame(choices=[told, told] if second else [told])
        chunk: dict[str, Any] = {}
        for name in order:
            chunk |= extras if name == "extras" else {name: document[name]}
        if padded:
            chunk["obfuscation"] = padding
        text = json.dumps(chunk, ensure_ascii=ascii_only, separators=separators)
        return prefix + text.encode("utf-8", "surrogatepass") + b"\n\n"

    events = []
    for text in draw(st.lists(odd_texts, min_size=1, max_size=12)):
        choice: dict[str, Any] = {"index": draw(st.integers(0, choices - 1)), **said(text)}
        stray = draw(st.integers(0, 15))
        if stray < 3:
            choice["finish_reason"] = draw(st.sampled_from(["stop", "length"]))
        elif stray == 3:
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.5}]}
        elif stray == 4:
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}}
        events.append(event(choice, draw(st.sampled_from(["", "p9", 'a"b', "ü"]))))
    return events


@st.composite
def mangled(draw: st.DrawFn, wire: bytes) -> bytes:
    """`wire` after some accidents: bytes lost, doubled, changed or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(wire)))
        end = min(len(wire), start + draw(st.integers(0, 9)))
        instead = draw(
            st.binary(max_size=4)
            | st.just(wire[start:end] * 2)
            | st.sampled_from([b'"', b"\\", b"\n", b"\r\n", b"\n\n", b"{", b"}", b",", b"\xff"])
        )
        wire = wire[:start] + instead + wire[end:]
    return wire
