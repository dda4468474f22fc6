"""The arithmetic of durations, and the closed sets of words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aisix import errors
from aisix.core.exchange import Exchange, Phase
from aisix.telemetry import figures
from tests.support.builders import make_exchange, make_refused, make_timings

WHOLE = {"dispatched": 0.002, "upstream_last_byte": 0.9, "ended": 0.901}
STREAMED = {
    "dispatched": 0.002,
    "upstream_first_byte": 0.4,
    "first_token": 0.45,
    "first_out": 0.401,
    "upstream_last_byte": 2.0,
    "ended": 2.5,
}


def latency_s(exchange: Exchange) -> float:
    return figures.durations(exchange)[0]


def ttft_s(exchange: Exchange) -> float | None:
    return figures.durations(exchange)[1]


def overhead_s(exchange: Exchange) -> float | None:
    return figures.durations(exchange)[2]


def upstream_s(exchange: Exchange) -> float | None:
    return figures.durations(exchange)[3]


def test_latency_runs_from_arrival_to_settlement():
    assert latency_s(make_exchange(marks=WHOLE)) == pytest.approx(0.901)


def test_ttft_runs_from_arrival_to_the_first_content():
    assert ttft_s(make_exchange(stream=True, marks=STREAMED)) == pytest.approx(0.45)


def test_ttft_is_absent_without_a_stream_or_without_content():
    assert ttft_s(make_exchange(marks=STREAMED)) is None
    assert ttft_s(make_exchange(stream=True, marks=WHOLE)) is None


def test_overhead_of_a_whole_answer_is_the_total_less_the_wait_for_azure():
    assert overhead_s(make_exchange(marks=WHOLE)) == pytest.approx(0.003)


def test_overhead_of_a_stream_leaves_out_everything_after_the_first_byte():
    exchange = make_exchange(stream=True, marks=STREAMED)
    assert overhead_s(exchange) == pytest.approx(0.003)


def test_overhead_of_a_stream_counts_though_its_caller_left_later():
    exchange = make_exchange(
        stream=True, marks=STREAMED, departed=True, status=499, phase=Phase.ABORTED
    )
    assert overhead_s(exchange) == pytest.approx(0.003)


@pytest.mark.parametrize(
    "exchange",
    [
        make_refused(),
        make_exchange(marks=WHOLE, attempts=2),
        make_exchange(marks=WHOLE, phase=Phase.ABORTED),
        make_exchange(marks={"dispatched": 0.1, "upstream_first_byte": 0.2, "ended": 0.3}),
        make_exchange(stream=True, marks={"dispatched": 0.1, "ended": 0.3}),
    ],
    ids=["refused", "repaired", "aborted", "no-body", "stream-without-a-byte"],
)
def test_overhead_is_absent_where_it_cannot_be_told(exchange):
    assert overhead_s(exchange) is None


def test_upstream_time_runs_to_the_newest_byte():
    assert upstream_s(make_exchange(marks=WHOLE)) == pytest.approx(0.898)
    headed = make_exchange(marks={"dispatched": 0.1, "upstream_first_byte": 0.3})
    assert upstream_s(headed) == pytest.approx(0.2)
    assert upstream_s(make_refused()) is None


def test_durations_are_never_negative():
    exchange = make_exchange(stream=True)
    exchange.timings = make_timings(
        arrived=9.0, dispatched=-5, upstream_first_byte=-1, upstream_last_byte=-7, ended=-1
    )
    exchange.timings.first_token = exchange.timings.first_out = 1.0
    assert figures.durations(exchange) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        *[(200, "2xx"), (302, "3xx"), (499, "4xx"), (599, "5xx"), (101, "1xx")],
        *[(None, "unknown"), (0, "unknown"), (600, "unknown"), (99, "unknown")],
    ],
)
def test_status_classes_are_a_closed_set(status, word):
    assert figures.status_class(status) == word


FAILURES = [
    (errors.UpstreamRejected("m", status=429, upstream_status=429), "rejected"),
    (errors.UpstreamUnreachable("m"), "unreachable"),
    (errors.UpstreamTimeout("m", phase="connect"), "timeout_connect"),
    (errors.UpstreamTimeout("m", phase="first_byte"), "timeout_first_byte"),
    (errors.UpstreamTimeout("m", phase="idle"), "timeout_idle"),
    (errors.UpstreamTimeout("m", phase="total"), "timeout_total"),
    (errors.UpstreamTimeout("m", phase="some other"), "timeout"),
    (errors.UpstreamBroken("m", kind="cut"), "cut"),
    (errors.UpstreamBroken("m", kind="decode"), "decode"),
    (errors.UpstreamBroken("m", kind="in_band", code="whatever azure says"), "in_band"),
    (errors.UpstreamMisconfigured("m"), "misconfigured"),
    (errors.CredentialUnusable("m"), "credential_unusable"),
    (errors.CredentialRefused("m"), "credential_refused"),
    (errors.CredentialUnavailable("m"), "credential_unavailable"),
    (errors.UpstreamFailed("m"), "other"),
]


@pytest.mark.parametrize(("error", "kind"), FAILURES, ids=[kind for _, kind in FAILURES])
def test_every_upstream_failure_has_a_kind(error, kind):
    assert figures.failure_kind(error) == kind
    assert figures.error_kind(make_exchange(error=error)) == kind


OWN = [
    (errors.BadRequest("m", code="anything"), "invalid_request_error"),
    (errors.Unauthenticated("m", code="api_key_expired"), "invalid_api_key"),
    (errors.BodyTooLarge("m"), "request_too_large"),
    (errors.UnknownAlias("m"), "model_not_found"),
    (errors.LimitExceeded("m", layer="model", limit="rpm", scope="requests"), "rate_limited"),
    (errors.Overloaded("m"), "overloaded"),
    (errors.InternalError("m"), "internal_error"),
]


@pytest.mark.parametrize(("error", "kind"), OWN, ids=[kind for _, kind in OWN])
def test_own_errors_are_no_upstream_failures(error, kind):
    assert figures.failure_kind(error) is None
    assert figures.error_kind(make_refused(error=error)) == kind


def test_a_departed_caller_is_the_reason_whatever_else_went_wrong():
    exchange = make_exchange(departed=True, error=errors.UpstreamUnreachable("m"))
    assert figures.error_kind(exchange) == "client_disconnected"


def test_a_good_exchange_has_no_error_kind():
    assert figures.error_kind(make_exchange()) is None
    assert figures.failure_kind(None) is None


def test_an_error_of_no_known_family_is_other():
    class Strange(errors.GatewayError):
        pass

    assert figures.error_kind(replace(make_exchange(), error=Strange("m"))) == "other"
