"""Workers that count in shared memory and are killed: no counter goes back, nothing is lost, the
region stays readable and the next worker goes on in it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import pytest

from aisix import errors
from aisix.core.resources import Alias
from aisix.core.snapshot import Snapshot
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.telemetry.shared import SeriesRegion
from tests.support.builders import (
    make_alias,
    make_deployment,
    make_exchange,
    make_key,
    make_refused,
    make_snapshot,
)
from tests.support.control import ManualClock
from tests.support.forked import Child, Report, forked
from tests.support.scrape import Labels, Levels, scrape, value

ROUNDS = 30
PATIENCE_S = 20.0
KEY = make_key()
KEPT = [make_alias(name=f"kept-{number}") for number in range(8)]
IN_FLIGHT = "aisix_proxy_in_flight_requests"


def snapshot_of(aliases: Sequence[Alias]) -> Snapshot:
    return make_snapshot(keys=[KEY], aliases=aliases)


def make_worker(region: SeriesRegion, aliases: Sequence[Alias]) -> PrometheusRecorder:
    worker = PrometheusRecorder(clock=ManualClock(), health=Levels(), region=region)
    worker.publish(snapshot_of(aliases))
    return worker


def make_control(regions: Sequence[SeriesRegion]) -> PrometheusRecorder:
    control = PrometheusRecorder(clock=ManualClock(), health=Levels(), regions=regions)
    control.publish(snapshot_of(KEPT))
    return control


def serve(worker: PrometheusRecorder, alias: Alias, *, stream: bool = False) -> None:
    exchange = make_exchange(alias=alias, caller=KEY, stream=stream)
    worker.exchange_started(exchange)
    worker.attempt_ended(alias.deployment, alias.name, ok=True, status=200)
    worker.exchange_ended(exchange)


def work_until_killed(region: SeriesRegion, seed: int, report: Report) -> None:
    """Count, make series, drop series, as fast as it goes. Each report is one series more."""
    choose = random.Random(seed)
    worker = make_worker(region, KEPT)
    for turn in range(1_000_000):
        passing = [
            make_alias(
                name=f"passing-{turn}-{'x' * choose.randrange(60)}",
                deployment=make_deployment(name=f"d{number}"),
            )
            for number in range(choose.randrange(4))
        ]
        worker.publish(snapshot_of([*KEPT, *passing]))
        for alias in (*passing, choose.choice(KEPT)):
            serve(worker, alias, stream=choose.random() < 0.3)
        refused = make_refused(error=errors.UnknownAlias("m"), status=404, caller=KEY)
        worker.exchange_started(refused)
        worker.exchange_ended(refused)
        report(b".")


def counters(recorder: PrometheusRecorder) -> dict[tuple[str, Labels], float]:
    """Every sample of ours that may only grow."""
    return {
        (name, labels): number
        for name, found in scrape(recorder).items()
        if name.startswith("aisix_") and name.endswith(("_total", "_count", "_sum", "_bucket"))
        for labels, number in found.items()
    }


def assert_grown(before: dict[tuple[str, Labels], float], recorder: PrometheusRecorder) -> None:
    after = counters(recorder)
    for sample, number in before.items():
        assert after[sample] >= number, sample
    before.update(after)


def read_reports(child: Child, count: int) -> None:
    """Until the child has told `count` times that it goes on."""
    deadline = time.monotonic() + PATIENCE_S
    seen = 0
    while seen < count:
        got = child.reports.read(count - seen)
        assert got, "the child has ended"
        assert time.monotonic() < deadline
        seen += len(got)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))]
)
def test_no_counter_goes_back_when_workers_are_killed_while_they_count(seed):
    choose = random.Random(seed)
    regions = [SeriesRegion.create(4 << 20) for _ in range(2)]
    control = make_control(regions)
    seen: dict[tuple[str, Labels], float] = {}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(forked(partial(work_until_killed, region, seed)))
            for region in regions
        ]
        for turn in range(ROUNDS):
            at = choose.randrange(2)
            read_reports(workers[at], choose.randrange(1, 30))
            if turn % 4 == 0:
                assert_grown(seen, control)
            workers[at].kill()
            assert_grown(seen, control)
            again = partial(work_until_killed, regions[at], seed * 1_000 + turn)
            workers[at] = stack.enter_context(forked(again))
        for worker in workers:
            worker.kill()
    assert_grown(seen, control)
    assert value(control, "aisix_requests_total", model="unresolved") > ROUNDS
    assert b"passing" not in control.render()[1]
    for region in regions:
        assert region.words[0] * 8 < 2 << 20, "the space of dropped series is not used again"
    for region in regions:
        make_worker(region, KEPT)
    assert value(control, IN_FLIGHT) == 0
    assert_grown(seen, control)


def test_a_fresh_reader_sees_what_one_that_followed_sees(seeded_regions):
    regions, control = seeded_regions
    assert counters(make_control(regions)) == counters(control)


@pytest.fixture
def seeded_regions() -> tuple[list[SeriesRegion], PrometheusRecorder]:
    """Regions that a killed worker and its successor have used, and one who has read all along."""
    regions = [SeriesRegion.create(4 << 20) for _ in range(2)]
    control = make_control(regions)
    for turn in range(6):
        with forked(partial(work_until_killed, regions[turn % 2], turn)) as worker:
            read_reports(worker, 20)
            counters(control)
    return regions, control


def test_every_count_of_workers_that_end_well_is_there():
    regions = [SeriesRegion.create(1 << 20) for _ in range(2)]
    control = make_control(regions)
    each = 500

    def work(region: SeriesRegion, _report: Report) -> None:
        worker = make_worker(region, KEPT)
        for number in range(each):
            serve(worker, KEPT[number % len(KEPT)])

    for turn in range(1, 4):
        with ExitStack() as stack:
            children = [stack.enter_context(forked(partial(work, region))) for region in regions]
            assert [child.wait() for child in children] == [0, 0]
        total = turn * 2 * each
        for name in ("aisix_requests_total", "aisix_llm_request_duration_seconds_count"):
            assert value(control, name) == total
        assert value(control, "aisix_deployment_requests_total") == total
        assert value(control, "aisix_tokens_consumed_total") == total * 14
        assert value(control, IN_FLIGHT) == 0


def test_what_is_in_flight_is_told_while_its_worker_lives_and_forgotten_by_the_next():
    region = SeriesRegion.create(1 << 20)
    control = make_control([region])

    def work(report: Report) -> None:
        worker = make_worker(region, KEPT)
        for _ in range(5):
            worker.exchange_started(make_exchange(alias=KEPT[0]))
        report(b".")
        os.read(os.pipe()[0], 1)

    with forked(work) as worker:
        read_reports(worker, 1)
        assert value(control, IN_FLIGHT) == 5
    make_worker(region, KEPT)
    assert value(control, IN_FLIGHT) == 0
