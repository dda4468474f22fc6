"""What one caller makes the process hold, read from the outside: a large body, a slow reader."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.process import CALLER_KEY, Stand, stand

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

MB = 1_000_000
MIB = 1024 * 1024
VISION_BYTES = 20 * MB
STREAM_MIB = 100
PAUSES = 6
STILL_S = 0.25
WAIT_S = 30.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Stand]:
    """A process of its own for each test: a peak is that of the whole life."""
    with stand(tmp_path) as running:
        yield running


class Process:
    """A process, seen from the outside."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc", str(pid))

    def bytes_of(self, figure: str) -> int:
        """VmRSS, VmHWM."""
        status = (self._folder / "status").read_text()
        return int(status.split(f"\n{figure}:", 1)[1].split()[0]) * 1024

    def until_still(self) -> None:
        """Wait until it has used no CPU for a quarter of a second."""
        deadline = time.monotonic() + WAIT_S
        used, since = self._used(), time.monotonic()
        while time.monotonic() - since < STILL_S:
            assert time.monotonic() < deadline, "it never rests"
            time.sleep(0.01)
            if self._used() != used:
                used, since = self._used(), time.monotonic()

    def _used(self) -> list[str]:
        """User and system ticks."""
        return (self._folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13]


def test_a_vision_request_of_20_mb_costs_at_most_70_mb(bench):
    alias = bench.alias("chat")
    picture = f"data:image/png;base64,{'iVBORw0KGgo' * (VISION_BYTES // 11)}"
    process = Process(bench.gateway.process.pid)
    for _ in range(2):
        assert bench.gateway.chat(alias).status == 200
    process.until_still()
    idle_bytes = process.bytes_of("VmRSS")
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]}
    answer = bench.gateway.chat(alias, messages=[message])
    assert answer.status == 200, answer.body[:500]
    assert process.bytes_of("VmHWM") - idle_bytes <= 70 * MB
    (record,) = bench.azure.requests(wait=3)[-1:]
    assert record["outcome"] == "completed"


def test_a_slow_reader_of_a_100_mb_stream_costs_at_most_2_mb(bench):
    alias = bench.alias(f"chat-bulk{STREAM_MIB}")
    process = Process(bench.gateway.process.pid)
    for _ in range(2):
        assert bench.gateway.chat(bench.alias("chat"), stream=True).status == 200
    with _streaming(bench, alias) as caller:
        process.until_still()
        idle_bytes = process.bytes_of("VmRSS")
        figures: list[int] = []
        size = 0
        end = b""
        while piece := caller.recv(64 * 1024):
            size += len(piece)
            end = end[-64:] + piece
            if size > len(figures) * MB and len(figures) < PAUSES:
                process.until_still()  # all that stands between the upstream and us is full
                figures.append(process.bytes_of("VmRSS"))
        figures.append(process.bytes_of("VmRSS"))
    assert size > STREAM_MIB * MIB
    assert end.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert max(figures) - idle_bytes <= 2 * MB


@contextmanager
def _streaming(bench: Stand, alias: str) -> Iterator[socket.socket]:
    """A connection on which a stream has been asked for, with little room for what it brings."""
    message = {"role": "user", "content": "x"}
    body = json.dumps({"model": alias, "stream": True, "messages": [message]})
    place = urlsplit(bench.gateway.proxy)
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        caller.settimeout(WAIT_S)
        caller.connect((place.hostname, place.port))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
            f"Authorization: Bearer {CALLER_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        caller.sendall(head.encode() + body.encode())
        yield caller
