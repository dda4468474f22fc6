"""What the benchmark must show, and whether it does. Pure.

Every demand is a figure of the gateway within one run: a ratio to another contender where there is
one, because absolute figures of a shared machine mean little.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bench.results import Outcome, Reader, Run, added_ms, cpu_over, median_of

_TENSORZERO_AIM = 75 / 93


class Verdict(Enum):
    """How a demand came out."""

    AIM = "aim reached"
    MET = "met"
    NOT_MET = "not met"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Demand:
    """A line of the table: a figure, its bounds, and how it is read of a contender in a scenario.

    `must` is None where only an aim is set. With `at_least` a larger figure is better. `contender`
    is who must show it.
    """

    text: str
    scenario: str
    figure: Reader
    must: float | None
    aim: float | None = None
    unit: str = ""
    at_least: bool = False
    contender: str = "gateway"

    def measured(self, run: Run, contender: str | None = None) -> float | None:
        """The figure of a run, of another contender if one is named; None when it has none."""
        outcome = run.outcomes.get(self.scenario)
        return self.figure(outcome, contender or self.contender) if outcome else None

    def judge(self, measured: float | None) -> Verdict:
        """Compare with the bounds."""
        if measured is None:
            return Verdict.UNKNOWN
        if self.aim is not None and self._within(measured, self.aim):
            return Verdict.AIM
        if self.must is None:
            return Verdict.NOT_MET
        return Verdict.MET if self._within(measured, self.must) else Verdict.NOT_MET

    def _within(self, measured: float, bound: float) -> bool:
        return measured >= bound if self.at_least else measured <= bound

    def bound(self, number: float | None) -> str:
        """A bound as text."""
        if number is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {show(number, self.unit)}"


def show(number: float, unit: str) -> str:
    """A figure with its unit."""
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f"{number:.{digits}f}{'' if unit in ('%', '×', '') else ' '}{unit}"


def _of_ideal(outcome: Outcome, name: str) -> float | None:
    rps = outcome.median(name, "rps")
    return None if rps is None or not outcome.ideal_rps else rps / outcome.ideal_rps * 100


DEMANDS = (
    Demand(
        "CPU per request, echo, c=64, over baseline",
        "echo-c64",
        cpu_over("baseline"),
        0.45,
        unit="×",
    ),
    Demand(
        "CPU per request, echo, c=64, over TensorZero",
        "echo-c64",
        cpu_over("tensorzero"),
        None,
        _TENSORZERO_AIM,
        unit="×",
    ),
    Demand(
        "CPU per stream of 50 chunks, c=64, over baseline",
        "stream-burst-c64",
        cpu_over("baseline"),
        0.5,
        unit="×",
    ),
    Demand(
        "CPU per stream of 50 chunks, c=64, over TensorZero",
        "stream-burst-c64",
        cpu_over("tensorzero"),
        None,
        1.0,
        unit="×",
    ),
    Demand("added p50, c=1", "echo-c1", added_ms("p50"), 0.30, 0.20, "ms"),
    Demand(
        "upstream of 100 ms, c=500: of the ideal rate",
        "slow100-c500",
        _of_ideal,
        95.0,
        98.0,
        "%",
        at_least=True,
    ),
    Demand(
        "upstream of 100 ms, c=500: p99",
        "slow100-c500",
        median_of("p99", scale=1e-3),
        130.0,
        unit="ms",
    ),
    Demand(
        "added TTFT, 64 paced streams in step",
        "stream-paced-c64",
        added_ms("ttft_p50"),
        2.0,
        1.0,
        "ms",
    ),
    Demand(
        "added TTFT, 64 streams begun at one instant",
        "stream-lockstep-c64",
        added_ms("ttft_p50"),
        2.0,
        1.0,
        "ms",
    ),
    Demand(
        "CPU per request, two workers over one process",
        "workers",
        cpu_over("gateway"),
        1.1,
        1.03,
        "×",
        contender="gateway-2",
    ),
    Demand(
        "connections on the fuller of two workers",
        "workers",
        median_of("largest_share", scale=100),
        60.0,
        unit="%",
        contender="gateway-2",
    ),
    Demand("idle stream (2,000)", "idle-2000", median_of("stream_kb"), 80.0, 40.0, "KB"),
    Demand(
        "idle stream (10,000, two workers)",
        "idle-10000",
        median_of("stream_kb"),
        80.0,
        40.0,
        "KB",
        contender="gateway-2",
    ),
    Demand("idle RSS, one process", "start", median_of("process_rss_mb"), 70.0, 45.0, "MB"),
    Demand(
        "idle RSS of the largest of two workers",
        "start",
        median_of("process_rss_mb"),
        70.0,
        45.0,
        "MB",
        contender="gateway-2",
    ),
    Demand("start to first answer", "start", median_of("ready_s"), 1.5, 0.8, "s"),
    Demand(
        "start to first answer, two workers",
        "start",
        median_of("ready_s"),
        1.5,
        0.8,
        "s",
        contender="gateway-2",
    ),
    Demand(
        "slow reader of a stream of 100 MB", "slow-reader", median_of("peak_mb"), 2.0, 0.5, "MB"
    ),
    Demand("one request of 20 MB", "body-20m", median_of("peak_mb"), 70.0, unit="MB"),
)
