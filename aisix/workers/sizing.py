"""How many workers `auto` means: what CPUs, their quota and memory allow. Pure but for `look`.

A container's limits stand in the files of its control group, in two generations of spelling, and
any group above it may be the tighter one; so every level up to the root is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_WORKERS = 8
"""More rarely pays on one host; whoever knows better writes a number."""

WORKER_MEMORY_BYTES = 150_000_000
"""What one worker is given of a memory limit, its traffic included."""

_UNLIMITED_BYTES = 1 << 60
"""Version 1 spells "no limit" as a number of about this size."""


@dataclass(frozen=True, slots=True)
class Room:
    """What this process may use. None: not limited."""

    cpus: int
    cpu_quota: float | None = None
    memory_bytes: int | None = None


def worker_count(setting: int | str) -> int:
    """What `proxy.workers` means here: a number, or "auto"."""
    return auto_workers(look()) if isinstance(setting, str) else setting


def auto_workers(room: Room) -> int:
    """As many workers as there is room for; at least 1."""
    bounds = [room.cpus, MAX_WORKERS]
    if room.cpu_quota is not None:
        bounds.append(math.ceil(room.cpu_quota))
    if room.memory_bytes is not None:
        bounds.append(room.memory_bytes // WORKER_MEMORY_BYTES)
    return max(1, min(bounds))


def look(root: Path = Path("/"), *, cpus: int | None = None) -> Room:
    """Read it off the system below `root`; what cannot be read does not limit."""
    if cpus is None:
        cpus = len(os.sched_getaffinity(0))
    quotas: list[float] = []
    memories: list[int] = []
    for folder in _groups(root):
        quotas.extend(_quota(folder))
        memories.extend(_memory(folder))
    return Room(cpus, min(quotas, default=None), min(memories, default=None))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of all above them, as mounted here."""
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts = [base / controllers, *(base / name for name in controllers.split(",") if name)]
        for mount in dict.fromkeys(mounts if controllers else [base]):
            # inside a container the path may be the host's; the own group is then the root
            inner = Path(path.strip("/"))
            for level in (inner, *inner.parents):
                yield mount / level


def _quota(folder: Path) -> Iterator[float]:
    limit, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not limit:
        limit = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    if limit.isdecimal() and period.isdecimal() and int(limit) and int(period):
        yield int(limit) / int(period)


def _memory(folder: Path) -> Iterator[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _text(folder / name).strip()
        if limit.isdecimal() and int(limit) < _UNLIMITED_BYTES:
            yield int(limit)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
