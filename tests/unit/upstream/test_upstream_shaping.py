"""Shaping, applied: bodies in their order, headers by their rules, nothing changed in vain."""

from __future__ import annotations

import json

import pytest

from aisix.core.exchange import Payload
from aisix.core.ports import Deadlines
from aisix.core.shaping import MAX_CUSTOM_HEADERS, Shaping
from aisix.dispatch import FORWARDED_HEADERS
from aisix.routing.payload import parse_payload
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.body import SPLICE_BYTES, render_body
from aisix.upstream.shaping import forwarded_headers, shape_document
from tests.support.builders import CHAT, Headers, make_deployment

REASONING = Shaping(renames=(("max_tokens", "max_completion_tokens"),))


def test_a_renamed_field_replaces_one_that_has_the_name():
    document = {"max_tokens": 5, "max_completion_tokens": 9, "n": 1}
    assert shape_document(document, REASONING) == {"max_completion_tokens": 5, "n": 1}
    assert document == {"max_tokens": 5, "max_completion_tokens": 9, "n": 1}


def test_names_can_be_exchanged_because_renames_are_not_chained():
    shaping = Shaping(renames=(("a", "b"), ("b", "a")))
    assert shape_document({"a": 1, "b": 2}, shaping) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("given", "sent"), [(0, 0.5), (0.5, 0.5), (0.7, 0.7), (1, 1), (2, 1), (1e999, 1)]
)
def test_a_temperature_is_brought_between_its_bounds(given, sent):
    shaping = Shaping(temperature_min=0.5, temperature_max=1)
    assert shape_document({"temperature": given}, shaping) == {"temperature": sent}


@pytest.mark.parametrize("given", [None, "hot", True, [1]])
def test_a_temperature_that_is_no_number_is_left_to_azure(given):
    document = {"temperature": given}
    assert shape_document(document, Shaping(temperature_max=0)) is document


def test_defaults_come_after_renames_and_bounds_and_only_where_nothing_is():
    shaping = Shaping(
        renames=(("heat", "temperature"),),
        temperature_max=1,
        default_fields=(("temperature", 2), ("user", "gateway"), ("seed", None)),
    )
    assert shape_document({"heat": 5, "user": None}, shaping) == {
        "temperature": 1,
        "user": None,
        "seed": None,
    }
    assert shape_document({}, shaping)["temperature"] == 2  # a default is the operator's own word


def test_what_needs_no_change_comes_back_as_it_is():
    document = {"temperature": 1, "user": "u"}
    shaping = Shaping(
        renames=REASONING.renames, temperature_max=1, default_fields=(("user", "gateway"),)
    )
    assert shape_document(document, shaping) is document


@pytest.mark.parametrize("padding", ["", "x" * SPLICE_BYTES])
def test_a_body_of_any_size_is_shaped_and_the_gateway_has_the_last_word(padding):
    raw = json.dumps({"model": "a", "messages": [padding], "max_tokens": 5, "stream": True})
    payload = parse_payload(raw.encode(), CHAT, None)
    before = dict(payload.document)
    sent = render_body(payload, "dep", streaming=True, inject=True, shaping=REASONING)
    assert json.loads(sent) == {
        "model": "dep",
        "messages": [padding],
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert payload.document == before


def test_a_large_body_that_shaping_leaves_alone_keeps_its_bytes():
    raw = b'{"model" : "a", "seed": 1E0, "messages":["%s"]}' % (b"x" * SPLICE_BYTES)
    payload = parse_payload(raw, CHAT, None)
    sent = render_body(payload, "dep", streaming=False, inject=False, shaping=REASONING)
    assert sent == raw.replace(b'"a"', b'"dep"', 1)


# ── headers ─────────────────────────────────────────────────────────────────────────────────────


def passed(headers: dict[str, str], shaping: Shaping | None = None) -> dict[str, str]:
    pairs = forwarded_headers(Headers(headers), FORWARDED_HEADERS, shaping=shaping)
    assert len(pairs) == len(dict(pairs)), "a header would be sent twice"
    return dict(pairs)


def test_without_shaping_only_the_known_headers_pass():
    headers = {"openai-beta": "a", "x-team": "b", "aoai-evals": "ü", "x-ms-enable-preview": ""}
    assert passed(headers) == {"openai-beta": "a"}


def test_patterns_let_further_headers_pass_and_never_a_credential():
    headers = {
        "openai-beta": "a",
        "x-team": "b",
        "x-other": "c\x01",
        "authorization": "Bearer sk-caller",
        "x-api-key": "sk-caller",
        "cookie": "c",
        "host": "h",
        "content-type": "t",
        "accept-language": "l",
        "x-stainless-lang": "python",
        "x-aisix-routing-tags": "t",
        "traceparent": "t",
        "connection": "close, X-Hop",
        "x-hop": "1",
        "x-stripped": "1",
    }
    shaping = Shaping(forward_headers=("*",), strip_headers=("x-stripped",))
    assert passed(headers, shaping) == {"openai-beta": "a", "x-team": "b"}


def test_a_pattern_passes_what_it_matches():
    headers = {"x-team-id": "a", "x-team": "b", "x-id": "c"}
    assert passed(headers, Shaping(forward_headers=("x-*-id", "x-id"))) == {
        "x-team-id": "a",
        "x-id": "c",
    }


def test_what_tells_of_a_credential_passes_only_by_its_full_name():
    headers = {"x-auth-token": "a", "x-amzn-oidc-jwt": "b", "x-session-id": "c", "x-team": "d"}
    assert passed(headers, Shaping(forward_headers=("x-*",))) == {"x-team": "d"}
    named = Shaping(forward_headers=("x-auth-token", "x-*"))
    assert passed(headers, named) == {"x-auth-token": "a", "x-team": "d"}


def test_stripping_wins_over_the_known_headers_too():
    shaping = Shaping(strip_headers=("openai-beta",))
    assert passed({"openai-beta": "a", "aoai-evals": "b"}, shaping) == {"aoai-evals": "b"}


def test_a_default_header_is_not_replaced_by_the_callers():
    shaping = Shaping(default_headers=(("openai-beta", "ours"),), forward_headers=("openai-*",))
    assert passed({"openai-beta": "theirs"}, shaping) == {}


def test_no_more_headers_go_upstream_than_azure_takes():
    headers = dict.fromkeys(FORWARDED_HEADERS, "1") | {f"x-{n}": "1" for n in range(20)}
    for defaults in range(MAX_CUSTOM_HEADERS):
        shaping = Shaping(
            forward_headers=("x-*",),
            default_headers=tuple((f"y-{number}", "1") for number in range(defaults)),
        )
        sent = passed(headers, shaping)
        assert len(sent) + 1 + defaults == MAX_CUSTOM_HEADERS
        assert list(sent)[: len(FORWARDED_HEADERS)] == list(FORWARDED_HEADERS)[: len(sent)]


def test_default_headers_and_trust_make_a_target_of_their_own():
    azure = AzureOpenAI()

    def target(**changes):
        call = azure.build_call(
            CHAT,
            make_deployment(**changes),
            payload=Payload(document={}, requested="alias"),
            inject_stream_options=True,
            token=None,
            forward=(),
            deadlines=Deadlines(),
        )
        return call.target

    plain = target()
    assert target() is plain
    shaped = target(shaping=Shaping(default_headers=(("x-front", "key"),)))
    assert ("x-front", "key") in shaped.headers
    assert "key" not in repr(shaped)
    trusting = target(ca_cert="pem", verify=False)
    assert (trusting.route.ca_cert, trusting.route.verify) == ("pem", False)
    assert (plain.route.ca_cert, plain.route.verify) == (None, None)
    assert len({id(plain), id(shaped), id(trusting), id(target(verify=True))}) == 4
    assert target(shaping=Shaping(renames=(("a", "b"),))) is plain
