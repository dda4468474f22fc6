"""The results of a run: rounds, medians, differences, slopes; to JSON and back. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Figures = Mapping[str, float]
Series = Sequence[Sequence[float]]
# growth in the first fifth of a soak is filling, not leaking
_SETTLING_SHARE = 0.2
_HOUR_S = 3600.0


@dataclass(slots=True)
class Outcome:
    """One scenario: the figures of each valid round by contender, and what is missing and why.

    `series` holds (seconds, MB) of resident memory over time, where that was followed.
    """

    title: str
    ideal_rps: float = 0.0
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    void: dict[str, list[str]] = field(default_factory=dict)
    series: dict[str, list[list[float]]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The contenders that have figures, in the order of a round."""
        return [name for name, rows in self.rounds.items() if rows]

    def median(self, contender: str, figure: str) -> float | None:
        """The median of the valid rounds; None when there is none."""
        rows = self.rounds.get(contender, ())
        values = [row[figure] for row in rows if figure in row]
        return statistics.median(values) if values else None

    def added(self, contender: str, figure: str) -> float | None:
        """By how much the median exceeds that of the direct call."""
        own, direct = self.median(contender, figure), self.median("direct", figure)
        return None if own is None or direct is None else own - direct

    def ratio(self, contender: str, figure: str, over: str) -> float | None:
        """The median over another contender's."""
        own, other = self.median(contender, figure), self.median(over, figure)
        return own / other if own is not None and other else None


@dataclass(slots=True)
class Run:
    """All scenarios of one run, and what it ran on."""

    machine: dict[str, str]
    settings: dict[str, str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


Reader = Callable[[Outcome, str], float | None]
"""Reads one figure of a contender; None when it has none."""


def median_of(figure: str, scale: float = 1.0) -> Reader:
    """The median of `figure`, in another unit."""

    def read(outcome: Outcome, name: str) -> float | None:
        median = outcome.median(name, figure)
        return None if median is None else median * scale

    return read


def added_ms(figure: str) -> Reader:
    """By how many milliseconds `figure`, in microseconds, exceeds that of the direct call."""

    def read(outcome: Outcome, name: str) -> float | None:
        added = None if name == "direct" else outcome.added(name, figure)
        return None if added is None else added / 1000

    return read


def cpu_over(other: str) -> Reader:
    """CPU time over that of another contender."""
    return lambda outcome, name: outcome.ratio(name, "cpu_us", other)


def to_json(run: Run) -> dict[str, Any]:
    """For a file; the medians are there for readers, not for `from_json`."""
    document = asdict(run)
    for id_, outcome in run.outcomes.items():
        document["outcomes"][id_]["medians"] = {
            name: {
                figure: outcome.median(name, figure)
                for figure in sorted({key for row in outcome.rounds[name] for key in row})
            }
            for name in outcome.names()
        }
    return document


def from_json(document: Mapping[str, Any]) -> Run:
    """What `to_json` made."""
    outcomes = {}
    for id_, fields in document["outcomes"].items():
        outcomes[id_] = Outcome(**{k: v for k, v in fields.items() if k != "medians"})
    return Run(dict(document["machine"]), dict(document["settings"]), outcomes)


def slope_per_hour(series: Series) -> float:
    """The least-squares slope of (seconds, value) after the first fifth, per hour."""
    late = [row for row in series if row[0] >= series[-1][0] * _SETTLING_SHARE]
    if len(late) < 2:
        return 0.0
    times = [row[0] for row in late]
    if times[0] == times[-1]:
        return 0.0
    return statistics.linear_regression(times, [row[1] for row in late]).slope * _HOUR_S
