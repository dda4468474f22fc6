"""Who is who among the processes: a page of memory that all of them share, and when to restart.

It is made before the first fork and outlives every child. Each number on it is written in one piece
by one process, the supervisor or the control process, so nothing is locked.
"""

from __future__ import annotations

import mmap
import struct

CALM_S = 10.0
"""A process that lived this long is restarted at once, whatever became of those before it."""

RESTART_DELAYS_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""How long the next one waits after so many short lives in a row; the last holds for all more."""

_NUMBER = struct.Struct("q")
_READY, _RESTARTS, _LAGGED, _PIDS = range(4)


class Roster:
    """The process ids of the workers, and what has happened since the supervisor started."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._page = mmap.mmap(-1, _NUMBER.size * (_PIDS + workers))

    @property
    def was_ready(self) -> bool:
        """Whether the gateway has been ready."""
        return bool(self._read(_READY))

    def note_ready(self) -> None:
        """It is ready."""
        self._write(_READY, 1)

    @property
    def restarts(self) -> int:
        """Workers that ended unasked."""
        return self._read(_RESTARTS)

    def note_restart(self) -> None:
        """Supervisor: one more."""
        self._write(_RESTARTS, self.restarts + 1)

    @property
    def lagged(self) -> int:
        """Workers that were too late with a write."""
        return self._read(_LAGGED)

    def note_lagged(self) -> None:
        """Control process: one more."""
        self._write(_LAGGED, self.lagged + 1)

    def pid(self, worker: int) -> int:
        """The process id of `worker`; 0 while it does not run."""
        return self._read(_PIDS + worker)

    def pids(self) -> list[int]:
        """All of them, in order."""
        return [self.pid(worker) for worker in range(self.workers)]

    def enter(self, worker: int, pid: int) -> None:
        """`worker` runs as `pid`; 0: it has ended."""
        self._write(_PIDS + worker, pid)

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
