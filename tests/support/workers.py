"""A gateway with several workers, seen from outside: its processes, living and dead. I/O."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.process import WAIT_S, GatewayProgram, Stand, stand

WORKERS = "AISIX_PROXY__WORKERS"


@contextmanager
def crowd(
    folder: Path, workers: int = 2, settings: Mapping[str, str] | None = None
) -> Iterator[Stand]:
    """A simulator and a gateway with so many workers."""
    with stand(folder, {WORKERS: str(workers), **(settings or {})}) as bench:
        yield bench


def eventually(condition: Callable[[], object], *, within_s: float = WAIT_S) -> float:
    """Seconds until `condition` holds. Raises AssertionError."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < within_s, f"not within {within_s} s"
        time.sleep(0.005)  # asked of another process: there is nothing to wait on
    return time.monotonic() - began


def children(program: GatewayProgram) -> list[int]:
    """The processes that it has started and that run."""
    pid = program.process.pid
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in listed.split() if running(int(child))]


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def worker_pids(program: GatewayProgram) -> list[int]:
    """The workers it began with, in order."""
    pids: list[int] = program.events("gateway.ready")[0]["pids"]
    return pids


def control_pid(program: GatewayProgram) -> int:
    """The control process: the one that has loaded a database."""
    (control,) = [pid for pid in children(program) if "sqlite" in libraries(pid)]
    return control


def kill(pid: int) -> None:
    """The hard way."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not running(pid))


def libraries(pid: int) -> str:
    """What a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()
