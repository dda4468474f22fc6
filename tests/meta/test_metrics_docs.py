"""docs/metrics.md and the catalogue say the same, and the page's statement of size holds."""

from __future__ import annotations

from pathlib import Path

from aisix.telemetry.catalogue import API_KEY_LABEL, CATALOGUE, Kind, MetricRow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def section(name: str) -> list[str]:
    """The lines between `<!-- name -->` and `<!-- /name -->`."""
    text = PAGE.read_text()
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].strip().splitlines()


def row_line(row: MetricRow) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels) or "–"
    return f"| `{row.name}` | {row.kind.value} | {labels} | {row.help} |"


def bucket_line(row: MetricRow) -> str:
    return f"| `{row.name}` | {' '.join(f'{bound:g}' for bound in row.buckets)} |"


def test_the_page_shows_the_catalogue_row_by_row():
    expected = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    expected += [row_line(row) for row in CATALOGUE]
    assert section("catalogue") == expected, "\n".join(expected)


def test_the_page_shows_the_buckets_of_every_histogram():
    expected = ["| histogram | upper bounds in seconds |", "|---|---|"]
    expected += [bucket_line(row) for row in CATALOGUE if row.kind is Kind.HISTOGRAM]
    assert section("buckets") == expected, "\n".join(expected)


def test_the_page_names_the_counters_that_carry_the_caller_key():
    text = "\n".join(section("per-key"))
    for row in CATALOGUE:
        assert (f"`{row.name}`" in text) == (API_KEY_LABEL in row.labels), row.name
