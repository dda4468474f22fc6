"""Edited by bytes or rendered anew: any request that we read goes upstream as the same document."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from aisix.core.endpoints import ENDPOINTS
from aisix.core.exchange import Payload
from aisix.errors import BadRequest
from aisix.routing.payload import parse_payload
from aisix.upstream.body import SPLICE_BYTES, render_body

COMPLETION = next(spec for spec in ENDPOINTS if spec.operation == "completions")

_WORDS = ["model", "stream_options", "dep", '"model":', '\\"model"', "ä\u2028", "😀", "two\nlines"]
_NUMBERS = ["0", "-0", "1E+2", "1.0", "1e-7", "12345678901234567890123", "0.1000000000000000055"]
_GAPS = ["", "", "", " ", "\n", "\r\n\t", "  "]

gaps = st.sampled_from(_GAPS)
plain_texts = st.sampled_from(_WORDS) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=6
)


def _plain(character: str) -> str:
    return json.dumps(character, ensure_ascii=False)[1:-1]


def _raw(character: str) -> str:
    return character if character in "\n\r\t" else _plain(character)


def _escaped(character: str) -> str:
    return "".join(
        f"\\u{unit:04x}" for (unit,) in struct.iter_unpack(">H", character.encode("utf-16-be"))
    )


def _escaped_in_capitals(character: str) -> str:
    return _escaped(character).upper().replace("U", "u")


_WAYS = [_plain, _raw, _escaped, _escaped_in_capitals]


@st.composite
def spelt_texts(draw: st.DrawFn, text: str | None = None) -> str:
    """A text as JSON in one of its many spellings; some hold a line break as it is."""
    if text is None:
        text = draw(plain_texts)
    ways = draw(st.sampled_from([[_plain]] * 4 + [[_raw], [_escaped], _WAYS]))
    pieces = [draw(st.sampled_from(ways))(character) for character in text]
    return f'"{"".join(pieces)}"'


scalars = st.sampled_from([*_NUMBERS, "true", "false", "null"]) | spelt_texts()


@st.composite
def _objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = draw(st.lists(st.tuples(spelt_texts(), values), max_size=3))
    return _spelt_object(draw, members)


def _spelt_object(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    def gap() -> str:
        return draw(gaps)

    inside = ",".join(f"{gap()}{key}{gap()}:{gap()}{value}{gap()}" for key, value in members)
    return f"{{{inside or gap()}}}"


def _arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=3).map(lambda items: f"[{', '.join(items)}]")


any_values = st.recursive(scalars, lambda inner: _objects(inner) | _arrays(inner), max_leaves=6)
options = st.sampled_from(
    ["null", "{}", '{"include_usage":true}', '{ "include_usage" : false, "x":1}', '{"model":"x"}']
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """The bytes of a request: members in any order and spelling, some twice, some missing."""
    member = st.one_of(
        st.tuples(spelt_texts("model"), spelt_texts() | st.sampled_from(["null", "7"])),
        st.tuples(spelt_texts("stream"), st.sampled_from(["true", "false", "null"])),
        st.tuples(spelt_texts("stream_options"), options),
        st.tuples(spelt_texts(), any_values),
    )
    members = draw(st.lists(member, max_size=7))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(members)))
        members.insert(at, ('"pad"', f'"{"x" * SPLICE_BYTES}"'))
    before, after = draw(gaps), draw(gaps)
    text = before + _spelt_object(draw, members) + after
    return text.encode().ljust(draw(st.sampled_from([0, SPLICE_BYTES])))


def read(raw: bytes, path_name: str | None) -> Payload:
    """The payload of a request that is accepted; others do not matter here."""
    try:
        return parse_payload(raw, COMPLETION, path_name)
    except BadRequest:
        assume(False)
        raise


def expected(document: dict[str, Any], *, streaming: bool, inject: bool) -> dict[str, Any]:
    """What Azure is to read."""
    edited = {**document, "model": "gpt-4o"}
    if streaming and inject:
        edited["stream_options"] = {**(edited.get("stream_options") or {}), "include_usage": True}
    elif streaming:
        edited.pop("stream_options", None)
    return edited


def ordered(document: Any) -> Any:
    """A document in which the order of members counts."""
    if isinstance(document, dict):
        return [(name, ordered(value)) for name, value in document.items()]
    return [ordered(item) for item in document] if isinstance(document, list) else document


@given(requests(), st.sampled_from([None, "alias"]), st.booleans())
@example(b'{"model":"a","two\nlines":"' + b"x" * SPLICE_BYTES + b'"}', None, False)
def test_azure_reads_the_callers_document_with_our_changes_in_its_order(
    raw: bytes, path_name: str | None, inject: bool
) -> None:
    payload = read(raw, path_name)
    sent = render_body(payload, "gpt-4o", streaming=payload.stream, inject=inject)
    document = json.loads(raw, strict=False)
    wanted = expected(document, streaming=payload.stream, inject=inject)
    assert ordered(json.loads(sent)) == ordered(wanted)


@given(requests(), st.sampled_from([None, "alias"]), st.booleans())
def test_both_ways_of_writing_a_body_lead_to_the_same_document(
    raw: bytes, path_name: str | None, inject: bool
) -> None:
    payload = read(raw, path_name)
    anew = Payload(
        document=payload.document,
        requested=payload.requested,
        stream=payload.stream,
        include_usage=payload.include_usage,
    )
    one, other = (
        render_body(each, "a/b", streaming=payload.stream, inject=inject)
        for each in (payload, anew)
    )
    assert ordered(json.loads(one)) == ordered(json.loads(other))


@given(st.binary(max_size=40), st.sampled_from([None, "alias"]))
def test_whatever_stands_around_a_large_request_it_is_refused_or_read_right(
    noise: bytes, path_name: str | None
) -> None:
    core = b'{"model":"a","pad":"' + b"x" * SPLICE_BYTES + b'"}'
    for raw in (noise + core, core + noise, core[:-1] + noise + b"}"):
        try:
            payload = parse_payload(raw, COMPLETION, path_name)
        except BadRequest:
            continue
        sent = render_body(payload, "gpt-4o", streaming=payload.stream, inject=True)
        assert json.loads(sent)["model"] == "gpt-4o"
