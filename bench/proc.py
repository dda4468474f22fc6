"""CPU time, memory and connections of processes, read from /proc.

The `parse_` functions are pure; the rest reads files. A process that has ended meanwhile counts as
nothing: its figures are gone with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_ESTABLISHED = "01"
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of some processes in kB.

    `rss_kb` is the sum, `pss_kb` the sum with shared pages divided among their users, and
    `largest_kb` the resident memory of the largest process.
    """

    rss_kb: int
    pss_kb: int
    largest_kb: int


def parse_stat_parent(text: str) -> int:
    """The parent's id in `/proc/<pid>/stat`. The name before it may hold spaces and brackets."""
    return int(text.rpartition(")")[2].split()[1])


def parse_stat_cpu_s(text: str, *, ticks_per_s: int) -> float:
    """utime + stime of `/proc/<pid>/stat` in seconds."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


def parse_schedstat_s(text: str) -> float:
    """Time on a CPU in `/proc/<pid>/task/<tid>/schedstat`, seconds."""
    return int(text.split(maxsplit=1)[0]) / 1e9


def parse_kb(text: str, field: str) -> int:
    """A field of `status` or `smaps_rollup` that is given in kB; 0 when it is absent."""
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def parse_established(text: str, port: int) -> set[str]:
    """The socket inodes of open connections to a local port in `/proc/net/tcp`."""
    inodes = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        local_port = int(fields[1].rpartition(":")[2], 16)
        if local_port == port and fields[3] == _ESTABLISHED:
            inodes.add(fields[9])
    return inodes


def tree(root: int) -> list[int]:
    """A process and all that descend from it, the root first."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(*_GONE):
                parent = parse_stat_parent((entry / "stat").read_text())
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of all threads of these processes so far."""
    return sum(_process_cpu_s(pid) for pid in pids)


def _process_cpu_s(pid: int) -> float:
    total = 0.0
    with suppress(*_GONE):
        for task in (_PROC / str(pid) / "task").iterdir():
            with suppress(*_GONE):
                total += _thread_cpu_s(task)
    return total


def _thread_cpu_s(task: Path) -> float:
    try:
        return parse_schedstat_s((task / "schedstat").read_text())
    except FileNotFoundError:  # a kernel without scheduler statistics: 10 ms instead of 1 ns
        return parse_stat_cpu_s((task / "stat").read_text(), ticks_per_s=os.sysconf("SC_CLK_TCK"))


def memory(pids: Sequence[int]) -> Memory:
    """What these processes hold now."""
    rss = [_read_kb(pid, "status", "VmRSS") for pid in pids]
    pss = [_read_kb(pid, "smaps_rollup", "Pss") for pid in pids]
    return Memory(sum(rss), sum(pss), max(rss, default=0))


def reset_peak(pids: Iterable[int]) -> None:
    """Let the peak of resident memory start anew."""
    for pid in pids:
        with suppress(*_GONE):
            (_PROC / str(pid) / "clear_refs").write_text("5")


def peak_kb(pids: Iterable[int]) -> int:
    """The peaks of resident memory since `reset_peak`, added up."""
    return sum(_read_kb(pid, "status", "VmHWM") for pid in pids)


def _read_kb(pid: int, name: str, field: str) -> int:
    with suppress(*_GONE):
        return parse_kb((_PROC / str(pid) / name).read_text(), field)
    return 0


def connections(pids: Iterable[int], port: int) -> list[int]:
    """How many open connections to this local port each process holds."""
    inodes = parse_established((_PROC / "net" / "tcp").read_text(), port)
    return [_held(pid, inodes) for pid in pids]


def _held(pid: int, inodes: set[str]) -> int:
    held = 0
    with suppress(*_GONE):
        for descriptor in (_PROC / str(pid) / "fd").iterdir():
            with suppress(*_GONE):
                target = os.readlink(descriptor)
                held += target.startswith("socket:[") and target[8:-1] in inodes
    return held
