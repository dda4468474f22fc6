"""How each kind of scenario is measured. I/O.

Two shapes: with `windows` all contenders run side by side and take turns within each round; with
`fresh` each round starts each contender anew, because memory is what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bench import client, proc
from bench.contenders import WARM_UP_STREAM, Contender, Running, Site, StartFailed, Unavailable
from bench.field import started
from bench.load import LoadGenerator, VoidWindow, settle
from bench.results import Outcome, slope_per_hour
from bench.scenarios import Measure, Scenario
from bench.settings import Settings

_KB = 1024
_IDLE_WATCH_S = 1.0
_SLOW_S = 10.0
_SOAK_SAMPLES = 300


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measure needs."""

    settings: Settings
    site: Site
    load: LoadGenerator


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of one round, and memory over time where it was followed."""

    figures: dict[str, float]
    series: list[list[float]] = field(default_factory=list)


Measurement = Callable[[Bench, Scenario, Running], Reading]


def window(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """One window of load: rates, latencies, CPU per request, resident memory."""
    shares: list[int] = []
    pids = running.pids()

    def sample() -> float:
        if scenario.spread and not shares:  # at the begin: at the end callers may have left
            shares[:] = proc.connections(pids, running.port())
        return proc.cpu_s(pids)

    figures = bench.load.window(
        running.target(scenario.deployment),
        scenario,
        seconds=bench.settings.seconds,
        warm_up_s=bench.settings.warm_up_s,
        sample=sample,
    )
    answered = figures["ok"] + figures["refused"]
    if pids:
        figures["cpu_us"] = figures["sampled"] / answered * 1e6
        figures["rss_mb"] = proc.memory(pids).rss_kb / _KB
    if scenario.limit_rps:
        figures["refused_share"] = figures["refused"] / answered
    if any(shares):
        figures["largest_share"] = max(shares) / sum(shares)
    return Reading(figures)


def idle(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """Memory for each idle stream, beyond what any stream makes the process load."""
    _warm_up(bench, scenario, running, connections=8)
    settle()
    pids = running.pids()
    before = proc.memory(pids).rss_kb
    with bench.load.idle(running.target(scenario.deployment), scenario):
        settle()
        after = proc.memory(pids).rss_kb
        cpu_s, began = proc.cpu_s(pids), time.monotonic()
        time.sleep(_IDLE_WATCH_S)
        busy = (proc.cpu_s(pids) - cpu_s) / (time.monotonic() - began)
    return Reading(
        {
            "stream_kb": (after - before) / scenario.connections,
            "idle_cpu_percent": busy * 100,
            "rss_mb": after / _KB,
        }
    )


def peak(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """By how much one large request raises the peak of resident memory."""
    _warm_up(bench, scenario, running, connections=8)
    return _peak_of(running, lambda: client.post(running.target(scenario.deployment), scenario))


def slow_reader(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """By how much a reader that lags behind raises the peak of resident memory."""
    slow_s = min(_SLOW_S, bench.settings.seconds * 2)
    quick = replace(scenario, deployment=WARM_UP_STREAM, chunks=int(WARM_UP_STREAM[1:]))
    for _ in range(3):
        client.read_slowly(running.target(WARM_UP_STREAM), quick, slow_s=0)
    target = running.target(scenario.deployment)
    return _peak_of(running, lambda: client.read_slowly(target, scenario, slow_s=slow_s))


def _peak_of(running: Running, act: Callable[[], object]) -> Reading:
    settle()
    pids = running.pids()
    proc.reset_peak(pids)
    before = proc.memory(pids).rss_kb
    act()
    highest = proc.peak_kb(pids)
    return Reading({"peak_mb": (highest - before) / _KB, "rss_mb": highest / _KB})


def bulk(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """Resident memory before, at its highest and after, of large bodies both ways beside streams
    whose readers lag behind."""
    target = running.target(scenario.deployment)
    bench.load.bulk(target, replace(scenario, body_bytes=2_000_000, connections=2))
    settle()
    pids = running.pids()
    proc.reset_peak(pids)
    before = proc.memory(pids).rss_kb
    figures = bench.load.bulk(target, scenario)
    highest = proc.peak_kb(pids)
    settle()
    return Reading(
        {
            "before_mb": before / _KB,
            "peak_mb": (highest - before) / _KB,
            "rss_mb": highest / _KB,
            "after_mb": proc.memory(pids).rss_kb / _KB,
            "seconds": figures["seconds"],
            "read_mb": figures["read_mb"],
        }
    )


def start(_bench: Bench, _scenario: Scenario, running: Running) -> Reading:
    """Seconds to the first answer, and memory at rest."""
    settle()
    memory = proc.memory(running.pids())
    return Reading(
        {
            "ready_s": running.ready_s,
            "idle_rss_mb": memory.rss_kb / _KB,
            "idle_pss_mb": memory.pss_kb / _KB,
            "process_rss_mb": memory.largest_kb / _KB,
        }
    )


def soak(bench: Bench, scenario: Scenario, running: Running) -> Reading:
    """Answers and paced streams together for long; how memory goes."""
    seconds = bench.settings.soak_seconds
    streams = replace(scenario, deployment="n50-d5000", chunks=50)
    _warm_up(bench, scenario, running, connections=scenario.connections)
    began = time.monotonic()
    series: list[list[float]] = []
    with ThreadPoolExecutor(2) as pool:

        def begin(load: Scenario) -> Future[dict[str, float]]:
            return pool.submit(
                bench.load.window,
                running.target(load.deployment),
                load,
                seconds=seconds,
                warm_up_s=bench.settings.warm_up_s,
                sample=running.cpu_s,
            )

        loads = [begin(scenario), begin(streams)]
        while not all(load.done() for load in loads):
            memory = proc.memory(running.pids())
            series.append([time.monotonic() - began, memory.rss_kb / _KB])
            time.sleep(max(0.2, seconds / _SOAK_SAMPLES))
        answers, streamed = (load.result() for load in loads)
    return Reading(
        {
            "answers": answers["ok"],
            "streams": streamed["ok"],
            "p99": answers["p99"],
            "rss_mb": series[-1][1],
            "growth_mb": series[-1][1] - series[0][1],
            "slope_mb_per_hour": slope_per_hour(series),
        },
        series,
    )


def _first_use(scenario: Scenario, running: Running) -> None:
    """One request: some load half of their code only then."""
    if scenario.keys == 1:
        client.post(running.target(scenario.deployment), scenario)


def _void(outcome: Outcome, name: str, reason: Exception) -> None:
    outcome.void.setdefault(name, []).append(str(reason))
    print(f"  {outcome.title}: {name}: void: {reason}", file=sys.stderr, flush=True)


def _warm_up(bench: Bench, scenario: Scenario, running: Running, *, connections: int) -> None:
    """A second of paced streams and short answers, so that all code is loaded."""
    for deployment, chunks in (("echo", 0), ("n50-d5000", 50)):
        small = replace(
            scenario,
            deployment=deployment,
            chunks=chunks,
            connections=connections,
            body_bytes=0,
        )
        bench.load.window(
            running.target(deployment), small, seconds=0.5, warm_up_s=0.1, sample=float
        )


# the measurement, and whether each round begins with a new process
_MEASURES: Mapping[Measure, tuple[Measurement, bool]] = {
    Measure.LOAD: (window, False),
    Measure.IDLE: (idle, True),
    Measure.PEAK: (peak, True),
    Measure.SLOW_READER: (slow_reader, True),
    Measure.BULK: (bulk, True),
    Measure.START: (start, True),
    Measure.SOAK: (soak, True),
}


def measure(bench: Bench, scenario: Scenario, field_: list[Contender]) -> Outcome:
    """All rounds of a scenario."""
    outcome = Outcome(scenario.title, scenario.ideal_rps)
    present = []
    for contender in field_:
        reason = contender.absent()
        if reason is None:
            present.append(contender)
            outcome.rounds[contender.name] = []
        else:
            outcome.skipped[contender.name] = reason
    measurement, fresh = _MEASURES[scenario.measure]
    if fresh:
        _fresh(bench, scenario, present, measurement, outcome)
    else:
        _side_by_side(bench, scenario, present, measurement, outcome)
    return outcome


def _side_by_side(
    bench: Bench,
    scenario: Scenario,
    present: list[Contender],
    measurement: Measurement,
    outcome: Outcome,
) -> None:
    with ExitStack() as stack:
        field_: dict[str, Running] = {}
        for contender in present:
            try:
                running = stack.enter_context(started(contender, bench.site, scenario))
                _first_use(scenario, running)
                field_[contender.name] = running
            except Unavailable as reason:
                outcome.skipped[contender.name] = str(reason)
            except (StartFailed, VoidWindow) as reason:
                _void(outcome, contender.name, reason)
        for _ in range(bench.settings.rounds):
            for name, running in field_.items():
                _attempt(bench, scenario, running, measurement, name, outcome)


def _fresh(
    bench: Bench,
    scenario: Scenario,
    present: list[Contender],
    measurement: Measurement,
    outcome: Outcome,
) -> None:
    rounds = 1 if scenario.measure is Measure.SOAK else bench.settings.rounds
    for _ in range(rounds):
        for contender in present:
            if contender.name in outcome.skipped:
                continue
            try:
                with started(contender, bench.site, scenario) as running:
                    _attempt(bench, scenario, running, measurement, contender.name, outcome)
            except Unavailable as reason:
                outcome.skipped[contender.name] = str(reason)
            except StartFailed as reason:
                _void(outcome, contender.name, reason)


def _attempt(
    bench: Bench,
    scenario: Scenario,
    running: Running,
    measurement: Measurement,
    name: str,
    outcome: Outcome,
) -> None:
    try:
        reading = measurement(bench, scenario, running)
    except VoidWindow as reason:
        _void(outcome, name, reason)
        return
    outcome.rounds[name].append(reading.figures)
    if reading.series:
        outcome.series[name] = reading.series
