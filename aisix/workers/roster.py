"""Who is who among the processes: a page of memory that all of them share, and when to restart.

The supervisor writes the page, the control process reads it: it is made before the first fork and
outlives every child. Each number is written in one piece by one process, so nothing is locked.
"""

from __future__ import annotations

import mmap
import struct

CALM_S = 10.0
"""A process that lived this long is restarted at once, whatever became of those before it."""

RESTART_DELAYS_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""How long the next one waits after so many short lives in a row; the last holds for all more."""

_NUMBER = struct.Struct("q")


class Roster:
    """The process ids of the workers, and whether the gateway was ever ready."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._page = mmap.mmap(-1, _NUMBER.size * (workers + 1))

    @property
    def was_ready(self) -> bool:
        """Whether the gateway has been ready since the supervisor started."""
        return bool(self._read(0))

    def note_ready(self) -> None:
        """It is ready."""
        self._write(0, 1)

    def pid(self, worker: int) -> int:
        """The process id of `worker`; 0 while it does not run."""
        return self._read(worker + 1)

    def pids(self) -> list[int]:
        """All of them, in order."""
        return [self.pid(worker) for worker in range(self.workers)]

    def enter(self, worker: int, pid: int) -> None:
        """`worker` runs as `pid`; 0: it has ended."""
        self._write(worker + 1, pid)

    def _read(self, index: int) -> int:
        value: int = _NUMBER.unpack_from(self._page, index * _NUMBER.size)[0]
        return value

    def _write(self, index: int, value: int) -> None:
        _NUMBER.pack_into(self._page, index * _NUMBER.size, value)


class Patience:
    """How long to wait before a process that ended is started again."""

    def __init__(self) -> None:
        self._short_lives = 0

    def delay_s(self, lived_s: float) -> float:
        """The wait after a life of `lived_s`."""
        if lived_s >= CALM_S:
            self._short_lives = 0
        delay = RESTART_DELAYS_S[min(self._short_lives, len(RESTART_DELAYS_S) - 1)]
        self._short_lives += 1
        return delay
