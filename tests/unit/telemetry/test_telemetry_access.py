"""The access line: what is in it, and what never is."""

from __future__ import annotations

import logging

import pytest

from aisix import errors
from aisix.core.exchange import Payload, Phase, Usage
from aisix.core.ports import AccessLog
from aisix.telemetry import figures
from aisix.telemetry.access import AccessLogger, access_fields, one_line
from tests.support.builders import (
    RESOURCE_KEY,
    make_alias,
    make_deployment,
    make_exchange,
    make_key,
    make_refused,
    make_request,
)


def test_a_good_stream_is_told_in_full():
    request = make_request(headers={"user-agent": "OpenAI/Python 2.0"}, path="/openai/v1/x?a=b")
    exchange = make_exchange(stream=True, request=request)
    assert access_fields(exchange) == {
        "request_id": "req-1",
        "method": "POST",
        "path": "/openai/v1/x",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "outcome": "success",
        "latency_ms": 901.0,
        "ttft_ms": 401.0,
        "overhead_ms": 3.0,
        "upstream_ms": 898.0,
        "stream": True,
        "provider": "azure",
        "model": "gpt-4o-azure",
        "requested_model": "gpt-4o-azure",
        "upstream_model": "gpt4o-prod",
        "served_by_model": "gpt-4o-2024-08-06",
        "provider_key_id": "pk-1",
        "api_key_id": "key-1",
        "api_key_name": "team one",
        "client_source_ip": "192.0.2.7",
        "user_agent": "OpenAI/Python 2.0",
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "cached_tokens": 2,
        "reasoning_tokens": 1,
        "usage_estimated": False,
        "finish_reason": "stop",
        "provider_request_id": "apim-1",
        "upstream_status": 200,
        "attempts": 1,
    }


def test_a_refused_request_names_only_what_is_known():
    error = errors.UnknownAlias("the model does not exist")
    payload = Payload(document={}, requested="invented\nby the caller")
    exchange = make_refused(error=error, status=404, payload=payload, caller=None)
    fields = access_fields(exchange)
    assert fields["status"] == 404
    assert fields["error_kind"] == "model_not_found"
    assert fields["error"] == "the model does not exist"
    assert not {"model", "requested_model", "provider", "api_key_id", "prompt_tokens"} & set(fields)


def test_a_departed_caller_is_a_499():
    exchange = make_exchange(departed=True, status=200, phase=Phase.ABORTED)
    fields = access_fields(exchange)
    assert (fields["status"], fields["error_kind"]) == (499, "client_disconnected")
    assert fields["outcome"] == "client_cancelled"


def test_the_detail_for_operators_comes_before_the_text_for_callers():
    error = errors.UpstreamUnreachable("cannot reach Azure", detail="connect\nrefused\x1b[0m")
    fields = access_fields(make_exchange(error=error, status=502, usage=None))
    assert fields["error"] == "connect refused [0m"
    assert fields["error_kind"] == "unreachable"


def test_estimated_usage_is_marked():
    fields = access_fields(make_exchange(usage=Usage(1, 2, 3, estimated=True)))
    assert fields["usage_estimated"] is True


def test_a_wildcard_alias_shows_the_name_that_was_asked_for():
    payload = Payload(document={}, requested="gpt-5-mini")
    exchange = make_exchange(alias=make_alias(name="gpt-*"), payload=payload)
    fields = access_fields(exchange)
    assert (fields["model"], fields["requested_model"]) == ("gpt-*", "gpt-5-mini")


def test_what_callers_and_azure_spell_is_bounded_and_on_one_line():
    request = make_request(
        method="G\x00T", path="/" + "p" * 9_000, headers={"user-agent": "u\n" * 9_000}
    )
    exchange = make_exchange(
        request=request,
        served_model="s" * 9_000,
        upstream_request_id="r\r\n" + "x" * 9_000,
        finish_reason="f" * 9_000,
        error=errors.UpstreamRejected("m" * 9_000, status=502, upstream_status=500),
    )
    fields = access_fields(exchange)
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    assert all(value.isprintable() for value in texts.values())
    assert len(texts["path"]) == 512
    assert len(texts["error"]) == 2048
    assert len(texts["user_agent"]) == len(texts["served_by_model"]) == 256


def test_no_prompt_no_credential_and_no_query_is_in_the_line():
    request = make_request(path="/v1/chat/completions?api-key=in-the-query")
    payload = Payload(document={"messages": ["the prompt"]}, requested="gpt-4o-azure")
    shown = repr(access_fields(make_exchange(request=request, payload=payload)))
    for secret in ("in-the-query", "the prompt", "caller-key", "hash-1", RESOURCE_KEY):
        assert secret not in shown


def test_metrics_and_line_tell_the_same_time():
    exchange = make_exchange(stream=True)
    fields = access_fields(exchange)
    latency, _, overhead, _ = figures.durations(exchange)
    assert fields["latency_ms"] / 1000 == pytest.approx(latency)
    assert fields["overhead_ms"] / 1000 == pytest.approx(overhead)


def test_one_line_keeps_what_is_printable():
    assert one_line("ünïcode", 4) == "ünïc"
    assert one_line("a\tb\u2028c", 10) == "a b c"


def lines(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aisix.access"]


def test_one_record_at_info_for_each_exchange(caplog):
    caplog.set_level(logging.INFO, "aisix.access")
    log: AccessLog = AccessLogger()
    log.write(make_exchange())
    [record] = lines(caplog)
    assert (record.levelno, record.getMessage()) == (logging.INFO, "request.completed")
    assert vars(record)["fields"]["request_id"] == "req-1"


def test_nothing_is_written_when_it_is_turned_off(caplog):
    caplog.set_level(logging.INFO, "aisix.access")
    AccessLogger(enabled=False).write(make_exchange())
    caplog.set_level(logging.WARNING, "aisix.access")
    AccessLogger().write(make_exchange())
    assert not lines(caplog)


@pytest.mark.logs("access.failed")
def test_a_line_that_cannot_be_made_fails_no_exchange_and_is_told_once(caplog):
    caplog.set_level(logging.INFO, "aisix")
    log = AccessLogger()
    broken = make_exchange(caller=make_key(), deployment=make_deployment())
    broken.timings = None  # type: ignore[assignment]  # the bug that is not to spread
    log.write(broken)
    log.write(broken)
    log.write(make_exchange())
    reports = [record for record in caplog.records if record.msg == "access.failed"]
    assert len(reports) == 1
    assert len(lines(caplog)) == 1
