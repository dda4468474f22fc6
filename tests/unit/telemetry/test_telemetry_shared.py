"""Regions of shared series: what is written can be read, space comes back, and a writer that is
killed between any two lines leaves a region that is whole."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.telemetry.shared import RegionReader, RegionWriter, SeriesRegion, Shape, label_values

PAGE = mmap.PAGESIZE


def contents(region: SeriesRegion) -> dict[tuple[int, tuple[str, ...]], list[float]]:
    """Family and label values → slots, as a process that never saw the region reads them."""
    reader = RegionReader(region, lambda family, text: (family, label_values(text)))
    return dict(reader.read())


def copy(octets: bytes) -> SeriesRegion:
    region = SeriesRegion(mmap.mmap(-1, len(octets)))
    region.octets[:] = octets
    return region


def add(writer: RegionWriter, name: str, *, slots: int = 1) -> Any:
    record = writer.add(7, (name,), slots)
    assert record is not None
    return record


def test_an_empty_region_has_no_series():
    assert contents(SeriesRegion.create(1)) == {}
    assert RegionWriter(SeriesRegion.create(1)).inherited == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 65_535),
            st.lists(st.text(max_size=20), max_size=12).map(tuple),
            st.lists(st.floats(allow_nan=False), max_size=21),
        ),
        max_size=20,
        unique_by=lambda series: series[:2],
    )
)
def test_what_one_writes_all_read(series):
    region = SeriesRegion.create(1 << 20)
    writer = RegionWriter(region)
    for family, values, figures in series:
        record = writer.add(family, values, len(figures))
        assert record is not None
        for at, figure in enumerate(figures):
            record.slots[at] += figure
    expected = {(family, values): figures for family, values, figures in series}
    assert contents(region) == expected
    inherited = {(r.family, r.values): list(r.slots) for r in RegionWriter(region).inherited}
    assert inherited == expected


def test_a_lone_surrogate_in_a_name_is_carried():
    region = SeriesRegion.create(PAGE)
    add(RegionWriter(region), "x\ud800")
    assert list(contents(region)) == [(7, ("x\ud800",))]


def test_a_shape_fits_one_word():
    shape = Shape(family=65_535, slots=65_535, text_bytes=2**32 - 1)
    assert Shape.unpack(shape.pack()) == shape
    assert shape.pack() < 2**64


def test_a_successor_counts_on():
    region = SeriesRegion.create(PAGE)
    add(RegionWriter(region), "a").slots[0] += 2.0
    [record] = RegionWriter(region).inherited
    record.slots[0] += 1.0
    assert contents(region) == {(7, ("a",)): [3.0]}


def test_space_of_dropped_series_is_used_again():
    region = SeriesRegion.create(PAGE)
    writer = RegionWriter(region)
    add(writer, "stays").slots[0] = 1.0
    for number in range(10_000):
        record = add(writer, f"key-{number:05d}")
        record.slots[0] += 1.0
        assert contents(region)[7, (f"key-{number:05d}",)] == [1.0]
        writer.drop(record.place)
    assert contents(region) == {(7, ("stays",)): [1.0]}


def test_a_successor_uses_the_space_of_dropped_series_too():
    region = SeriesRegion.create(PAGE)
    for number in range(1_000):
        writer = RegionWriter(region)
        writer.drop(add(writer, f"key-{number:04d}").place)
    assert region.words[0] < 40


def test_a_reader_sees_that_another_series_took_the_place():
    region = SeriesRegion.create(PAGE)
    reader = RegionReader(region, lambda _family, text: label_values(text))
    writer = RegionWriter(region)
    record = add(writer, "a")
    assert dict(reader.read()) == {("a",): [0.0]}
    writer.drop(record.place)
    assert dict(reader.read()) == {}
    # the newest number is not given twice, though its series is gone and its writer too
    add(RegionWriter(region), "b").slots[0] = 5.0
    assert dict(reader.read()) == {("b",): [5.0]}


def test_a_reader_asks_for_each_name_once():
    region = SeriesRegion.create(PAGE)
    asked: list[bytes] = []
    reader = RegionReader(region, lambda _family, text: asked.append(text))
    add(RegionWriter(region), "a")
    for _ in range(3):
        assert len(list(reader.read())) == 1
    assert asked == [b'["a"]']


@pytest.mark.logs("metrics.region_full")
def test_a_full_region_refuses_says_so_once_and_takes_more_when_there_is_room(caplog):
    region = SeriesRegion.create(1)
    writer = RegionWriter(region)
    places: list[int] = []
    while (record := writer.add(0, (f"{len(places):04d}",), 1)) is not None:
        places.append(record.place)
    assert writer.add(0, ("more",), 1) is None
    assert [r.msg for r in caplog.records] == ["metrics.region_full"]
    assert len(places) * 8 * 8 == PAGE - 64
    assert len(contents(region)) == len(places)
    writer.drop(places[5])
    again = writer.add(0, ("more",), 1)
    assert again is not None
    assert again.place == places[5]


@pytest.mark.logs("metrics.region_full")
def test_a_full_region_gives_the_space_of_a_larger_series_to_a_smaller_one():
    region = SeriesRegion.create(1)
    writer = RegionWriter(region)
    large = add(writer, "large", slots=400)
    while writer.add(0, ("x",), 100) is not None:
        pass
    while writer.add(0, ("x",), 1) is not None:
        pass
    writer.drop(large.place)
    small = writer.add(0, ("small",), 1)
    assert small is not None
    assert small.place == large.place
    assert (0, ("small",)) in contents(region)
    writer.drop(small.place)
    assert add(writer, "large", slots=400).place == large.place


def states_during(region: SeriesRegion, act: Callable[[], object]) -> list[bytes]:
    """The region's memory before each line that runs while `act` does, and after the last."""
    states: list[bytes] = []

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename.endswith("shared.py"):
            states.append(region.octets.tobytes())
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return [*states, region.octets.tobytes()]


@pytest.mark.parametrize("reused", [False, True], ids=["new space", "space of a dead one"])
def test_a_writer_killed_between_any_two_lines_of_adding_leaves_a_whole_region(reused):
    region = SeriesRegion.create(1)
    writer = RegionWriter(region)
    add(writer, "before").slots[0] = 4.0
    if reused:
        dead = add(writer, "dead", slots=2)
        dead.slots[0] = dead.slots[1] = 9.0
        writer.drop(dead.place)
    states = states_during(region, lambda: writer.add(3, ("new",), 2))
    old = {(7, ("before",)): [4.0]}
    new = {**old, (3, ("new",)): [0.0, 0.0]}
    seen = [contents(copy(state)) for state in states]
    assert len(states) > 10
    assert seen[0] == old
    assert seen[-1] == new
    assert all(each in (old, new) for each in seen)
    for state in states:
        survived = copy(state)
        successor = RegionWriter(survived)
        assert {r.values for r in successor.inherited} <= {("before",), ("new",)}
        add(successor, "next", slots=2).slots[1] = 1.0
        assert contents(survived)[7, ("next",)] == [0.0, 1.0]
        assert contents(survived)[7, ("before",)] == [4.0]


def test_a_writer_killed_between_any_two_lines_of_dropping_leaves_a_whole_region():
    region = SeriesRegion.create(1)
    writer = RegionWriter(region)
    add(writer, "stays").slots[0] = 4.0
    place = add(writer, "goes").place
    for state in states_during(region, lambda: writer.drop(place)):
        survived = copy(state)
        assert contents(survived)[7, ("stays",)] == [4.0]
        add(RegionWriter(survived), "next")
        assert contents(survived)[7, ("next",)] == [0.0]


def test_a_record_that_changes_while_it_is_read_is_left_out():
    region = SeriesRegion.create(1)
    writer = RegionWriter(region)
    place = add(writer, "a").place

    def name(_family: int, text: bytes) -> tuple[str, ...]:
        writer.drop(place)
        return label_values(text)

    assert list(RegionReader(region, name).read()) == []
    assert region.read(place) is None


def test_a_size_of_nothing_does_not_hang_a_reader():
    region = SeriesRegion.create(1)
    add(RegionWriter(region), "a")
    region.words[8] = 0
    assert len(list(region.places())) == 1
