"""One scrape over several workers: sums, successors, what was deleted, regions that are full."""

from __future__ import annotations

import pytest

from aisix import errors
from aisix.core.ports import Recorder
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.telemetry.shared import SeriesRegion
from tests.support.builders import (
    CHAT,
    EMBEDDINGS,
    make_alias,
    make_deployment,
    make_exchange,
    make_key,
    make_refused,
    make_snapshot,
)
from tests.support.control import ManualClock
from tests.support.scrape import Labels, Levels, scrape, value

KEPT = make_alias()
GONE = make_alias(name="old", deployment=make_deployment(name="d2", provider_key_id="pk-2"))
BOTH = make_snapshot(aliases=[KEPT, GONE], keys=[make_key(), make_key(id="key-2", key_hash="h2")])
ONE = make_snapshot(aliases=[KEPT], keys=[make_key()], revision=4)


def make_worker(region: SeriesRegion) -> PrometheusRecorder:
    return PrometheusRecorder(clock=ManualClock(), health=Levels(), region=region)


def make_control(*regions: SeriesRegion) -> PrometheusRecorder:
    control = PrometheusRecorder(clock=ManualClock(), health=Levels(), regions=regions)
    control.publish(BOTH)
    return control


@pytest.fixture
def regions() -> list[SeriesRegion]:
    return [SeriesRegion.create(1 << 20) for _ in range(2)]


def serve(recorder: PrometheusRecorder, *exchanges) -> None:
    for exchange in exchanges:
        recorder.exchange_started(exchange)
        recorder.exchange_ended(exchange)


def traffic(recorder: PrometheusRecorder) -> None:
    """Something of every kind that a worker counts."""
    recorder.auth_decided(allowed=True, reason="none")
    recorder.auth_decided(allowed=False, reason="text of an attacker")
    recorder.limit_decided(None)
    recorder.limit_decided(errors.LimitExceeded("m", layer="api_key", limit="tpm", scope="tokens"))
    recorder.attempt_ended(KEPT.deployment, KEPT.name, ok=True, status=200)
    recorder.attempt_ended(KEPT.deployment, KEPT.name, ok=False, reached=False)
    serve(
        recorder,
        make_exchange(),
        make_exchange(stream=True),
        make_exchange(EMBEDDINGS),
        make_exchange(error=errors.UpstreamFailed("m"), status=502, usage=None),
        make_refused(error=errors.UnknownAlias("m"), status=404),
    )


def counted(recorder: PrometheusRecorder) -> dict[tuple[str, Labels], float]:
    """All that workers count; what the scraped process knows by itself left out."""
    own = ("aisix_build", "aisix_config", "aisix_deployment_state", "process_", "python_")
    return {
        (name, labels): number
        for name, found in scrape(recorder).items()
        if not name.startswith(own)
        for labels, number in found.items()
    }


def test_a_worker_is_a_recorder_like_any_other(regions):
    worker: Recorder = make_worker(regions[0])
    worker.token_fetched(ok=True, reason="cold")
    assert value(make_control(regions[0]), "aisix_token_refreshes_total", reason="cold") == 1


def test_one_worker_shows_what_a_single_process_would(regions):
    alone = PrometheusRecorder(clock=ManualClock(), health=Levels())
    alone.publish(BOTH)
    traffic(alone)
    traffic(make_worker(regions[0]))
    assert counted(make_control(*regions)) == counted(alone)


def test_a_scrape_is_the_sum_over_workers_and_the_process_itself(regions):
    alone = PrometheusRecorder(clock=ManualClock(), health=Levels())
    alone.publish(BOTH)
    control = make_control(*regions)
    workers = [make_worker(region) for region in regions]
    for _ in range(2):
        for worker in workers:
            traffic(worker)
        traffic(control)
        for _ in range(3):
            traffic(alone)
        assert counted(control) == pytest.approx(counted(alone))


def test_a_successor_goes_on_and_has_nothing_in_flight(regions):
    control = make_control(*regions)
    worker = make_worker(regions[0])
    worker.publish(BOTH)
    serve(worker, make_exchange())
    worker.exchange_started(make_exchange())
    other = make_worker(regions[1])
    other.exchange_started(make_exchange())
    in_flight = "aisix_proxy_in_flight_requests"
    assert value(control, in_flight) == 2
    before = scrape(control)

    successor = make_worker(regions[0])

    assert value(control, in_flight, endpoint=CHAT.template) == 1
    after = scrape(control)
    for name, found in before.items():
        if name.startswith("aisix_") and name != in_flight:
            assert after[name] == found
    successor.publish(BOTH)
    serve(successor, make_exchange(), make_exchange(alias=GONE))
    assert value(control, "aisix_requests_total", model=KEPT.name) == 2
    assert value(control, "aisix_requests_total", model="old") == 1
    assert value(control, in_flight) == 1


def test_what_was_deleted_is_not_shown_though_no_worker_has_noticed(regions):
    control = make_control(*regions)
    for region in regions:
        worker = make_worker(region)
        worker.publish(BOTH)
        serve(worker, make_exchange(alias=GONE), make_exchange(caller=make_key(id="key-2")))
        serve(worker, make_refused(error=errors.UnknownAlias("m"), status=404))
        worker.attempt_ended(GONE.deployment, GONE.name, ok=True, status=200)
    assert value(control, "aisix_requests_total", model="old") == 2

    control.publish(ONE)

    body = control.render()[1]
    for name in (b'model="old"', b"pk-2", b"key-2"):
        assert name not in body
    assert value(control, "aisix_requests_total", model=KEPT.name) == 2
    assert value(control, "aisix_requests_total", model="unresolved") == 2


def test_the_process_that_is_scraped_may_have_a_region_too(regions):
    own, other = regions

    def begin() -> PrometheusRecorder:
        control = PrometheusRecorder(
            clock=ManualClock(), health=Levels(), region=own, regions=[other]
        )
        control.publish(BOTH)
        return control

    make_worker(other).auth_decided(allowed=True, reason="none")
    for turn in (1, 2, 3):
        control = begin()
        control.token_fetched(ok=True, reason="cold")
        assert value(control, "aisix_token_refreshes_total") == turn
        assert value(control, "aisix_auth_decisions_total") == 1
        assert value(control, "aisix_build_info") == 1
        assert value(control, "aisix_deployment_state") == 0


def test_a_worker_that_notices_frees_the_space_and_counts_the_rest_on(regions):
    worker = make_worker(regions[0])
    control = make_control(regions[0])
    for turn in range(100):
        aliases = [make_alias(name=f"model-{turn}-{number}") for number in range(5)]
        snapshot = make_snapshot(aliases=[KEPT, *aliases])
        worker.publish(snapshot)
        serve(worker, *[make_exchange(alias=alias) for alias in (KEPT, *aliases)])
        control.publish(snapshot)
        if turn % 10 == 0:
            requests = scrape(control)["aisix_requests_total"]
            assert sorted(requests.values()) == [1.0] * 5 + [turn + 1.0]
    assert value(control, "aisix_requests_total", model=KEPT.name) == 100
    assert regions[0].words[0] * 8 < 100_000


def test_a_successor_drops_what_was_deleted_while_nobody_held_the_region(regions):
    first = make_worker(regions[0])
    first.publish(BOTH)
    serve(first, make_exchange(alias=GONE), make_exchange())
    used = regions[0].words[0]
    successor = make_worker(regions[0])
    successor.publish(ONE)
    control = make_control(regions[0])  # which would show the old one
    assert value(control, "aisix_requests_total", model="old") == 0
    assert value(control, "aisix_requests_total", model=KEPT.name) == 1
    successor.publish(BOTH)
    serve(successor, make_exchange(alias=GONE))
    assert regions[0].words[0] == used


@pytest.mark.logs("metrics.region_full")
def test_a_full_region_costs_no_exchange_and_no_series_that_is_in_it(caplog):
    region = SeriesRegion.create(1)
    worker = make_worker(region)
    aliases = [make_alias(name=f"model-{number}") for number in range(50)]
    control = make_control(region)
    control.publish(make_snapshot(aliases=aliases))
    for _ in range(2):
        for alias in aliases:
            serve(worker, make_exchange(alias=alias))
    assert [record.msg for record in caplog.records] == ["metrics.region_full"]
    assert value(control, "aisix_requests_total", model="model-0") == 2
    assert value(control, "aisix_requests_total", model="model-49") == 0
    assert value(control, "aisix_proxy_in_flight_requests") == 0


def test_lost_log_lines_of_workers_are_added_up(regions):
    control = PrometheusRecorder(
        clock=ManualClock(), health=Levels(), log_lines_dropped=lambda: 5, regions=regions
    )
    for region in regions:
        make_worker(region).log_lines_lost(2)
    make_worker(regions[0]).log_lines_lost(1)
    assert value(control, "aisix_log_lines_dropped_total") == 10


def test_a_single_process_may_count_its_lost_lines_itself():
    recorder = PrometheusRecorder(clock=ManualClock(), health=Levels())
    recorder.log_lines_lost(3)
    assert value(recorder, "aisix_log_lines_dropped_total") == 3


def test_the_workers_are_shown():
    recorder = PrometheusRecorder(clock=ManualClock(), health=Levels())
    assert value(recorder, "aisix_workers") == 1
    recorder.workers_changed(live=4, restarts=2)
    recorder.worker_lagged()
    assert value(recorder, "aisix_workers") == 4
    assert value(recorder, "aisix_worker_restarts_total") == 2
    assert value(recorder, "aisix_lagging_workers_total") == 1


def test_buckets_that_were_forgotten_are_told_at_the_scrape():
    recorder = PrometheusRecorder(clock=ManualClock(), health=Levels())
    assert value(recorder, "aisix_limiter_evictions_total") == 0
    recorder.limiter_evicted(3)
    assert value(recorder, "aisix_limiter_evictions_total") == 3
