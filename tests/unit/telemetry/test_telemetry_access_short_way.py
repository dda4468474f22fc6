"""The short way to an access line: the same document as the long one, whatever the exchange holds,
and nothing of it redacted by yesterday's secrets."""

from __future__ import annotations

import gc
import io
import json
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix import errors
from aisix.core.endpoints import ENDPOINTS, OTHER
from aisix.core.exchange import Exchange, Payload, Phase, Usage
from aisix.telemetry import access, logs
from aisix.telemetry.access import AccessLogger, ShortWay, access_fields
from aisix.telemetry.lines import LineHandler
from tests.support.builders import (
    CHAT,
    make_alias,
    make_deployment,
    make_exchange,
    make_key,
    make_request,
    make_timings,
)

NOW = 1_700_000_000.0419
UUID = "1c9ce942-5b46-43bb-ba98-3df05e668948"
SECRETS = ("s3cret-of-an-alias", "5b46-43bb", "ümläute\n\\\"'", "completed")

hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            *SECRETS,
            UUID,
            UUID.upper(),
            UUID + "\n",
            "",
            "sk-abcdefgh",
            "Bearer abcdefgh",
            "api_key=abc",
            "x" * 90,
            "\x00\x1b[31m\u2028\ud800",
            '"},{"forged":"',
            "%s %d {0}",
        ]
    ),
    st.text(st.characters(categories=["Lu", "Ll", "Nd"]), max_size=2_000),
    st.tuples(st.text(max_size=5), st.sampled_from(SECRETS), st.text(max_size=5)).map("".join),
)
STRANGE: dict[str, Any] = {
    "threaded": False,
    "service_name": 'edge "1"\n',
    "marks": {"worker": 3, "text": '"\u2028'},
}
tokens = st.integers(0, 2**53)
seconds = st.floats(0, 10_000, allow_nan=False)


@st.composite
def exchanges(draw: Any) -> Exchange:
    """Any exchange that the short way may meet."""
    agent = draw(st.none() | hostile)
    request = make_request(
        draw(st.sampled_from([*ENDPOINTS, OTHER])),
        headers={} if agent is None else {"user-agent": agent},
        request_id=draw(hostile),
        method=draw(st.sampled_from(["POST", "GET"]) | hostile),
        path=draw(hostile),
        client_address=draw(st.sampled_from(["", "192.0.2.7", "::1"]) | hostile),
    )
    names = st.sampled_from(["gpt", "gpt-*", "o3"]) | hostile
    deployment = make_deployment(
        name=draw(names), provider=draw(hostile), provider_key_id=draw(hostile)
    )
    alias = make_alias(name=draw(names), deployment=deployment)
    payload = Payload(document={}, requested=draw(names), stream=draw(st.booleans()))
    marks = {name: draw(st.just(-1_000.0) | seconds) for name in MARKS}
    exchange = make_exchange(
        request=request,
        alias=alias,
        caller=draw(st.none() | st.builds(make_key, id=hostile, display_name=st.none() | hostile)),
        payload=draw(st.none() | st.just(payload)),
        deployment=draw(st.none() | st.just(deployment) | st.just(make_deployment(name="other"))),
        usage=draw(
            st.none()
            | st.builds(Usage, tokens, tokens, tokens, tokens, tokens, estimated=st.booleans())
        ),
        served_model=draw(st.none() | hostile),
        upstream_request_id=draw(st.none() | hostile),
        upstream_status=draw(st.none() | st.integers(100, 599)),
        finish_reason=draw(st.none() | hostile),
        attempts=draw(st.integers(0, 2)),
        status=draw(st.integers(0, 599)),
        phase=draw(st.sampled_from([Phase.DONE, Phase.ABORTED])),
    )
    exchange.timings = make_timings(**marks)
    if draw(st.booleans()):
        exchange.alias = None
    return exchange


MARKS = (
    "dispatched",
    "upstream_first_byte",
    "upstream_last_byte",
    "first_token",
    "first_out",
    "ended",
)


def long_way(handler: LineHandler, exchange: Exchange, now: float) -> str:
    record = logging.makeLogRecord(
        {
            "name": "aisix.access",
            "levelno": logging.INFO,
            "levelname": "INFO",
            "msg": access.EVENT,
            "created": now,
            "fields": access_fields(exchange),
        }
    )
    return handler.format(record) + "\n"


def short_way(handler: LineHandler, **options: int) -> ShortWay:
    assert isinstance(handler.formatter, logs.JsonFormatter)
    return ShortWay(handler, handler.formatter, **options)


@contextmanager
def configured(**options: Any) -> Iterator[tuple[LineHandler, io.StringIO]]:
    out = io.StringIO()
    handler = logs.configure(stream=out, **options)
    try:
        yield handler, out
    finally:
        logs.reset()


@given(st.lists(exchanges(), min_size=1, max_size=6), st.lists(st.sampled_from(SECRETS)))
def test_both_ways_give_the_same_document(generated, secrets):
    with configured(**STRANGE) as (handler, _):
        way = short_way(handler)
        for known in ((), secrets):
            handler.redactor.hide("g", known)
            for exchange in (*generated, *generated):
                short = way.render(exchange, NOW)
                long = long_way(handler, exchange, NOW)
                assert short.isascii()
                assert short.endswith("}\n")
                assert short.count("\n") == 1
                assert list(json.loads(short).items()) == list(json.loads(long).items())


def variations() -> dict[str, Exchange]:
    """Exchanges that differ from `make_exchange()` in one thing each."""
    other = make_deployment(name="other")
    return {
        "nothing": make_exchange(),
        "method": make_exchange(request=make_request(method="PUT")),
        "path": make_exchange(request=make_request(path="/openai/v1/chat/completions")),
        "endpoint": make_exchange(request=make_request(OTHER, path=CHAT.template, method="POST")),
        "agent": make_exchange(request=make_request(headers={"user-agent": "x"})),
        "address": make_exchange(request=make_request(client_address="::1")),
        "no caller": make_exchange(caller=None),
        "caller": make_exchange(caller=make_key(id="key-2")),
        "caller's name": make_exchange(caller=make_key(display_name="team two")),
        "nameless caller": make_exchange(caller=make_key(display_name=None)),
        "stream": make_exchange(stream=True),
        "status": make_exchange(status=201),
        "failure": make_exchange(status=500),
        "upstream status": make_exchange(upstream_status=201),
        "attempts": make_exchange(attempts=2),
        "finish": make_exchange(finish_reason="length"),
        "no alias": replace(make_exchange(), alias=None),
        "alias": make_exchange(alias=make_alias(id="model-1", name="o3")),
        "provider": make_exchange(deployment=make_deployment(provider="other")),
        "deployment": make_exchange(deployment=other),
        "no deployment": make_exchange(
            deployment=None, alias=make_alias(deployment=make_deployment(name="third"))
        ),
        "provider key": make_exchange(deployment=make_deployment(provider_key_id="pk-2")),
        "requested": make_exchange(payload=Payload(document={}, requested="gpt-5")),
        "no payload": make_exchange(payload=None),
        "served": make_exchange(served_model="gpt-5-2026-01-01"),
        "upstream id": make_exchange(upstream_request_id=None),
        "usage": make_exchange(usage=None),
    }


@pytest.mark.parametrize("name", variations())
def test_what_is_kept_for_one_exchange_is_not_shown_for_another(name):
    with configured(threaded=False) as (handler, _):
        way = short_way(handler)
        exchange = variations()[name]
        seen = [way.render(each, NOW) for each in (make_exchange(), exchange, make_exchange())]
        assert json.loads(seen[1]) == json.loads(long_way(handler, exchange, NOW))
        assert (seen[1] == seen[0]) == (name == "nothing")
        assert seen[2] == seen[0]


@given(st.floats(0, 4e9), st.floats(0, 0.01))
def test_both_ways_tell_the_same_time(now, later):
    with configured(threaded=False) as (handler, _):
        way = short_way(handler)
        for moment in (now, now + later, now):
            line = json.loads(way.render(make_exchange(), moment))
            assert line["time"] == logs.timestamp(moment)


def test_texts_are_redacted_by_the_secrets_of_now():
    request = make_request(headers={"user-agent": "agent-of-one"}, request_id=UUID)
    exchange = make_exchange(request=request)
    with configured() as (_, out):
        log = AccessLogger()
        log.write(exchange)
        logs.register_secrets(["agent-of-one", UUID[9:30]], group="resources")
        log.write(exchange)
        logs.register_secrets([], group="resources")
        log.write(exchange)
        logs.flush()
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["user_agent"] for line in lines] == ["agent-of-one", "***", "agent-of-one"]
    assert [line["request_id"] for line in lines] == [UUID, UUID[:9] + "***" + UUID[30:], UUID]


def test_what_is_kept_is_bounded():
    with configured(threaded=False) as (handler, _):
        way = short_way(handler, kept=10)
        for number in range(100):
            way.render(make_exchange(request=make_request(path=f"/{number}")), NOW)
            assert len(way) <= 11
        before = len(way)
        huge = make_request(headers={"user-agent": "u" * access.MAX_KEPT_CHARS})
        assert json.loads(way.render(make_exchange(request=huge), NOW))["user_agent"] == "u" * 256
        assert len(way) == before


def test_neither_the_batch_nor_what_is_kept_holds_an_exchange():
    class Document(dict):
        pass

    with configured():
        document = Document()
        payload = Payload(document=document, requested="gpt-4o-azure")
        AccessLogger().write(make_exchange(payload=payload))
        gone = weakref.ref(document)
        del document, payload
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize(
    "unusual",
    [
        {"error": errors.UpstreamBroken("m", kind="cut"), "phase": Phase.ABORTED},
        {"departed": True, "status": 499, "phase": Phase.ABORTED},
    ],
    ids=["error", "departed"],
)
def test_errors_and_departures_are_told_in_order_among_the_others(unusual):
    with configured() as (_, out):
        log = AccessLogger()
        for exchange in (make_exchange(), make_exchange(**unusual), make_exchange()):
            log.write(exchange)
        logs.flush()
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("error_kind") is not None for line in lines] == [False, True, False]


def test_a_person_at_a_terminal_gets_text():
    with configured(form="text") as (_, out):
        AccessLogger().write(make_exchange())
        logs.flush()
        assert "aisix.access request.completed request_id=req-1" in out.getvalue()


def test_records_that_others_filter_go_the_long_way():
    class Mark(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.mark = 7
            return True

    with configured() as (handler, out):
        handler.addFilter(Mark())
        AccessLogger().write(make_exchange())
        logs.flush()
        assert json.loads(out.getvalue())["mark"] == 7


def test_the_log_may_be_configured_anew_between_two_lines():
    log = AccessLogger()
    with configured() as (_, first):
        log.write(make_exchange())
    with configured(service_name="second") as (_, second):
        log.write(make_exchange())
    assert json.loads(first.getvalue())["service"] == "aisix"
    assert json.loads(second.getvalue())["service"] == "second"
