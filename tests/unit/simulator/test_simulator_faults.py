"""The error answers: statuses, envelopes and hints."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from aisix.simulator import faults
from aisix.simulator.faults import BY_STATUS, CATALOGUE, Fault, Occasion, build, stream_error
from aisix.simulator.script import parse

NOW = 1_732_400_000.0
UNWRAPPED = {"token", "token_gov", "credentials"}
NO_JSON = {name for name in CATALOGUE if name.startswith(("html", "empty"))} | {
    "badjson",
    "redirect",
}


def fault(script: str) -> Fault:
    parsed = parse(script, errors=faults.NAMES)
    assert parsed.err is not None
    return build(parsed.err, Occasion(now=NOW, script=parsed))


def error(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(fault(f"err-{name}").body)["error"]
    return answer


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - NO_JSON - UNWRAPPED))
def test_the_usual_envelope_has_a_code_and_a_message(name: str) -> None:
    assert error(name)["message"]
    assert "code" in error(name)


@pytest.mark.parametrize("name", sorted(UNWRAPPED))
def test_some_401s_have_no_error_wrapper(name: str) -> None:
    body = json.loads(fault(f"err-{name}").body)
    assert set(body) == {"statusCode", "message"}


@pytest.mark.parametrize(("status", "name"), sorted(BY_STATUS.items()))
def test_a_bare_status_has_its_usual_body(status: int, name: str) -> None:
    assert fault(f"err{status}").status == status
    assert fault(f"err{status}") == fault(f"err-{name}")


def test_a_status_without_an_entry_gets_plain_words() -> None:
    assert fault("err418").status == 418
    assert json.loads(fault("err418").body)["error"]["code"] == "418"


def test_the_wire_spells_the_inner_error_differently_from_the_document() -> None:
    assert "content_filter_result" in error("content_filter")["innererror"]
    assert error("content_filter")["status"] == 400
    assert "content_filter_results" in error("content_filter_spec")["inner_error"]
    assert "innererror" not in error("content_filter_bare")
    assert error("content_policy")["code"] == "content_policy_violation"


def test_odd_codes_are_kept_odd() -> None:
    assert error("data_sources")["code"] == 400
    assert error("server")["code"] is None
    assert " " in error("tenant")["code"]
    assert "callstack" in error("callstack")


def test_bodies_can_be_html_empty_broken_or_huge() -> None:
    assert fault("err-html502").content_type == "text/html"
    assert fault("err-empty500").body == b""
    assert len(fault("err-huge").body) > 1024 * 1024
    with pytest.raises(ValueError):
        json.loads(fault("err-badjson").body)


@pytest.mark.parametrize(
    ("script", "expected", "words"),
    [
        ("err429", {"retry-after": "2"}, "retry after 2 seconds"),
        ("err429-retry7", {"retry-after": "7"}, "retry after 7 seconds"),
        ("err429-retryms1500", {"retry-after-ms": "1500"}, "retry after 2 seconds"),
        ("err429-retryxms2500", {"x-ms-retry-after-ms": "2500"}, "retry after 3 seconds"),
        ("err429-noretry-retry9", {}, "retry after 9 seconds"),
        ("err-short-noretry", {}, "Try again in 2 seconds"),
        ("err-day", {"retry-after": "86400"}, "retry after 86400 seconds"),
        ("err-calls", {"retry-after": "2"}, "call rate limit"),
        ("err-capacity", {"retry-after": "20"}, "high demand"),
        ("err-unavailable", {}, "temporarily unable"),
        ("err-ptu", {"retry-after-ms": "1500", "retry-after": "2"}, "throughput"),
        ("err-ptu-noretry", {}, "throughput"),
        ("err500-retry4", {"retry-after": "4"}, "server had an error"),
    ],
)
def test_retry_hints_come_in_every_form(script: str, expected: dict[str, str], words: str) -> None:
    answer = fault(script)
    hints = {name: value for name, value in answer.headers if "retry-after" in name}
    assert hints == expected
    assert words in json.loads(answer.body)["error"]["message"]


def test_a_retry_hint_can_be_a_date() -> None:
    [(name, value)] = [h for h in fault("err429-retrydate30").headers if h[0] == "retry-after"]
    assert name == "retry-after"
    assert parsedate_to_datetime(value).timestamp() == NOW + 30


def test_policy_rejections_say_so() -> None:
    assert ("policy-id", "ThrowExceptionDueToTrafficDenied") in fault("err-firewall").headers
    assert ("policy-id", "DeploymentRatelimit-Token") in fault("err429").headers


def test_a_stream_error_is_always_json() -> None:
    for err, code in (("server", None), ("html502", "502"), ("capacity", "429")):
        event = stream_error(Occasion(script=parse(f"fail1 err-{err}", errors=faults.NAMES)))
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == code
    assert b"server_error" in stream_error(Occasion(script=parse("fail1")))


def test_an_error_of_the_token_endpoint_is_none_of_ours() -> None:
    assert build("aadsts7000215", Occasion()).status == 500
