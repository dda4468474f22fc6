"""Slots and their lines, read back with prometheus-client's own parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from aisix.telemetry.catalogue import Kind, MetricRow
from aisix.telemetry.series import Family, add, observe


def family(kind: Kind, *labels: str, buckets: tuple[float, ...] = ()) -> Family:
    return Family(MetricRow("aisix_thing", kind, labels, "A thing.", buckets))


def samples(of: Family) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = "".join(of.lines())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for parsed in text_string_to_metric_families(text)
        for sample in parsed.samples
    }


def test_a_family_without_series_shows_nothing():
    assert "".join(family(Kind.GAUGE, "a").lines()) == ""


def test_a_child_takes_the_labels_it_needs_and_is_the_same_every_time():
    things = family(Kind.GAUGE, "a")
    things.child({"a": "x", "b": "not ours"})[0] = 2.0
    things.child({"a": "x"})[0] += 1.0
    assert samples(things) == {("aisix_thing", (("a", "x"),)): 3.0}
    assert len(things) == 1


def test_a_metric_without_labels_has_no_braces():
    things = family(Kind.GAUGE)
    things.child({})[0] = 7.0
    assert "".join(things.lines()).endswith("\naisix_thing 7.0\n")


def test_a_summary_is_a_count_and_a_sum():
    things = family(Kind.SUMMARY, "a")
    add(things.child({"a": "x"}), 0.5)
    add(things.child({"a": "x"}), 1.0)
    labels = (("a", "x"),)
    assert samples(things) == {("aisix_thing_count", labels): 2, ("aisix_thing_sum", labels): 1.5}


def test_a_bucket_includes_its_upper_bound_and_all_below():
    things = family(Kind.HISTOGRAM, buckets=(0.1, 1.0))
    for value in (0.1, 0.2, 1.0, 5.0):
        observe(things.child({}), (0.1, 1.0), value)
    assert samples(things) == {
        ("aisix_thing_bucket", (("le", "0.1"),)): 1,
        ("aisix_thing_bucket", (("le", "1.0"),)): 3,
        ("aisix_thing_bucket", (("le", "+Inf"),)): 4,
        ("aisix_thing_count", ()): 4,
        ("aisix_thing_sum", ()): 6.3,
    }


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_loses_no_observation(values):
    things = family(Kind.HISTOGRAM, "a", buckets=(0.5, 2.0, 50.0))
    for value in values:
        observe(things.child({"a": "x"}), (0.5, 2.0, 50.0), value)
    seen = samples(things)
    for bound in (0.5, 2.0, 50.0):
        counted = seen.get(("aisix_thing_bucket", (("a", "x"), ("le", repr(bound)))), 0)
        assert counted == sum(value <= bound for value in values)
    assert seen.get(("aisix_thing_count", (("a", "x"),)), 0) == len(values)


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_any_configured_name_survives_as_a_label(name):
    things = family(Kind.GAUGE, "a")
    things.child({"a": name})[0] = 1.0
    assert samples(things) == {("aisix_thing", (("a", name),)): 1.0}


def test_a_lone_surrogate_in_a_name_does_not_spoil_the_scrape():
    things = family(Kind.GAUGE, "a")
    things.child({"a": "x\ud800"})[0] = 1.0
    assert "".join(things.lines()).encode().endswith(b'{a="x?"} 1.0\n')


def test_series_that_are_not_kept_are_gone():
    things = family(Kind.GAUGE, "a")
    things.child({"a": "x"})
    things.child({"a": "y"})
    things.retain(lambda values: values == ("y",))
    assert samples(things) == {("aisix_thing", (("a", "y"),)): 0.0}
