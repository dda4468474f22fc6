"""The recorder, driven through every method with real exchanges and read by scraping it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from aisix import __version__, errors
from aisix.core.exchange import Phase, Usage
from aisix.core.ports import Recorder
from aisix.telemetry.catalogue import API_KEY_LABEL, CATALOGUE, Kind, MetricRow
from aisix.telemetry.metrics import PrometheusRecorder
from tests.support.builders import (
    CHAT,
    EMBEDDINGS,
    LIST_MODELS,
    make_alias,
    make_deployment,
    make_exchange,
    make_key,
    make_refused,
    make_snapshot,
)
from tests.support.control import ManualClock
from tests.support.scrape import Levels, scrape, value

NOW = 1_700_000_123.0
SUFFIXES = {Kind.SUMMARY: ("_count", "_sum"), Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
ROWS = {row.name: row for row in CATALOGUE}


def make_recorder(health: Levels | None = None) -> PrometheusRecorder:
    return PrometheusRecorder(clock=ManualClock(NOW), health=health or Levels())


def serve(recorder: PrometheusRecorder, *exchanges) -> None:
    for exchange in exchanges:
        recorder.exchange_started(exchange)
        recorder.exchange_ended(exchange)


def sample_names(row: MetricRow) -> Iterable[str]:
    return [row.name + suffix for suffix in SUFFIXES.get(row.kind, ("",))]


def a_day(recorder: PrometheusRecorder) -> None:
    """Everything that can be counted happens once."""
    recorder.publish(make_snapshot())
    deployment = make_deployment()
    recorder.auth_decided(allowed=True, reason="none")
    recorder.limit_decided(None)
    recorder.limit_decided(errors.LimitExceeded("m", layer="api_key", limit="tpm", scope="tokens"))
    recorder.token_fetched(ok=True, reason="cold")
    recorder.attempt_ended(deployment, "gpt-4o-azure", ok=True, status=200)
    recorder.attempt_ended(deployment, "gpt-4o-azure", ok=False, status=500)
    serve(
        recorder,
        make_exchange(),
        make_exchange(stream=True),
        make_exchange(usage=Usage(3, 4, 7, estimated=True)),
        make_exchange(usage=Usage(audio_seconds=2.5)),
        make_exchange(departed=True, status=499, phase=Phase.ABORTED),
        make_exchange(error=errors.UpstreamBroken("m", kind="cut"), phase=Phase.ABORTED),
        make_refused(error=errors.BodyTooLarge("m"), status=413),
    )


def test_it_is_a_recorder():
    recorder: Recorder = make_recorder()
    assert recorder


def test_every_row_of_the_catalogue_is_emitted_with_exactly_its_labels():
    recorder = make_recorder()
    a_day(recorder)
    found = scrape(recorder)
    for row in CATALOGUE:
        for name in sample_names(row):
            assert found.get(name), f"{name} never appears"
            for labels in found[name]:
                names = {label for label, _ in labels} - {"le"}
                assert names == set(row.labels), name


def test_nothing_of_ours_is_emitted_that_the_catalogue_does_not_hold():
    recorder = make_recorder()
    a_day(recorder)
    declared = {name for row in CATALOGUE for name in sample_names(row)}
    ours = {name for name in scrape(recorder) if name.startswith("aisix_")}
    assert ours == declared


def test_at_most_four_counters_and_nothing_else_carry_the_caller_key():
    rows = [row for row in CATALOGUE if API_KEY_LABEL in row.labels]
    assert len(rows) <= 4
    assert {row.kind for row in rows} == {Kind.COUNTER}


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)
def test_rows_are_well_formed(row):
    assert row.name.startswith("aisix_")
    assert row.name.endswith("_total") == (row.kind is Kind.COUNTER)
    assert bool(row.buckets) == (row.kind is Kind.HISTOGRAM)
    assert list(row.buckets) == sorted(set(row.buckets))
    assert len(set(row.labels)) == len(row.labels)
    assert not {"team_id", "user_id", "user_name", "env_id"} & set(row.labels)
    assert row.help.endswith(".")


def test_a_good_exchange_is_counted_in_full_detail():
    recorder = make_recorder()
    serve(recorder, make_exchange())
    [labels] = scrape(recorder)["aisix_proxy_requests_total"]
    assert dict(labels) == {
        "endpoint": "/v1/chat/completions",
        "inbound_protocol": "openai",
        "provider": "azure",
        "model": "gpt-4o-azure",
        "upstream_model": "gpt4o-prod",
        "provider_key_id": "pk-1",
        "provider_key_name": "azure-prod",
        "api_key_id": "key-1",
        "is_fallback": "false",
        "stream": "false",
        "status": "200",
        "outcome": "success",
    }
    assert value(recorder, "aisix_proxy_failed_requests_total") == 0
    assert value(recorder, "aisix_llm_requests_total") == 1


def test_durations_reach_summaries_and_histograms():
    recorder = make_recorder()
    serve(recorder, make_exchange(stream=True))
    assert value(recorder, "aisix_request_duration_seconds_sum") == pytest.approx(0.901)
    assert value(recorder, "aisix_llm_request_duration_seconds_count") == 1
    e2e = "aisix_request_e2e_latency_seconds_bucket"
    assert value(recorder, e2e, le="0.5", streaming="true") == 0
    assert value(recorder, e2e, le="1.0", streaming="true", status_class="2xx") == 1
    assert value(recorder, "aisix_request_ttft_seconds_sum") == pytest.approx(0.401)
    assert value(recorder, "aisix_llm_time_to_first_token_seconds_count") == 1
    overhead = "aisix_gateway_overhead_seconds_bucket"
    assert value(recorder, overhead, le="0.002", streaming="true") == 0
    assert value(recorder, overhead, le="0.005", streaming="true") == 1


def test_a_stream_without_content_has_no_ttft():
    recorder = make_recorder()
    serve(recorder, make_exchange(stream=True, marks={"dispatched": 0.1, "ended": 0.2}))
    assert value(recorder, "aisix_request_ttft_seconds_count") == 0
    assert value(recorder, "aisix_gateway_overhead_seconds_count") == 0
    assert value(recorder, "aisix_request_e2e_latency_seconds_count") == 1


def test_an_endpoint_that_azure_does_not_serve_is_no_inference():
    recorder = make_recorder()
    serve(
        recorder, make_refused(LIST_MODELS, status=200, phase=Phase.DONE), make_exchange(EMBEDDINGS)
    )
    assert value(recorder, "aisix_proxy_requests_total", endpoint="/v1/models") == 1
    assert value(recorder, "aisix_llm_requests_total") == 1
    assert value(recorder, "aisix_llm_requests_total", endpoint="/v1/embeddings") == 1


def test_tokens_are_counted_once_for_each_settled_usage():
    recorder = make_recorder()
    serve(recorder, make_exchange(), make_exchange(stream=True), make_exchange(usage=None))
    assert value(recorder, "aisix_llm_input_tokens_total", api_key_id="key-1") == 18
    assert value(recorder, "aisix_llm_output_tokens_total") == 10
    assert value(recorder, "aisix_llm_total_tokens_total") == 28
    assert value(recorder, "aisix_tokens_consumed_total", model="gpt-4o-azure") == 28
    assert value(recorder, "aisix_usage_estimated_total") == 0


def test_estimated_usage_says_so():
    recorder = make_recorder()
    serve(recorder, make_exchange(usage=Usage(3, 4, 7, estimated=True)))
    assert value(recorder, "aisix_usage_estimated_total", model="gpt-4o-azure") == 1


def test_a_request_without_a_known_alias_never_carries_the_callers_text():
    recorder = make_recorder()
    payload = make_exchange().payload
    assert payload is not None
    payload = replace(payload, requested="invented-by-the-caller")
    error = errors.UnknownAlias("no such model")
    serve(recorder, make_refused(error=error, status=404, payload=payload))
    assert b"invented" not in recorder.render()[1]
    labels = {"model": "unresolved", "provider": "unknown", "upstream_model": "unknown"}
    assert value(recorder, "aisix_proxy_requests_total", status="404", **labels) == 1
    assert value(recorder, "aisix_proxy_failed_requests_total", outcome="client_error") == 1


def test_a_wildcard_alias_is_counted_under_its_row():
    recorder = make_recorder()
    alias = make_alias(name="gpt-*", deployment=make_deployment(name="*"))
    chosen = make_deployment(name="gpt-5")
    serve(recorder, make_exchange(alias=alias, deployment=chosen))
    assert value(recorder, "aisix_requests_total", model="gpt-*") == 1


def test_a_401_of_ours_is_an_auth_decision_and_nothing_else():
    recorder = make_recorder()
    serve(recorder, make_refused(error=errors.Unauthenticated("m"), status=401, caller=None))
    recorder.auth_decided(allowed=False, reason="unknown_key")
    assert value(recorder, "aisix_requests_total") == 0
    assert value(recorder, "aisix_proxy_requests_total") == 0
    assert (
        value(
            recorder,
            "aisix_auth_decisions_total",
            method="api_key",
            result="denied",
            reason="unknown_key",
        )
        == 1
    )
    assert value(recorder, "aisix_proxy_in_flight_requests") == 0


def test_a_credential_azure_cannot_use_is_counted_although_it_is_a_401():
    recorder = make_recorder()
    serve(recorder, make_exchange(error=errors.CredentialUnusable("m"), status=401, usage=None))
    assert value(recorder, "aisix_requests_total", status="401") == 1
    kind = "credential_unusable"
    assert value(recorder, "aisix_upstream_failures_total", kind=kind, provider="azure") == 1


def test_reasons_come_from_closed_sets():
    recorder = make_recorder()
    recorder.auth_decided(allowed=False, reason="missing_credentials")
    recorder.auth_decided(allowed=False, reason="text of an attacker")
    recorder.token_fetched(ok=False, reason="text of an authority")
    recorder.limit_decided(errors.LimitExceeded("m", layer="x", limit="y", scope="z"))
    recorder.limit_decided(errors.Overloaded("m"))
    assert value(recorder, "aisix_auth_decisions_total", method="none", result="denied") == 1
    assert value(recorder, "aisix_auth_decisions_total", reason="other") == 1
    assert value(recorder, "aisix_token_refreshes_total", result="failure", reason="other") == 1
    refused = "aisix_limiter_decisions_total"
    assert value(recorder, refused, decision="refused", layer="other", limit="other") == 2
    assert value(recorder, "aisix_ratelimit_rejections_total", scope="requests") == 2


def test_concurrency_counts_as_requests():
    recorder = make_recorder()
    recorder.limit_decided(None)
    recorder.limit_decided(
        errors.LimitExceeded("m", layer="model", limit="concurrency", scope="concurrency")
    )
    rejections = "aisix_ratelimit_rejections_total"
    assert value(recorder, rejections, scope="requests", layer="model") == 1
    decisions = "aisix_limiter_decisions_total"
    assert value(recorder, decisions, decision="admitted", layer="none", limit="none") == 1
    assert value(recorder, decisions, decision="refused", limit="concurrency") == 1


def test_in_flight_rises_and_falls():
    recorder = make_recorder()
    exchange = make_exchange()
    recorder.exchange_started(exchange)
    recorder.exchange_started(make_exchange(EMBEDDINGS))
    in_flight = "aisix_proxy_in_flight_requests"
    assert value(recorder, in_flight, endpoint="/v1/chat/completions") == 1
    recorder.exchange_ended(exchange)
    assert value(recorder, in_flight, endpoint="/v1/chat/completions") == 0
    assert value(recorder, in_flight) == 1


def test_a_departed_caller_is_counted_as_such():
    recorder = make_recorder()
    serve(recorder, make_exchange(departed=True, status=499, phase=Phase.ABORTED))
    cancelled = "aisix_proxy_client_cancelled_requests_total"
    assert value(recorder, cancelled, provider_key_name="azure-prod") == 1
    assert value(recorder, "aisix_requests_total", status="499") == 1


def test_a_body_over_the_limit_tells_how_its_reading_ended():
    recorder = make_recorder()
    error = errors.BodyTooLarge("m")
    serve(
        recorder,
        make_refused(error=error, status=413),
        make_refused(error=error, status=499, departed=True, phase=Phase.ABORTED),
    )
    rejections = "aisix_proxy_request_body_limit_rejections_total"
    assert value(recorder, rejections, outcome="cap_reached") == 1
    assert value(recorder, rejections, outcome="client_read_error") == 1


def test_only_attempts_that_reached_azure_count_for_the_deployment():
    recorder = make_recorder()
    deployment = make_deployment()
    recorder.attempt_ended(deployment, "a", ok=True, status=200)
    recorder.attempt_ended(deployment, "a", ok=False, status=429)
    recorder.attempt_ended(deployment, "a", ok=False)
    recorder.attempt_ended(deployment, "a", ok=False, reached=False)
    assert value(recorder, "aisix_deployment_requests_total", model="a") == 3
    assert value(recorder, "aisix_deployment_success_responses_total") == 1
    assert value(recorder, "aisix_deployment_failure_responses_total") == 2
    attempts = "aisix_upstream_attempts_total"
    assert value(recorder, attempts, status_class="2xx") == 1
    assert value(recorder, attempts, status_class="4xx") == 1
    assert value(recorder, attempts, status_class="unknown") == 2


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_state_of_every_configured_deployment_is_shown(level):
    recorder = make_recorder(Levels(level))
    assert value(recorder, "aisix_deployment_state") == 0
    recorder.publish(make_snapshot())
    states = scrape(recorder)["aisix_deployment_state"]
    assert list(states.values()) == [level]


def test_a_published_snapshot_shows_its_revision_and_moment():
    recorder = make_recorder()
    assert value(recorder, "aisix_config_last_reload_success_timestamp_seconds") == 0
    recorder.publish(make_snapshot(revision=12))
    assert value(recorder, "aisix_config_applied_revision") == 12
    assert value(recorder, "aisix_config_last_reload_success_timestamp_seconds") == NOW


def test_series_of_what_was_deleted_are_gone():
    recorder = make_recorder()
    stays = make_alias()
    goes = make_alias(name="old", deployment=make_deployment(name="d2", provider_key_id="pk-2"))
    recorder.publish(make_snapshot(aliases=[stays, goes]))
    for alias in (stays, goes):
        serve(recorder, make_exchange(alias=alias), make_exchange(alias=alias, stream=True))
        recorder.attempt_ended(alias.deployment, alias.name, ok=True, status=200)
    serve(recorder, make_refused(error=errors.UnknownAlias("m"), status=404))
    assert b'model="old"' in recorder.render()[1]

    recorder.publish(make_snapshot(aliases=[stays]))

    body = recorder.render()[1]
    assert b'model="old"' not in body
    assert b"pk-2" not in body
    assert value(recorder, "aisix_requests_total", model="gpt-4o-azure") == 2
    assert value(recorder, "aisix_requests_total", model="unresolved") == 1
    serve(recorder, make_exchange(alias=stays))
    assert value(recorder, "aisix_requests_total", model="gpt-4o-azure") == 3
    assert value(recorder, "aisix_tokens_consumed_total", model="gpt-4o-azure") == 42


def test_series_of_a_deleted_caller_key_are_gone_and_the_rest_stays():
    recorder = make_recorder()
    recorder.publish(make_snapshot())
    serve(recorder, make_exchange(), make_exchange(caller=make_key(id="key-2")))
    recorder.publish(make_snapshot(revision=4))
    assert b"key-2" not in recorder.render()[1]
    assert value(recorder, "aisix_proxy_requests_total") == 1
    assert value(recorder, "aisix_requests_total") == 2


def test_an_alias_led_elsewhere_loses_the_series_of_its_old_deployment():
    recorder = make_recorder()
    recorder.publish(make_snapshot())
    serve(recorder, make_exchange())
    moved = make_alias(deployment=make_deployment(name="gpt4o-next"))
    recorder.publish(make_snapshot(aliases=[moved]))
    assert b"gpt4o-prod" not in recorder.render()[1]
    assert value(recorder, "aisix_requests_total", model="gpt-4o-azure") == 1


def test_what_was_in_flight_at_its_deletion_is_gone_with_the_next_snapshot():
    recorder = make_recorder()
    recorder.publish(make_snapshot(aliases=[], keys=[]))
    serve(recorder, make_exchange())
    recorder.publish(make_snapshot(aliases=[], keys=[], revision=4))
    assert b"gpt-4o-azure" not in recorder.render()[1]


def test_build_and_process_are_shown():
    found = scrape(make_recorder())
    [labels] = found["aisix_build_info"]
    assert dict(labels)["version"] == __version__
    for name in ("process_resident_memory_bytes", "python_info", "python_gc_collections_total"):
        assert name in found


def test_recorders_share_nothing():
    one, other = make_recorder(), make_recorder()
    serve(one, make_exchange())
    assert value(other, "aisix_requests_total") == 0


def test_dropped_log_lines_are_shown():
    recorder = PrometheusRecorder(clock=ManualClock(), health=Levels(), log_lines_dropped=lambda: 5)
    assert value(recorder, "aisix_log_lines_dropped_total") == 5


@pytest.mark.logs("metrics.failed")
def test_a_bug_in_counting_is_logged_once_and_never_raised(caplog):
    recorder = make_recorder()
    broken = make_exchange()
    broken.timings = None  # type: ignore[assignment]  # the bug that is not to spread
    for _ in range(3):
        recorder.exchange_started(broken)
        recorder.exchange_ended(broken)
    recorder.limit_decided("no error at all")  # type: ignore[arg-type]  # another one
    recorder.attempt_ended(None, "gpt", ok=True)  # type: ignore[arg-type]
    recorder.auth_decided(allowed=True, reason=[])  # type: ignore[arg-type]
    reports = [record.where for record in caplog.records if record.msg == "metrics.failed"]
    assert reports == ["exchange_ended", "attempt_ended", "auth_decided"]
    assert value(recorder, "aisix_proxy_in_flight_requests") == 0


def test_no_endpoint_row_is_forgotten():
    recorder = make_recorder()
    serve(recorder, make_exchange(CHAT), make_refused(LIST_MODELS, status=200))
    endpoints = {
        dict(labels)["endpoint"] for labels in scrape(recorder)["aisix_proxy_requests_total"]
    }
    assert endpoints == {"/v1/chat/completions", "/v1/models"}


def test_every_catalogue_name_is_unique():
    assert len(ROWS) == len(CATALOGUE)
