"""Reads a recorder by scraping it, as Prometheus does."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from aisix.core.ports import Recorder

Labels = tuple[tuple[str, str], ...]


class Levels:
    """A HealthView that knows every alias at one level."""

    def __init__(self, level: int = 0) -> None:
        self._level = level

    def level(self, alias_name: str) -> int:
        """The one level."""
        return self._level

    def last_failure(self, alias_name: str) -> tuple[float, str] | None:
        """Nothing ever failed."""
        return None


def scrape(recorder: Recorder) -> dict[str, dict[Labels, float]]:
    """Sample name → labels → value."""
    content_type, body = recorder.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    found: dict[str, dict[Labels, float]] = {}
    for parsed in text_string_to_metric_families(body.decode()):
        for sample in parsed.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(recorder: Recorder, name: str, **labels: str) -> float:
    """The sum of the samples of `name` that carry `labels`."""
    wanted = labels.items()
    return sum(
        number
        for found, number in scrape(recorder).get(name, {}).items()
        if wanted <= dict(found).items()
    )
