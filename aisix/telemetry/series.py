"""Values of metrics in plain lists, one per label set: counting is a list write, no lock. Pure.

prometheus-client's own metric classes lock on every update and its exposition takes 18 µs a line,
which would stop the event loop for 0.4 s at 22 000 lines. These slots do neither, can forget
series, and can later move to shared memory (decisions §9). They belong to the event loop's thread.

A counter or gauge is `[value]`, a summary `[count, sum]`, a histogram `[one per bucket…, beyond
the last, sum]` with buckets not yet cumulated. Lines are the Prometheus text format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from aisix.telemetry.catalogue import Kind, MetricRow

Slots = list[float]


class _Series(NamedTuple):
    """One label set, its values and its labels as they are shown."""

    slots: Slots
    labels: str


class Family:
    """All series of one metric."""

    __slots__ = ("_bounds", "_series", "_size", "row")

    def __init__(self, row: MetricRow) -> None:
        self.row = row
        self._series: dict[tuple[str, ...], _Series] = {}
        sizes = {Kind.SUMMARY: 2, Kind.HISTOGRAM: len(row.buckets) + 2}
        self._size = sizes.get(row.kind, 1)
        self._bounds = [f'le="{bound!r}"' for bound in row.buckets] + ['le="+Inf"']

    def __len__(self) -> int:
        return len(self._series)

    def child(self, dimensions: Mapping[str, str]) -> Slots:
        """The slots of one label set, made on first use; `dimensions` may hold more than it
        needs."""
        key = tuple([dimensions[label] for label in self.row.labels])
        series = self._series.get(key)
        if series is None:
            series = _Series([0.0] * self._size, _label_text(self.row.labels, key))
            self._series[key] = series
        return series.slots

    def retain(self, keep: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series whose label values `keep` refuses."""
        for key in [key for key in self._series if not keep(key)]:
            del self._series[key]

    def lines(self) -> Iterator[str]:
        """The family as a scraper reads it; nothing while it has no series."""
        if not self._series:
            return
        name = self.row.name
        yield f"# HELP {name} {self.row.help}\n# TYPE {name} {self.row.kind.value}\n"
        for slots, labels in self._series.values():
            if self.row.kind is Kind.HISTOGRAM:
                yield from self._histogram(slots, labels)
            elif self.row.kind is Kind.SUMMARY:
                shown = f"{{{labels}}}" if labels else ""
                yield f"{name}_count{shown} {slots[0]!r}\n{name}_sum{shown} {slots[1]!r}\n"
            else:
                yield f"{name}{{{labels}}} {slots[0]!r}\n" if labels else f"{name} {slots[0]!r}\n"

    def _histogram(self, slots: Slots, labels: str) -> Iterator[str]:
        name = self.row.name
        comma = "," if labels else ""
        count = 0.0
        for bound, seen in zip(self._bounds, slots, strict=False):
            count += seen
            yield f"{name}_bucket{{{labels}{comma}{bound}}} {count!r}\n"
        yield f"{name}_count{{{labels}}} {count!r}\n{name}_sum{{{labels}}} {slots[-1]!r}\n"


def add(slots: Slots, value: float) -> None:
    """Observe `value` in a summary."""
    slots[0] += 1.0
    slots[1] += value


def observe(slots: Slots, bounds: tuple[float, ...], value: float) -> None:
    """Observe `value` in a histogram; a bucket includes its upper bound."""
    slots[bisect_left(bounds, value)] += 1.0
    slots[-1] += value


def _label_text(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = zip(labels, values, strict=True)
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)


def _escaped(value: str) -> str:
    """A label value; a lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text.encode("utf-8", "replace").decode()
