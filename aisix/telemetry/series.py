"""Values of metrics in plain lists, one per label set: counting is a list write, no lock. Pure.

prometheus-client's own metric classes lock on every update and cannot forget series in its
multi-process mode; these slots do neither and can later move to shared memory (decisions §9). They
belong to the event loop's thread: nothing else may touch them.

A counter or gauge is `[value]`, a summary `[count, sum]`, a histogram `[one per bucket…, beyond
the last, sum]` with buckets not yet cumulated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from aisix.telemetry.catalogue import Kind, MetricRow

Slots = list[float]


class Sample(NamedTuple):
    """One line of a scrape, before rendering."""

    suffix: str
    labels: dict[str, str]
    value: float


class Family:
    """All series of one metric."""

    __slots__ = ("_children", "_size", "row")

    def __init__(self, row: MetricRow) -> None:
        self.row = row
        self._children: dict[tuple[str, ...], Slots] = {}
        sizes = {Kind.SUMMARY: 2, Kind.HISTOGRAM: len(row.buckets) + 2}
        self._size = sizes.get(row.kind, 1)

    def __len__(self) -> int:
        return len(self._children)

    def child(self, dimensions: Mapping[str, str]) -> Slots:
        """The slots of one label set, made on first use; `dimensions` may hold more than it
        needs."""
        key = tuple([dimensions[label] for label in self.row.labels])
        slots = self._children.get(key)
        if slots is None:
            slots = self._children[key] = [0.0] * self._size
        return slots

    def retain(self, keep: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series whose label values `keep` refuses."""
        for key in [key for key in self._children if not keep(key)]:
            del self._children[key]

    def samples(self) -> Iterator[Sample]:
        """Every series, as the exposition format wants it."""
        for key, slots in self._children.items():
            labels = dict(zip(self.row.labels, key, strict=True))
            if self.row.kind is Kind.HISTOGRAM:
                yield from self._histogram(labels, slots)
            elif self.row.kind is Kind.SUMMARY:
                yield Sample("_count", labels, slots[0])
                yield Sample("_sum", labels, slots[1])
            else:
                yield Sample("", labels, slots[0])

    def _histogram(self, labels: dict[str, str], slots: Slots) -> Iterator[Sample]:
        count = 0.0
        for bound, seen in zip((*self.row.buckets, float("inf")), slots, strict=False):
            count += seen
            text = "+Inf" if bound == float("inf") else repr(bound)
            yield Sample("_bucket", {**labels, "le": text}, count)
        yield Sample("_count", labels, count)
        yield Sample("_sum", labels, slots[-1])


def add(slots: Slots, value: float) -> None:
    """Observe `value` in a summary."""
    slots[0] += 1.0
    slots[1] += value


def observe(slots: Slots, bounds: tuple[float, ...], value: float) -> None:
    """Observe `value` in a histogram; a bucket includes its upper bound."""
    slots[bisect_left(bounds, value)] += 1.0
    slots[-1] += value
