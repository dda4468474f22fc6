"""Values of metrics in plain slots, one set per label set: counting is a write, no lock.

prometheus-client's own metric classes lock on every update and its exposition takes 18 µs a line,
which would stop the event loop for 0.4 s at 22 000 lines. These slots do neither and can forget
series. They are lists, or a worker's shared memory, and belong to the event loop's thread.

A counter or gauge is `[value]`, a summary `[count, sum]`, a histogram `[one per bucket…, beyond
the last, sum]` with buckets not yet cumulated. Lines are the Prometheus text format 0.0.4.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from aisix.telemetry.catalogue import Kind, MetricRow
from aisix.telemetry.labels import Names
from aisix.telemetry.shared import (
    Record,
    RegionReader,
    RegionWriter,
    SeriesRegion,
    label_values,
)


class Slots(Protocol):
    """The values of one label set."""

    def __getitem__(self, at: int, /) -> float: ...
    def __setitem__(self, at: int, value: float, /) -> None: ...
    def __iter__(self) -> Iterator[float]: ...


class _Series(NamedTuple):
    """One label set, its values, its labels as they are shown; its place if it is in a region."""

    slots: Slots
    labels: str
    place: int | None


class Family:
    """All series of one metric. `number` is its place in the catalogue; with a `writer` the series
    are in that region for as long as it has room."""

    __slots__ = ("_number", "_series", "_size", "_writer", "row")

    def __init__(self, row: MetricRow, number: int = 0, writer: RegionWriter | None = None) -> None:
        self.row = row
        self._series: dict[tuple[str, ...], _Series] = {}
        sizes = {Kind.SUMMARY: 2, Kind.HISTOGRAM: len(row.buckets) + 2}
        self._size = sizes.get(row.kind, 1)
        self._number = number
        self._writer = writer

    def __len__(self) -> int:
        return len(self._series)

    def child(self, dimensions: Mapping[str, str]) -> Slots:
        """The slots of one label set, made on first use; `dimensions` may hold more than it
        needs."""
        key = tuple([dimensions[label] for label in self.row.labels])
        series = self._series.get(key)
        if series is None:
            record = self._writer.add(self._number, key, self._size) if self._writer else None
            series = _Series(
                slots=[0.0] * self._size if record is None else record.slots,
                labels=label_text(self.row.labels, key),
                place=None if record is None else record.place,
            )
            self._series[key] = series
        return series.slots

    def inherit(self, record: Record) -> None:
        """Go on with a series of the region. What is in flight ended with the predecessor."""
        if self.row.kind is Kind.GAUGE:
            record.slots[0] = 0.0
        values = record.values
        labels = label_text(self.row.labels, values)
        self._series[values] = _Series(record.slots, labels, record.place)

    def retain(self, keep: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series whose label values `keep` refuses."""
        for key in [key for key in self._series if not keep(key)]:
            place = self._series.pop(key).place
            if place is not None and self._writer is not None:
                self._writer.drop(place)

    def values(self) -> Iterator[tuple[str, Slots]]:
        """Labels as they are shown, and slots, of every series."""
        for series in self._series.values():
            yield series.labels, series.slots

    def lines(self) -> Iterator[str]:
        """The family as a scraper reads it; nothing while it has no series."""
        return render(self.row, self.values())


def render(row: MetricRow, series: Iterable[tuple[str, Iterable[float]]]) -> Iterator[str]:
    """Labels and slots of a family as a scraper reads them; nothing if there are none."""
    name = row.name
    bounds = [f'le="{bound!r}"' for bound in row.buckets] + ['le="+Inf"']
    headed = False
    for labels, slots in series:
        if not headed:
            headed = True
            yield f"# HELP {name} {row.help}\n# TYPE {name} {row.kind.value}\n"
        shown = f"{{{labels}}}" if labels else ""
        if row.kind is Kind.HISTOGRAM:
            yield _histogram(name, labels, bounds, slots)
        elif row.kind is Kind.SUMMARY:
            count, total = slots
            yield f"{name}_count{shown} {count!r}\n{name}_sum{shown} {total!r}\n"
        else:
            (value,) = slots
            yield f"{name}{shown} {value!r}\n"


def _histogram(name: str, labels: str, bounds: list[str], slots: Iterable[float]) -> str:
    *buckets, total = slots
    comma = "," if labels else ""
    start = f"{name}_bucket{{{labels}{comma}"
    count = 0.0
    lines = []
    for bound, seen in zip(bounds, buckets, strict=True):
        count += seen
        lines.append(f"{start}{bound}}} {count!r}\n")
    shown = f"{{{labels}}}" if labels else ""
    lines.append(f"{name}_count{shown} {count!r}\n{name}_sum{shown} {total!r}\n")
    return "".join(lines)


class _Named(NamedTuple):
    """A series of a region: its family, its label values, its labels as they are shown."""

    number: int
    values: tuple[str, ...]
    labels: str


class RegionSum:
    """What families and regions have counted together. Owned by the process that is scraped."""

    def __init__(self, families: Sequence[Family], regions: Iterable[SeriesRegion]) -> None:
        self._families = families
        self._readers = [RegionReader(region, self._name) for region in regions]
        self._new_names: dict[tuple[int, bytes], _Named] = {}

    def lines(self, names: Names) -> list[str]:
        """The sum as a scraper reads it, without the series of what is not configured any more:
        a worker may not have noticed yet."""
        sums = [{labels: list(slots) for labels, slots in each.values()} for each in self._families]
        keepers = [names.keeper(family.row) for family in self._families]
        for reader in self._readers:
            for (number, values, labels), slots in reader.read():
                series = sums[number]
                known = series.get(labels)
                if known is not None:
                    series[labels] = list(map(operator.add, known, slots))
                elif keepers[number](values):
                    series[labels] = slots
        self._new_names.clear()
        return [
            line
            for family, series in zip(self._families, sums, strict=True)
            for line in render(family.row, series.items())
        ]

    def _name(self, number: int, text: bytes) -> _Named:
        """A series that was not there at the last scrape; most are in several regions."""
        named = self._new_names.get((number, text))
        if named is None:
            values = label_values(text)
            labels = label_text(self._families[number].row.labels, values)
            named = self._new_names[number, text] = _Named(number, values, labels)
        return named


def add(slots: Slots, value: float) -> None:
    """Observe `value` in a summary."""
    slots[0] += 1.0
    slots[1] += value


def observe(slots: Slots, bounds: tuple[float, ...], value: float) -> None:
    """Observe `value` in a histogram; a bucket includes its upper bound."""
    slots[bisect_left(bounds, value)] += 1.0
    slots[-1] += value


def label_text(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Label names and values as they are shown."""
    return ",".join(
        [f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)]
    )


def _escaped(value: str) -> str:
    """A label value; a lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    if value.isascii() and value.isprintable() and "\\" not in value and '"' not in value:
        return value
    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text.encode("utf-8", "replace").decode()
