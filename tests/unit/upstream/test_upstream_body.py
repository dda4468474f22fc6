"""The body of a call: small ones are rendered, large ones edited by bytes, both to the same."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.core.exchange import Payload
from aisix.errors import BadRequest
from aisix.routing.payload import parse_payload
from aisix.upstream.body import SPLICE_BYTES, render_body

CHAT = next(spec for spec in ENDPOINTS if spec.operation == "chat_completions")
COMPLETION = next(spec for spec in ENDPOINTS if spec.operation == "completions")
PAD = b"x" * SPLICE_BYTES
MESSAGES = b'"messages":[{"role":"user","content":"' + PAD + b'"}]'


def body_of(
    raw: bytes,
    *,
    spec: EndpointSpec = CHAT,
    alias: str | None = None,
    name: str = "dep",
    inject: bool = True,
) -> bytes:
    """What goes upstream for `raw`; `alias` is the one in the path, if any."""
    payload = parse_payload(raw, spec, alias)
    return render_body(payload, name, streaming=payload.stream, inject=inject)


def test_a_large_body_keeps_every_byte_but_the_name():
    raw = b' {"temperature":1.0e0 ,\r\n\t"model" : "a/b",%s , "seed":1234567890123456789}\n'
    raw %= MESSAGES
    expected = raw.rstrip().replace(b'"a/b"', b'"gpt-4o"')
    assert body_of(raw, name="gpt-4o") == expected


def test_a_small_body_is_rendered_with_its_order_kept():
    raw = b'{ "b" : 1.0, "model":"a", "messages":[ {} ], "a":"\\u00e4/" }'
    assert body_of(raw) == '{"b":1.0,"model":"dep","messages":[{}],"a":"ä/"}'.encode()


def test_the_usage_block_of_a_large_stream_is_asked_for_behind_everything_else():
    raw = b'{"model":"a","stream":true,%s} \r\n' % MESSAGES
    wish = b',"stream_options":{"include_usage":true}}'
    expected = raw.rstrip()[:-1].replace(b'"a"', b'"dep"', 1) + wish
    assert body_of(raw) == expected


@pytest.mark.parametrize("options", [b"null", b"{}", b'{"include_usage":false}', b'{"x":1}'])
def test_a_large_streams_own_options_are_merged(options):
    raw = b'{"model":"a","stream":true,"stream_options":%s,%s}' % (options, MESSAGES)
    before = json.loads(options) or {}
    assert json.loads(body_of(raw))["stream_options"] == {**before, "include_usage": True}
    assert "stream_options" not in json.loads(body_of(raw, inject=False))


def test_a_large_stream_that_asks_for_its_usage_passes_as_it_is():
    raw = b'{"model":"a","stream":true,"stream_options":{ "include_usage":true },%s}' % MESSAGES
    assert body_of(raw) == raw.replace(b'"a"', b'"dep"', 1)


@pytest.mark.parametrize(
    ("model", "place"), [(b"null", b'"dep"'), (b'"other"', b'"dep"'), (b'"\\""', b'"dep"')]
)
def test_the_name_in_the_path_is_written_over_the_one_in_a_large_body(model, place):
    raw = b'{"model":%s,%s}' % (model, MESSAGES)
    assert body_of(raw, alias="a") == raw.replace(model, place, 1)


def test_a_large_body_without_a_model_gets_one_at_its_end():
    raw = b"{%s}" % MESSAGES
    assert body_of(raw, alias="a") == raw[:-1] + b',"model":"dep"}'


@pytest.mark.parametrize("model", [b"5", b'{"model":"x"}', b'["model"]', b"false"])
def test_a_model_in_a_large_body_that_is_no_text_is_written_over_too(model):
    raw = b'{"model":%s,%s}' % (model, MESSAGES)
    assert json.loads(body_of(raw, alias="a"))["model"] == "dep"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"a","model":"b",%s}',
        b'{"\\u006dodel":"b",%s}',
        b'{"model":"a","m\\u006fdel":"b",%s}',
        b'{"mode\\u006C":"a","model":"b",%s}',
        b'{"metadata":{"model":"c"},"mod\\u0065l":"b",%s}',
        b'{"metadata":{"model":"c"},"model":"b",%s}',
        b'{"metadata":"model","model":"b",%s}',
        b'{"metadata":"\\"model\\":\\"c\\"","model":"b",%s}',
        b'{"metadata":"\\\\","model":"b","user":"\\"model\\"",%s}',
    ],
)
def test_the_model_of_a_large_body_is_found_however_it_is_spelt_and_whatever_looks_like_it(raw):
    raw %= MESSAGES
    expected = json.loads(raw) | {"model": "dep"}
    assert json.loads(body_of(raw)) == expected


def test_an_empty_object_with_much_space_in_it_becomes_an_object():
    raw = b"{" + b" " * SPLICE_BYTES + b"}"
    assert json.loads(body_of(raw, spec=COMPLETION, alias="a")) == {"model": "dep"}


@pytest.mark.parametrize("gap", [b"\n", b"\t", b"\r\n"])
def test_a_line_break_in_a_text_goes_upstream_as_json(gap):
    """We read such a text at any size, so Azure must be able to read it at any size."""
    for padding in (b"", PAD):
        raw = b'{"model":"a","messages":[{"content":"one%stwo%s"}]}' % (gap, padding)
        sent = json.loads(body_of(raw))
        assert sent["messages"][0]["content"].encode() == b"one%stwo%s" % (gap, padding)


@pytest.mark.parametrize("gap", [b"\n  ", b"\t", b"\r\n"])
def test_a_large_body_with_line_breaks_between_its_texts_is_not_built_anew(gap):
    raw = gap.join([b"{", b'"model"', b":", b'"a"', b",", b'"seed":1E0,', MESSAGES, b"}"])
    assert body_of(raw) == raw.replace(b'"a"', b'"dep"', 1)


@pytest.mark.parametrize("piece", [b"n", b"\\n", b'\\"', b"\\u0041", b"\n", b"\n\\u0041"])
def test_a_long_name_that_is_written_over_costs_no_memory(piece):
    """The name in the path is the one that counts, so the one in the body can be anything."""
    raw = b'{"model":"%s",%s}' % (piece * 1_000_000, MESSAGES)
    payload = parse_payload(raw, CHAT, "a")
    tracemalloc.start()
    try:
        sent = render_body(payload, "dep", streaming=False, inject=False)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(sent)["model"] == "dep"
    assert peak_bytes < 100_000


def test_many_texts_with_line_breaks_between_them_cost_no_memory():
    raw = b'{"model":"a","input":[\n%s\n""],%s}' % (b'"\\n",' * 300_000, MESSAGES)
    payload = parse_payload(raw, CHAT, "a")
    tracemalloc.start()
    try:
        sent = render_body(payload, "dep", streaming=False, inject=False)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sent) == len(raw) + 2
    assert peak_bytes < len(raw) + 100_000


def test_a_deployment_name_is_spelt_as_json():
    raw = b'{"model":"a",%s}' % MESSAGES
    for name in ('a"b', "ä/b", "\\1\\g<1>"):
        assert json.loads(body_of(raw, name=name))["model"] == name


def test_a_document_that_was_not_read_from_bytes_is_rendered_and_left_unchanged():
    document = {"messages": [PAD.decode()], "stream_options": None}
    payload = Payload(document=document, requested="a", stream=True)
    sent = json.loads(render_body(payload, "dep", streaming=True, inject=True))
    assert sent == {**document, "model": "dep", "stream_options": {"include_usage": True}}
    assert document == {"messages": [PAD.decode()], "stream_options": None}


def test_half_of_a_surrogate_pair_is_sent_as_its_escape():
    for padding in (b"", PAD):
        raw = b'{"model":"a","messages":["\\ud83d%s"]}' % padding
        assert b'"\\ud83d' in body_of(raw)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_a_number_that_cannot_be_written_is_refused_unless_its_spelling_is_kept(number):
    raw = b'{"model":"a","top_p":%s,"messages":[{}]}'
    with pytest.raises(BadRequest):
        body_of(raw % number)
    large = raw % number + b" " * SPLICE_BYTES
    assert b'"top_p":%s,' % number in body_of(large)
