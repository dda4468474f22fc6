"""An upload, a download and slow readers at once: what the process holds, read from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_memory import MB, Process
from tests.support.process import ROOT, Stand, stand

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

SIZE_MB = 50
READERS = 20
KEY = "sk-bulk"
HELD_BYTES = 256 * 1024
"""What of one exchange is held at most, by ARCHITECTURE.md."""

OWN_BYTES = 4 * MB
"""What the process may grow by for other reasons: code that is used for the first time."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Stand]:
    """A process of its own: a peak is that of the whole life."""
    with stand(tmp_path) as running:
        running.gateway.create_caller_key(KEY, allowed_resources=["files"])
        yield running


def test_pictures_of_20_mb_cost_at_most_100_mb(bench: Stand) -> None:
    """As text they are 27 MB; that they are read costs twice as much again."""
    process = Process(bench.gateway.process.pid)
    for size, most in ((10, 0), (20 * MB, 100 * MB)):
        alias = bench.alias(f"gpt-image-size{size}", api_version="v1")
        process.until_still()
        idle_bytes = process.bytes_of("VmRSS")
        body = {"model": alias, "prompt": "a cat"}
        answer = bench.gateway.call("/v1/images/generations", body)
        assert (answer.status, len(answer.json["data"])) == (200, 1)
        if most:
            assert process.bytes_of("VmHWM") - idle_bytes <= most


def load(bench: Stand, alias: str, megabytes: int, readers: int) -> dict[str, float]:
    """Let the load generator, a process of its own, do all of it; what it says."""
    words = ["--url", bench.gateway.proxy, "--key", KEY, "--model", alias]
    words += ["--mb", str(megabytes), "--readers", str(readers)]
    ended = subprocess.run(
        [sys.executable, "-m", "bench.bulk", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures


@pytest.mark.timeout(120)
def test_bulk_in_both_directions_and_slow_readers_cost_what_is_on_its_way(bench: Stand) -> None:
    alias = bench.alias("chat-bulk100")
    process = Process(bench.gateway.process.pid)
    load(bench, alias, 2, 2)
    bench.azure.requests(outcome="client_closed", wait=2)
    process.until_still()
    idle_bytes = process.bytes_of("VmRSS")
    assert load(bench, alias, SIZE_MB, READERS)["read_mb"] > 0
    assert process.bytes_of("VmHWM") - idle_bytes <= (READERS + 2) * HELD_BYTES + OWN_BYTES
    lines = bench.gateway.events("request.completed", count=3 + 2 + 3 + READERS)
    assert {line["status"] for line in lines} == {200, 499}
