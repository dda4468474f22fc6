"""Rules every test lives under: a clean log, stated services, bounded examples."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "aisix",
    deadline=None,
    max_examples=int(os.environ.get("AISIX_TEST_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("aisix")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="session", autouse=True)
def no_loop_by_accident() -> None:
    """The first async test would have asyncio make a loop that nobody closes; whichever test the
    garbage collector meets it in would then fail."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def clean_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """An unexpected WARNING or worse fails the test; `@pytest.mark.logs("name", …)` expects them.

    A name matches the record's logger or the start of its message.
    """
    collector = _Collector()
    root = logging.getLogger()
    root.addHandler(collector)
    named = [logging.getLogger(name) for name in ("aisix", "tornado", "asyncio", "azure")]
    attached = [logger for logger in named if not logger.propagate]
    for logger in attached:
        logger.addHandler(collector)
    yield
    root.removeHandler(collector)
    for logger in attached:
        logger.removeHandler(collector)
    marker = request.node.get_closest_marker("logs")
    expected = marker.args if marker else ()
    surprising = [
        record
        for record in collector.records
        if not any(
            record.name.startswith(name) or record.getMessage().startswith(name)
            for name in expected
        )
    ]
    assert not surprising, [
        f"{record.name} {record.levelname}: {record.getMessage()}"
        f" {record.__dict__.get('error', '')}"
        for record in surprising
    ]


@pytest.fixture(autouse=True)
def needed_service(request: pytest.FixtureRequest) -> None:
    """`@pytest.mark.service("prog")` skips without the program; REQUIRE_SERVICES makes it fail."""
    for marker in request.node.iter_markers("service"):
        for program in marker.args:
            if shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin"):
                continue
            message = f"needs the program {program}, which is not installed"
            if os.environ.get("REQUIRE_SERVICES") == "1":
                pytest.fail(message)
            pytest.skip(message)


ASKED_FOR = ("soak", "clients")
"""Markers of long forms: such tests run only when their marker is asked for."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long forms run only when asked for by their marker."""
    unasked = [name for name in ASKED_FOR if name not in (config.option.markexpr or "")]
    dropped = [item for item in items if any(map(item.get_closest_marker, unasked))]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
