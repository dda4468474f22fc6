"""Which chunks are copied by a template, and that copying goes on through anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.relay.editor import StreamEditor
from aisix.relay.rewrite import DONE, StreamRewriter
from aisix.relay.sse import MAX_EVENT_BYTES
from tests.support.azure_streams import FILTER_VERDICT, delta, frame, split, to_event, usage_block

SPECS = {spec.operation: spec for spec in ENDPOINTS}
CHAT, COMPLETIONS = SPECS["chat_completions"], SPECS["completions"]


class Watched:
    """An editor, how many documents it had to parse and how much text it copied."""

    def __init__(self, spec: EndpointSpec = CHAT, **wishes: Any) -> None:
        self.parsed = 0
        self.text_bytes: list[int] = []
        wishes = {
            "alias_name": "my-gpt",
            "include_usage": False,
            "keep_extensions": False,
            **wishes,
        }
        self.rewriter = StreamRewriter(spec, observe=self._observe, **wishes)
        self.editor = StreamEditor(self.rewriter, self.text_bytes.append)

    def _observe(self, document: dict[str, Any]) -> None:
        self.parsed += 1

    def feed(self, *documents: dict[str, Any] | bytes) -> bytes:
        """What comes out for these documents, each in a piece of its own."""
        outs = [self.editor.feed(to_event(document)) for document in documents]
        assert {failure for _, failure in outs} == {None}
        return b"".join(out for out, _ in outs)


def said(wire: bytes) -> list[Any]:
    """The deltas of a stream."""
    found = [json.loads(event.data) for event in split(wire) if event.data]
    assert {document["model"] for document in found} == {"my-gpt"}
    return [document["choices"][0].get("delta") for document in found]


def word(text: str, **more: Any) -> dict[str, Any]:
    return delta({"content": text}, **more)


def test_after_the_first_word_chunks_are_copied_with_all_around_the_text_edited() -> None:
    watched = Watched()
    out = watched.feed(
        delta({"role": "assistant", "content": ""}), word("Hello"), word(","), word(" you")
    )
    assert watched.parsed == 2
    assert watched.text_bytes == [1, 4]
    assert said(out)[1:] == [{"content": "Hello"}, {"content": ","}, {"content": " you"}]
    assert b"content_filter" not in out
    assert watched.rewriter.delivered == 4


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("", 0),
        ('"quoted" \\ /', 12),
        ("\n\n", 2),
        ("日本", 6),
        ("🙂", 4),
        ("\ud83d", 3),
        ("\u2028", 3),
        ("\x7f", 1),
        ('"},"finish_reason":"stop"', 25),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_texts_of_any_kind_are_copied_and_measured(
    text: str, size_bytes: int, ascii_only: bool
) -> None:
    watched = Watched()
    watched.feed(word("a"))
    out = watched.feed(to_event(word(text), ascii_only=ascii_only))
    assert said(out) == [{"content": text}]
    assert watched.text_bytes == [size_bytes]
    assert watched.parsed == 1


@pytest.mark.parametrize(
    "spelt", [rb"\x", rb"\u12", b"\xff", b"\xc0\x80", b'"', b"\\", b"\x00", b"a\nb"]
)
def test_a_text_that_is_no_json_string_is_not_copied(spelt: bytes) -> None:
    watched = Watched()
    watched.feed(word("a"))
    event = to_event(word("HERE")).replace(b"HERE", spelt)
    assert watched.feed(event) == event
    assert watched.text_bytes == []


def test_a_raw_control_character_is_escaped_by_way_of_the_document() -> None:
    watched = Watched()
    watched.feed(word("a"))
    out = watched.feed(to_event(word("HERE")).replace(b"HERE", b"\t"))
    assert said(out) == [{"content": "\t"}]
    assert watched.parsed == 2


def test_one_piece_of_many_events_comes_out_in_one() -> None:
    watched = Watched()
    wire = b"".join(to_event(word(text)) for text in "abcdef") + to_event(
        delta({}, finish_reason="stop")
    )
    out, _ = watched.editor.feed(wire + DONE)
    assert said(out.removesuffix(DONE)) == [{"content": text} for text in "abcdef"] + [{}]
    assert watched.parsed == 2
    assert watched.text_bytes == [5]
    assert watched.rewriter.saw_done


def test_padding_is_copied_too() -> None:
    watched = Watched()
    chunks = [word(text, obfuscation=text * 3) for text in "abc"]
    documents = [json.loads(event.data or b"") for event in split(watched.feed(*chunks))]
    assert [document["obfuscation"] for document in documents] == ["aaa", "bbb", "ccc"]
    assert watched.parsed == 1


@pytest.mark.parametrize("padding", ['a"b', "é"])
def test_padding_that_is_spelt_with_escapes_goes_the_long_way(padding: str) -> None:
    watched = Watched()
    chunks = [word("a", obfuscation=padding), word("b", obfuscation="x"), word("c", obfuscation="")]
    watched.feed(*chunks, word("d", obfuscation=padding))
    assert watched.parsed == 3
    assert watched.rewriter.delivered == 4


def test_choices_that_take_turns_have_a_template_each() -> None:
    watched = Watched()
    watched.feed(*[word(text, index=place % 2) for place, text in enumerate("abcdef")])
    assert watched.parsed == 2
    assert watched.text_bytes == [1] * 4


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"refusal": "WORD"}},
        {"delta": {"reasoning_content": "WORD", "content": None}},
        {"delta": {"role": "assistant", "reasoning": "WORD", "tool_calls": []}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "WORD"}}]}},
        {"text": "WORD"},
    ],
)
def test_every_kind_of_text_can_be_copied(choice: dict[str, Any]) -> None:
    watched = Watched(COMPLETIONS if "text" in choice else CHAT)
    event = to_event(frame(choices=[{"index": 0, **choice, "finish_reason": None}]))
    out = watched.feed(event, event.replace(b"WORD", b"other"))
    assert watched.parsed == 1
    assert b"other" in out
    assert watched.text_bytes == [5]


VERDICT: dict[str, Any] = {"content_filter_results": FILTER_VERDICT}


@pytest.mark.parametrize(
    "choices",
    [
        [{"delta": {"content": "a"}, "finish_reason": "stop"}, {"delta": {"content": "b"}}],
        [{"delta": {"content": "a"}}, {"delta": {"content": "a"}}],
        [{"delta": {"content": "a", "refusal": "b"}}],
        [{"delta": {"content": "a"}, "text": "b"}],
        [{"message": {"content": "a"}, "text": "b"}],
        [{"message": {"content": "a"}, "delta": {"content": "a"}}],
        [{"delta": {"content": ["a"]}}],
        [{"delta": {"audio": "a"}}],
        [{"delta": {"function_call": {"arguments": "a"}}}],
        [{"delta": {"tool_calls": [{"function": {"arguments": "a"}}] * 2}}],
        [{"delta": {"tool_calls": [{"function": {"arguments": "a"}, "custom": {"input": "b"}}]}}],
        [{"delta": {"tool_calls": [{"function": "a"}]}}],
        [{"delta": {"tool_calls": ["a"]}}],
        [{"delta": {"tool_calls": "a"}}],
        [{"delta": {}}],
        [{"delta": "a"}],
        [VERDICT],
        ["a"],
        "a",
    ],
)
def test_a_chunk_that_says_more_or_other_than_one_text_is_no_pattern(choices: Any) -> None:
    watched = Watched(keep_extensions=True)
    chunk = frame(choices=choices)
    first = word("unlike", index=7)
    outs = [watched.feed(first), watched.feed(chunk), watched.feed(chunk)]
    assert watched.parsed == 3
    assert outs[1] == outs[2]
    assert watched.text_bytes == []


def test_a_chunk_with_one_finish_among_several_choices_is_no_pattern() -> None:
    watched = Watched()
    watched.feed(word("a"), word("b", index=1), word("c", finish_reason="stop"))
    watched.feed(word("d", finish_reason="stop"))
    assert watched.parsed == 4


def test_a_chunk_with_crs_is_no_pattern() -> None:
    watched = Watched()
    event = to_event(word("a")).replace(b"\n", b"\r\n")
    watched.feed(event, event)
    assert watched.parsed == 2


def test_the_text_is_found_among_look_alikes() -> None:
    watched = Watched()
    decoys = {"content": "a", "x": [{"content": "a"}, {"content": 1}, "content"]}
    chunks = [{**decoys, **word(text), "y": {"content": "a"}} for text in ("a", "b")]
    out = watched.feed(*chunks)
    assert said(out) == [{"content": "a"}, {"content": "b"}]
    documents = [json.loads(event.data or b"") for event in split(out)]
    assert {json.dumps([d["content"], d["x"], d["y"]]) for d in documents} == {
        json.dumps(["a", decoys["x"], {"content": "a"}])
    }
    assert watched.parsed == 1


@pytest.mark.parametrize(
    "hidden", [b'"\\u0063ontent":"WORD"', b'"content":"x","\\u0063ontent":"WORD"']
)
def test_a_text_whose_place_is_not_found_is_no_pattern(hidden: bytes) -> None:
    watched = Watched()
    event = to_event(word("HERE")).replace(b'"content":"HERE"', hidden)
    out = watched.feed(event, event)
    assert said(out) == [{"content": "WORD"}] * 2
    assert watched.parsed == 2


@pytest.mark.parametrize("place", ["id", "alias"])
def test_words_that_look_like_our_probe_do_no_harm(place: str) -> None:
    probe = "aisix puts a probe here"
    watched = Watched(alias_name=probe if place == "alias" else "my-gpt")
    chunks = [{**word(text), **({"id": probe} if place == "id" else {})} for text in ("a", probe)]
    out = watched.feed(*chunks)
    documents = [json.loads(event.data or b"") for event in split(out)]
    assert [document["choices"][0]["delta"]["content"] for document in documents] == ["a", probe]
    assert {document[{"id": "id", "alias": "model"}[place]] for document in documents} == {probe}
    assert watched.parsed == 2


def test_a_stream_whose_chunks_all_differ_is_not_learnt_from_for_ever() -> None:
    watched = Watched()
    watched.feed(*[word("a", cost=number) for number in range(8)])
    assert watched.parsed == 8
    watched.feed(*[word("a", cost=7)] * 2)
    assert watched.parsed == 10


def test_copying_goes_on_after_what_is_not_copied() -> None:
    watched = Watched(include_usage=True)
    usage = frame(choices=[], usage=usage_block(1, 2))
    out = watched.feed(word("a"), b": ping\n\n", word("b"), usage, b"\n", word("c"))
    assert watched.parsed == 2
    assert watched.text_bytes == [1, 1]
    assert out.count(b": ping\n\n") == 1
    assert watched.rewriter.delivered == 4


def test_nothing_is_copied_after_the_end_mark() -> None:
    watched = Watched()
    out, _ = watched.editor.feed(to_event(word("a")) + DONE + to_event(word("b")))
    assert out.endswith(DONE)
    assert watched.text_bytes == []


def test_an_event_over_the_bound_is_refused_though_a_template_knows_it() -> None:
    watched = Watched()
    watched.feed(word("a"))
    out, failure = watched.editor.feed(to_event(word("b")) + to_event(word("x" * MAX_EVENT_BYTES)))
    assert said(out) == [{"content": "b"}]
    assert failure is not None
    assert failure.kind == "decode"
