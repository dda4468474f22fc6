"""What a request body must be, and nothing more."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from aisix.core.endpoints import ENDPOINTS
from aisix.errors import BadRequest, UnsupportedEncoding
from aisix.routing.payload import check_headers, parse_payload

CHAT, COMPLETIONS, EMBEDDINGS = ENDPOINTS[:3]
GOOD = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def test_a_good_body_is_read():
    payload = parse_payload(GOOD, CHAT, None)
    assert (payload.requested, payload.stream, payload.include_usage) == ("m", False, False)
    assert list(payload.document) == ["model", "messages"]


def test_stream_and_usage_are_read():
    raw = GOOD[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'
    payload = parse_payload(raw, CHAT, None)
    assert payload.stream
    assert payload.include_usage


def test_an_endpoint_that_cannot_stream_ignores_the_flag():
    assert not parse_payload(b'{"model":"m","input":"x","stream":true}', EMBEDDINGS, None).stream


def test_the_alias_in_the_path_wins():
    """langchain sends `model: null`, AzureOpenAI another name."""
    raw = b'{"model":null,"messages":[{}]}'
    assert parse_payload(raw, CHAT, "gpt").requested == "gpt"
    assert parse_payload(GOOD, CHAT, "gpt").requested == "gpt"


@pytest.mark.parametrize(
    "raw", [b'{"model":"m","messages":[{}],"stream":null,"stream_options":null}']
)
def test_null_means_absent(raw):
    assert not parse_payload(raw, CHAT, None).stream


@pytest.mark.parametrize(
    ("raw", "param", "word"),
    [
        (b"", None, "empty"),
        (b"  ", None, "empty"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "JSON object"),
        (b'"x"', None, "JSON object"),
        (b"{}x", None, "not valid JSON"),
        (b'\xef\xbb\xbf{"model":"m"}', None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "not valid JSON"),
        (b'{"model":"m","messages":[{}],"t":NaN}', None, "NaN"),
        (b'{"model":"m","messages":[{}],"t":Infinity}', None, "Infinity"),
        (b'{"model":"m","messages":[{}],"t":-Infinity}', None, "Infinity"),
        (b"[" * 5000 + b"]" * 5000, None, "nested too deeply"),
        (b'{"messages":[{}]}', "model", "required"),
        (b'{"model":null,"messages":[{}]}', "model", "required"),
        (b'{"model":["x"],"messages":[{}]}', "model", "string"),
        (b'{"model":"","messages":[{}]}', "model", "empty"),
        (b'{"model":"m"}', "messages", "required"),
        (b'{"model":"m","messages":[]}', "messages", "empty"),
        (b'{"model":"m","messages":null}', "messages", "array"),
        (b'{"model":"m","messages":{}}', "messages", "array"),
        (b'{"model":"m","messages":[{}],"stream":"yes"}', "stream", "true or false"),
        (b'{"model":"m","messages":[{}],"stream":1}', "stream", "true or false"),
        (b'{"model":"m","messages":[{}],"stream_options":[]}', "stream_options", "object"),
    ],
)
def test_a_bad_body_is_refused_with_the_field_named(raw, param, word):
    with pytest.raises(BadRequest) as caught:
        parse_payload(raw, CHAT, None)
    assert caught.value.param == param
    assert word in caught.value.message
    assert caught.value.message.startswith("request payload is invalid: ")


@pytest.mark.parametrize(
    "text", ["NaN to Infinity", " NaN", "xNaN,Infinity]", "a:NaN}", "[NaN]", "-Infinity", "NaN"]
)
def test_the_words_nan_and_infinity_in_strings_are_fine(text):
    raw = b'{"model":"m","messages":[{"content":"%s"}]}' % text.encode()
    assert parse_payload(raw, CHAT, None).requested == "m"


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
@pytest.mark.parametrize(
    "value", [b"[%s]", b"[1,%s,2]", b"[\n\t %s ]", b'{"NaN":%s}', b'["xNaN Infinity",%s]']
)
def test_a_constant_is_found_wherever_a_value_may_stand(constant, value):
    raw = b'{"x":"base64NaN/Infinity","model":"m","messages":[{}],"t":%s}' % (value % constant)
    with pytest.raises(BadRequest, match="is not a JSON value"):
        parse_payload(raw, CHAT, None)
    with pytest.raises(BadRequest, match="is not a JSON value"):
        parse_payload(constant, CHAT, None)


def test_lone_surrogates_and_big_integers_survive():
    payload = parse_payload(
        b'{"model":"m","prompt":"\\ud800","seed":123456789012345678901}', COMPLETIONS, None
    )
    assert payload.document["seed"] == 123456789012345678901


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/x+json",
    ],
)
def test_json_content_types_pass(content_type):
    check_headers(HTTPHeaders({"Content-Type": content_type} if content_type else {}))


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_refused(content_type):
    with pytest.raises(BadRequest, match="application/json"):
        check_headers(HTTPHeaders({"Content-Type": content_type}))


def test_compressed_bodies_are_refused_with_words():
    with pytest.raises(UnsupportedEncoding, match="uncompressed"):
        check_headers(HTTPHeaders({"Content-Encoding": "gzip"}))
    check_headers(HTTPHeaders({"Content-Encoding": "identity"}))


def test_a_large_body_of_nothing_but_brackets_is_refused_before_it_is_built():
    body = b'{"model":"m","messages":[' + b"{}," * 1_000_001 + b"{}]}"
    with pytest.raises(BadRequest, match="more than 1000000 objects and arrays"):
        parse_payload(body, CHAT, None)
