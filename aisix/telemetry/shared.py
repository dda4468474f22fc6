"""Series of metrics in memory that processes share: one region for each worker, made before the
fork. One process writes a region, any other may read it, at any moment.

A region is 8-byte words: how many are in use, the newest generation, then one record per series:

    size in words · generation · shape · slots … · label values as JSON

Law: what makes a record valid is written last. A new one counts as used when it is complete; the
space of a dropped one gets its generation, which 0 marks as dead, when it is complete again. One
word is one write of the processor. So a process may be killed between any two instructions and
leaves a region that can be read and continued; a worker's successor counts on where it ended.
"""

from __future__ import annotations

import json
import logging
import mmap
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar, cast

_USED = 0
_NEWEST = 1
_FIRST = 8
"""Where the first record begins; the words before it are the region's own."""

_GENERATION = 1
_SHAPE = 2
_SLOTS = 3
"""Where in a record its slots begin."""

_SIZE_STEP = 8
"""Sizes are multiples of this, so that space which was given back fits what comes next."""

_log = logging.getLogger("aisix.telemetry")
_Name = TypeVar("_Name")


class Shape(NamedTuple):
    """What a record holds: the number of its family in the catalogue, its slots, its text."""

    family: int
    slots: int
    text_bytes: int

    @property
    def words(self) -> int:
        """Size of the whole record."""
        needed = _SLOTS + self.slots + -(-self.text_bytes // 8)
        return -(-needed // _SIZE_STEP) * _SIZE_STEP

    def pack(self) -> int:
        """As one word."""
        return self.family << 48 | self.slots << 32 | self.text_bytes

    @classmethod
    def unpack(cls, word: int) -> Shape:
        """Out of one word."""
        return cls(word >> 48, word >> 32 & 0xFFFF, word & 0xFFFFFFFF)


class Record(NamedTuple):
    """One series of a region. `slots` is its memory: writing there counts."""

    place: int
    family: int
    text: bytes
    slots: memoryview[float]

    @property
    def values(self) -> tuple[str, ...]:
        """The label values."""
        return label_values(self.text)


def label_values(text: bytes) -> tuple[str, ...]:
    """The label values that the text of a record spells."""
    return tuple(json.loads(text))


class SeriesRegion:
    """The memory of one worker's series. Handed to children by forking."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.octets = memoryview(memory)
        self.words = self.octets.cast("Q")
        self.doubles = self.octets.cast("d")

    @classmethod
    def create(cls, size_bytes: int) -> SeriesRegion:
        """An empty region. Memory is taken from the system only as series appear."""
        pages = max(1, -(-size_bytes // mmap.PAGESIZE))
        region = cls(mmap.mmap(-1, pages * mmap.PAGESIZE))
        region.words[_USED] = _FIRST
        return region

    def places(self) -> Iterator[int]:
        """Where the records are, dead ones too."""
        place = _FIRST
        used = self.words[_USED]
        while place < used:
            yield place
            # a size is never 0; were it, the reader must not hang
            place += self.words[place] or used

    def read(self, place: int) -> Record | None:
        """The record at `place`; None when it is dead, or changes while it is read."""
        generation = self.words[place + _GENERATION]
        shape = Shape.unpack(self.words[place + _SHAPE])
        if not generation or shape.words > self.words[place]:
            return None
        begin = place + _SLOTS
        end = begin + shape.slots
        text = self.octets[end * 8 : end * 8 + shape.text_bytes].tobytes()
        if self.words[place + _GENERATION] != generation:
            return None
        return Record(place, shape.family, text, self.doubles[begin:end])


class RegionWriter:
    """The one that writes a region: a worker, or the successor of one that died."""

    def __init__(self, region: SeriesRegion) -> None:
        self._region = region
        self._words = region.words
        self._dead: dict[int, list[int]] = {}
        self._full = False
        self.inherited: list[Record] = []
        """The series that a predecessor left."""
        for place in region.places():
            record = region.read(place)
            if record is None:
                self.drop(place)
            else:
                self.inherited.append(record)

    def add(self, family: int, values: tuple[str, ...], slots: int) -> Record | None:
        """A new series, all zero; None when the region is full."""
        text = json.dumps(values).encode()
        shape = Shape(family, slots, len(text))
        place = self._find(shape.words)
        if place is None:
            if not self._full:
                self._full = True
                _log.error("metrics.region_full", extra={"bytes": self._region.octets.nbytes})
            return None
        words = self._words
        if place == words[_USED]:
            words[place] = shape.words
        begin = place + _SLOTS
        end = begin + slots
        self._region.octets[begin * 8 : end * 8] = bytes(slots * 8)
        self._region.octets[end * 8 : end * 8 + len(text)] = text
        words[place + _SHAPE] = shape.pack()
        words[_NEWEST] += 1  # no number is ever used twice: readers know a record by it
        words[place + _GENERATION] = words[_NEWEST]
        if place == words[_USED]:
            words[_USED] = place + shape.words
        return Record(place, family, text, self._region.doubles[begin:end])

    def drop(self, place: int) -> None:
        """The series at `place` is gone; nobody may write to its slots any more."""
        self._words[place + _GENERATION] = 0
        self._dead.setdefault(self._words[place], []).append(place)

    def _find(self, size: int) -> int | None:
        """Room for a record: that of a dead one of its size, new, or that of a larger dead one."""
        if self._dead.get(size):
            return self._dead[size].pop()
        used = self._words[_USED]
        if used + size <= len(self._words):
            return used
        larger = [each for each, places in self._dead.items() if each > size and places]
        return self._dead[min(larger)].pop() if larger else None


class RegionReader(Generic[_Name]):
    """Reads a region again and again; `name` is asked once for each series, with the number of its
    family and its text."""

    def __init__(self, region: SeriesRegion, name: Callable[[int, bytes], _Name]) -> None:
        self._region = region
        self._name = name
        self._known: dict[int, tuple[int, _Name, memoryview[float]]] = {}

    def read(self) -> Iterator[tuple[_Name, list[float]]]:
        """The name and the values of every series that lives."""
        words = self._region.words
        known = self._known
        for place in self._region.places():
            generation = words[place + _GENERATION]
            if not generation:
                continue
            entry = known.get(place)
            if entry is None or entry[0] != generation:
                record = self._region.read(place)
                if record is None:
                    continue
                name = self._name(record.family, record.text)
                entry = known[place] = (generation, name, record.slots)
            values = cast("list[float]", entry[2].tolist())
            if words[place + _GENERATION] == generation:  # nothing else took its place meanwhile
                yield entry[1], values
