"""Any cut of any Azure stream: the same bytes out, the same usage, nothing lost.

And both ways of editing one, by template and by document, lead to the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import ujson
from hypothesis import given, settings
from hypothesis import strategies as st

from aisix.core.endpoints import ENDPOINTS, EndpointSpec, UsageForm
from aisix.core.exchange import Usage
from aisix.errors import UpstreamBroken
from aisix.relay.answer import rewrite_answer
from aisix.relay.document import EXTENSION_FIELDS, render, splice_model
from aisix.relay.editor import StreamEditor
from aisix.relay.rewrite import DONE, StreamRewriter
from aisix.relay.sse import SseSplitter
from aisix.usage.meter import UsageMeter
from tests.support.azure_streams import (
    FILTER_VERDICT,
    OFFSETS,
    SERVED_MODEL,
    SPELLINGS,
    AzureStream,
    azure_streams,
    cut,
    delta,
    frame,
    line_ended,
    mangled,
    odd_texts,
    prompt_annotation,
    split,
    taken,
    to_wire,
    usage_block,
    wordy_events,
)

CHAT = next(spec for spec in ENDPOINTS if spec.operation == "chat_completions")

cuts = st.lists(st.integers(0, 2**20), max_size=30)
wires = azure_streams().map(to_wire) | azure_streams(clean=False).map(to_wire)
short_wires = wires.filter(lambda wire: len(wire) < 2_000)


def relayed(
    pieces: list[bytes], *, include_usage: bool = False, keep: bool = False
) -> tuple[bytes, str | None, Usage]:
    """Output, kind of failure and metered usage of a stream that arrives in `pieces`."""
    meter = UsageMeter(CHAT)
    rewriter = StreamRewriter(
        CHAT,
        alias_name="my-gpt",
        include_usage=include_usage,
        keep_extensions=keep,
        observe=meter.observe,
    )
    out = b""
    failure = None
    try:
        for event in split(*pieces):
            out += rewriter.feed(event)
        out += rewriter.end()
    except UpstreamBroken as error:
        failure = error.kind
    return out, failure, meter.usage(11)


def documents(wire: bytes) -> list[Any]:
    found = []
    for event in split(wire):
        try:
            found.append(json.loads(event.data or b""))
        except ValueError:
            continue
    return found


@dataclass
class Run:
    """What came out of a stream for each of its pieces, and all that is known of it then."""

    outs: list[Any]
    copied: int
    known: tuple[Any, ...]


def shown(wire: bytes) -> list[Any]:
    """Events so that two that mean the same are equal: documents as such, all else as bytes."""
    found: list[Any] = []
    for event in split(wire):
        try:
            # NaN, which ujson reads, is not equal to itself; its text is
            document = ujson.dumps(ujson.loads(event.data or b""))
        except ValueError:
            found.append((event.raw, event.complete))
        else:
            found.append((event.with_data(b"document"), event.complete, document))
    return found


def run(pieces: list[bytes], *, by_template: bool, **wishes: Any) -> Run:
    """One stream by way of the templates, or event by event by way of its documents."""
    meter = UsageMeter(CHAT)
    copied = 0

    def observe_text(size_bytes: int) -> None:
        nonlocal copied
        copied += 1
        meter.observe_text(size_bytes)

    rewriter = StreamRewriter(CHAT, observe=meter.observe, **wishes)
    editor = StreamEditor(rewriter, observe_text)
    splitter = SseSplitter()

    def fed(piece: bytes) -> tuple[bytes, UpstreamBroken | None]:
        out = b""
        rest = [] if piece else [splitter.finish()]
        try:
            for event in taken(splitter, piece) if piece else rest:
                out += rewriter.feed(event) if event is not None else b""
            if not piece:
                out += rewriter.end()
        except UpstreamBroken as failure:
            return out, failure
        return out, None

    outs = []
    failure = None
    for piece in [*pieces, b""]:
        out, failure = editor.feed(piece) if by_template else fed(piece)
        outs.append(shown(out))
        if failure is not None or rewriter.saw_done:
            break
    known = (
        failure and (failure.kind, failure.status, failure.detail),
        rewriter.saw_done,
        rewriter.delivered,
        rewriter.complete,
        rewriter.first_content_seen,
        meter.usage(11),
        meter.served_model,
        meter.finish_reason,
    )
    return Run(outs, copied, known)


wishes = st.fixed_dictionaries(
    {
        "alias_name": st.sampled_from(["my-gpt", "mein/grün\u2028", 'a"b', SERVED_MODEL]),
        "include_usage": st.booleans(),
        "keep_extensions": st.booleans(),
    }
)


def same_both_ways(pieces: list[bytes], wish: dict[str, Any]) -> int:
    """Check it; how many runs of chunks were copied."""
    fast = run([piece for piece in pieces if piece], by_template=True, **wish)
    slow = run([piece for piece in pieces if piece], by_template=False, **wish)
    assert fast.outs == slow.outs
    assert fast.known == slow.known
    return fast.copied


@given(wire=wires, at=cuts, wish=wishes)
def test_templates_change_nothing_about_azure_streams(
    wire: bytes, at: list[int], wish: dict[str, Any]
) -> None:
    same_both_ways(cut(wire, at), wish)


@settings(max_examples=max(1, settings().max_examples // 12))  # each is a thousand runs
@given(wire=short_wires, wish=wishes)
def test_templates_change_nothing_wherever_an_azure_stream_is_cut_in_two(
    wire: bytes, wish: dict[str, Any]
) -> None:
    for place in range(1, len(wire)):
        same_both_ways([wire[:place], wire[place:]], wish)


@given(data=st.data(), events=wordy_events(), at=cuts, wish=wishes)
def test_templates_change_nothing_about_streams_of_any_habit(
    data: st.DataObject, events: list[bytes], at: list[int], wish: dict[str, Any]
) -> None:
    wire = b"".join(events) + data.draw(st.sampled_from([b"", b"data: [DONE]\n\n"]))
    same_both_ways(cut(wire, at), wish)
    same_both_ways(events, wish)
    same_both_ways([wire], wish)


@given(data=st.data(), events=wordy_events(), at=cuts, wish=wishes)
def test_templates_change_nothing_about_streams_with_accidents(
    data: st.DataObject, events: list[bytes], at: list[int], wish: dict[str, Any]
) -> None:
    wire = data.draw(mangled(b"".join(events * 2)))
    same_both_ways(cut(wire, at), wish)


def test_a_stream_is_edited_the_same_for_every_cut_in_two_and_byte_by_byte() -> None:
    wish = {"alias_name": "my-gpt", "include_usage": False, "keep_extensions": False}
    documents: list[Any] = [prompt_annotation()]
    documents += [delta({"content": word}) for word in ("Hello", '"wor', "日本")]
    documents += [delta({}, finish_reason="stop"), frame(choices=[], usage=usage_block(4, 7))]
    wire = to_wire(AzureStream(tuple(documents)))
    for at in range(len(wire)):
        assert same_both_ways([wire[:at], wire[at:]], wish)
    assert same_both_ways([wire[at : at + 1] for at in range(len(wire))], wish) == 2


@given(wire=st.binary(max_size=200) | azure_streams().map(to_wire), at=cuts)
def test_joined_events_are_the_bytes_that_came(wire: bytes, at: list[int]) -> None:
    events = split(*cut(wire, at))
    joined = b"".join(event.raw for event in events)
    if events and not events[-1].complete:
        joined = joined.removesuffix(b"\n") if wire.endswith(b"\n") else joined[:-2]
    assert joined == wire.removeprefix(b"\xef\xbb\xbf") or b"\xef\xbb\xbf".startswith(wire)


@given(
    wire=st.lists(
        st.sampled_from([b"\n", b"\r", b"\r\n", b"data: a", b"data:b", b":c", b"event: d"]),
        max_size=24,
    ).map(b"".join),
    at=cuts,
)
def test_events_do_not_depend_on_the_cut_for_any_line_ends(wire: bytes, at: list[int]) -> None:
    whole = split(wire)
    assert split(*cut(wire, at)) == whole
    assert split(*[wire[place : place + 1] for place in range(len(wire))]) == whole


@given(data=st.data(), stream=azure_streams() | azure_streams(clean=False), at=cuts)
def test_output_and_usage_do_not_depend_on_the_cut(
    data: st.DataObject, stream: AzureStream, at: list[int]
) -> None:
    wire = data.draw(line_ended(to_wire(stream, ascii_only=data.draw(st.booleans()))))
    include_usage, keep = data.draw(st.booleans()), data.draw(st.booleans())
    whole = relayed([wire], include_usage=include_usage, keep=keep)
    assert relayed(cut(wire, at), include_usage=include_usage, keep=keep) == whole


@given(data=st.data(), stream=azure_streams())
def test_line_ends_do_not_change_what_the_caller_reads(
    data: st.DataObject, stream: AzureStream
) -> None:
    wire = to_wire(stream)
    out, failure, usage = relayed([data.draw(line_ended(wire))])
    expected_out, expected_failure, expected_usage = relayed([wire])
    assert out.replace(b"\r\n", b"\n") == expected_out
    assert (failure, usage) == (expected_failure, expected_usage)


@given(stream=azure_streams(), include_usage=st.booleans(), keep=st.booleans())
def test_rewriting_twice_changes_nothing_more(
    stream: AzureStream, include_usage: bool, keep: bool
) -> None:
    once, failure, _ = relayed([to_wire(stream)], include_usage=include_usage, keep=keep)
    assert failure is None
    twice, failure, _ = relayed([once], include_usage=include_usage, keep=keep)
    assert (twice, failure) == (once, None)


@given(stream=azure_streams())
def test_a_clean_stream_ends_in_one_end_mark(stream: AzureStream) -> None:
    out, failure, _ = relayed([to_wire(stream)])
    assert failure is None
    assert out.endswith(DONE)
    assert out.count(b"\n" + DONE) <= 1


@given(stream=azure_streams(clean=False))
def test_an_unfinished_stream_gets_no_end_mark(stream: AzureStream) -> None:
    out, failure, _ = relayed([to_wire(stream)])
    assert failure == "cut"
    assert not out.endswith(DONE)


@given(stream=azure_streams(), include_usage=st.booleans())
def test_nothing_but_extensions_usage_and_empty_chunks_is_lost(
    stream: AzureStream, include_usage: bool
) -> None:
    """The output, said the long way: strip every document, drop what then says nothing."""
    expected = []
    identity: dict[str, Any] = {}
    for document in documents(to_wire(stream)):
        if "choices" not in document:
            expected.append(document)
            continue
        identity = identity or ({**document} if document["id"] else {})
        plain = {name: value for name, value in document.items() if name not in EXTENSION_FIELDS}
        if not include_usage:
            plain.pop("usage", None)
        plain["choices"] = [
            {name: value for name, value in choice.items() if name not in EXTENSION_FIELDS}
            for choice in document["choices"]
        ]
        late = [choice for choice in plain["choices"] if "delta" not in choice]
        if late and late[0]["finish_reason"]:
            late[0]["delta"] = {}
            plain |= {name: identity[name] for name in ("id", "object", "created")}
        elif late or (not plain["choices"] and plain.get("usage") is None):
            continue
        expected.append({**plain, "model": "my-gpt"})
    out, _, _ = relayed([to_wire(stream)], include_usage=include_usage)
    assert documents(out) == expected


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["model", "content_filters"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    extra=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "error"), json_values, max_size=4
    ),
    model=st.text(max_size=6),
    padding=st.sampled_from(["", " " * 2000]),
    ascii_only=st.booleans(),
)
def test_a_whole_answer_keeps_all_but_the_model(
    extra: dict[str, Any], model: str, padding: str, ascii_only: bool
) -> None:
    document = {"padding": padding, **extra, "model": model}
    body = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    out = rewrite_answer(
        body, CHAT, alias_name="my/é", keep_extensions=True, observe=lambda seen: None
    )
    assert json.loads(out) == {**document, "model": "my/é"}


extensions: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(sorted(EXTENSION_FIELDS)),
    st.sampled_from([FILTER_VERDICT, OFFSETS, [{"content_filters": {}}], [], None]),
    max_size=2,
)
texts_of_any_size = st.builds(
    lambda text, times: text * times, odd_texts, st.sampled_from([1, 200, 900])
)
decoys: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"of": {"model": "x"}}, {"of": '"model'}, {"model ": "x"}]
)
odd_names = odd_texts | st.sampled_from(["my-gpt", "model", "a/b", 'mein/"grün"', SERVED_MODEL])


@st.composite
def azure_answers(draw: st.DrawFn) -> tuple[EndpointSpec, dict[str, Any]]:
    """A whole answer of any endpoint of Azure's that is metered: its row and its document.

    Its members stand in any order. Among them are fields that nobody knows, and deeper down names
    that would be extensions further up.
    """
    spec = draw(st.sampled_from([spec for spec in ENDPOINTS if spec.usage is not UsageForm.NONE]))
    items = []
    own: dict[str, Any]
    for index in range(draw(st.integers(1, 3))):
        if spec.usage is UsageForm.EMBEDDING:
            numbers = draw(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
            numbers *= draw(st.sampled_from([1, 300]))
            own = {"embedding": draw(st.sampled_from([numbers, "AACAPwAA+D8/" * len(numbers)]))}
        elif spec.usage is UsageForm.COMPLETION:
            own = {"text": draw(texts_of_any_size), "finish_reason": "stop", "logprobs": None}
        else:
            said = {"role": "assistant", "content": draw(texts_of_any_size), **draw(extensions)}
            own = {"message": said, "finish_reason": "stop", "logprobs": {"content": []}}
        items.append({"index": index, **own, **draw(extensions)})
    document: dict[str, Any] = {
        **draw(st.dictionaries(odd_texts, json_values, max_size=2)),
        **draw(decoys),
        "id": draw(odd_texts),
        "model": draw(odd_names | st.none()),
        "data" if spec.usage is UsageForm.EMBEDDING else "choices": items,
        "usage": usage_block(draw(st.integers(0, 999)), draw(st.integers(0, 2**40))),
        **draw(extensions),
    }
    return spec, dict(draw(st.permutations(list(document.items()))))


@st.composite
def spelt(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """`document` in one of the many spellings that mean the same."""
    ascii_only, separators = draw(st.booleans()), draw(SPELLINGS)
    text = json.dumps(document, ensure_ascii=ascii_only, separators=separators)
    if draw(st.booleans()):
        text = text.replace("/", "\\/")
    if draw(st.integers(0, 5)) == 5:
        text = text.replace('"model"', '"mod\\u0065l"', 1)
    return text.encode("utf-8", "surrogatepass")


def edited_plainly(document: dict[str, Any], *, alias_name: str, keep: bool) -> dict[str, Any]:
    """What `rewrite_answer` is to make of a document, said the long way."""

    def plain(holder: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value for name, value in holder.items() if keep or name not in EXTENSION_FIELDS
        }

    edited = plain(document)
    for name in {"choices", "data"} & edited.keys():
        edited[name] = [plain(item) for item in edited[name]]
    return {**edited, "model": alias_name}


@given(data=st.data(), answer=azure_answers(), alias_name=odd_names, keep=st.booleans())
def test_a_whole_answer_is_edited_as_its_document_would_be(
    data: st.DataObject, answer: tuple[EndpointSpec, dict[str, Any]], alias_name: str, keep: bool
) -> None:
    """Down to the order of its members; 1 and 1.0 are not the same."""
    spec, document = answer
    body = data.draw(spelt(document))
    out = rewrite_answer(
        body, spec, alias_name=alias_name, keep_extensions=keep, observe=lambda seen: None
    )
    expected = edited_plainly(json.loads(body), alias_name=alias_name, keep=keep)
    assert json.dumps(json.loads(out)) == json.dumps(expected)


@given(
    document=st.dictionaries(
        st.text(max_size=4) | st.sampled_from(["usage", "data", '"model"', "mod\\u0065l"]),
        json_values,
        max_size=4,
    ),
    model=st.text(max_size=6) | st.sampled_from(["model", '"model":', "\\"]),
    spelling=st.sampled_from([(",", ":"), (" ,\n", "\t: ")]),
    ascii_only=st.booleans(),
    data=st.data(),
)
def test_a_name_changed_in_the_bytes_is_changed_in_the_document(
    document: dict[str, Any],
    model: str,
    spelling: tuple[str, str],
    ascii_only: bool,
    data: st.DataObject,
) -> None:
    text = json.dumps({**document, "model": model}, ensure_ascii=ascii_only, separators=spelling)
    body = text.encode("utf-8", "surrogatepass")
    if data.draw(st.booleans()):
        body = data.draw(mangled(body))
    try:
        expected = ujson.loads(body)
    except ValueError:
        return
    if not isinstance(expected, dict) or "model" not in expected:
        return
    out = splice_model(body, "my/é")
    expected["model"] = "my/é"
    if out is not None:
        assert ujson.dumps(ujson.loads(out)) == ujson.dumps(expected)
        assert ujson.dumps(ujson.loads(render(expected, body))) == ujson.dumps(expected)
