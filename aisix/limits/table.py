"""Rows of memory that all workers of a host share, found by name, changed under one lock.

The memory is an anonymous file (memfd), mapped before the fork. It holds two open-addressing tables
without pointers: buckets, and concurrency counters with one cell per worker. A row belongs to the
16-byte digest of a key and lies within PROBE rows of that digest's home. There are no tombstones: a
row that holds nothing any more (a drained bucket, a counter at zero) keeps its name until another
key needs the room. When no row of a window is free, the one that holds least is lost and counted in
`evictions`: a table that is too small forgets spending, it never fails.

The lock is a POSIX record lock on byte 0 of the file. The kernel frees it when its holder dies,
however it dies. It belongs to a process, not to a thread, and closing any descriptor of the file
drops it: nothing here opens the file a second time, and one thread per process uses it. A holder
that is stopped (not killed) holds up all others.

Whoever is killed between two stores leaves every row whole. A bucket has two states and a word that
says which one is live: the other one is written, then the word, which is one aligned store. A row
changes its name only while it holds nothing, so half a name is merely a free row. A cell is one
aligned store. I/O: shared memory and the lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Container
from hashlib import blake2b
from math import inf
from struct import Struct

from aisix.limits.buckets import Bucket, spent_at

PROBE = 16
"""Rows that may hold a key: more than the charges of one decision, which never evict each other."""

DEFAULT_ENTRIES = 65_536
"""Bucket rows: 4.5 MiB when all are in use. Twice the buckets that live at a time is plenty."""

BUCKETS_PER_COUNTER = 4
"""A key has several buckets and at most one counter."""

MAX_WORKERS = 256

HEADER_BYTES = mmap.PAGESIZE
"""All zeros but for the last word, which counts evictions."""

DIGEST_BYTES = 16
VACANT = bytes(DIGEST_BYTES)
"""The name of a row that was never used; no row goes back to it, so a search may end there."""

NOWHERE = 0
"""The offset of no row. The header is there, which bears the name of no key."""

BUCKET_ROW = Struct("@16sq3d3d")
"""Digest, which state is live, both states."""

STATE = Struct("@3d")
STATE_OFFSETS = (DIGEST_BYTES + 8, DIGEST_BYTES + 8 + STATE.size)
EMPTY: Bucket = (0.0, 0.0, 0.0)


class Place:
    """Where one process last saw the row of a key; another may have taken the row since."""

    __slots__ = ("at", "digest")

    def __init__(self, key: str) -> None:
        raw = key.encode("utf-8", "surrogatepass")
        self.digest = blake2b(raw, digest_size=DIGEST_BYTES).digest()
        self.at = NOWHERE


class _Rows(ABC):
    """One open-addressing table. Everything here needs the lock."""

    def __init__(self, memory: mmap.mmap, start: int, *, entries: int, row: Struct) -> None:
        self._memory = memory
        self._start = start
        self._entries = entries
        self._row = row
        self._row_bytes = row.size
        self._evictions = memoryview(memory).cast("@Q")[HEADER_BYTES // 8 - 1 : HEADER_BYTES // 8]

    @staticmethod
    def size(entries: int, row: Struct) -> int:
        """Bytes of a table; windows do not wrap, so the last home has a whole one too."""
        return (entries + PROBE - 1) * row.size

    def everywhere(self) -> range:
        """The offsets of all rows."""
        end = self._start + self.size(self._entries, self._row)
        return range(self._start, end, self._row_bytes)

    def claim(self, place: Place, now: float, keep: Container[int]) -> None:
        """Give `place`, which has no row, the first free one of its window, or else the one that
        holds least; rows at `keep` are left alone.
        """
        best, least = NOWHERE, inf
        for at in self._window(place.digest):
            if at in keep:
                continue
            burden = self.burden(at, now)
            if best == NOWHERE or burden < least:
                best, least = at, burden
            if burden <= 0.0:
                break
        if best == NOWHERE:
            raise RuntimeError(f"one decision is about more than {PROBE} keys")
        if least > 0.0:
            self._evictions[0] += 1
            self.clear(best)
        self._memory[best : best + DIGEST_BYTES] = place.digest
        place.at = best

    @abstractmethod
    def burden(self, at: int, now: float) -> float:
        """How much is lost with the row; 0 when it holds nothing."""

    @abstractmethod
    def clear(self, at: int) -> None:
        """Let the row hold nothing."""

    def close(self) -> None:
        """Let go of the memory."""
        self._evictions.release()

    def _seek(self, place: Place) -> bool:
        """Find the row of `place`; whether there is one."""
        for at in self._window(place.digest):
            name = self._memory[at : at + DIGEST_BYTES]
            if name == place.digest:
                place.at = at
                return True
            if name == VACANT:
                break
        place.at = NOWHERE
        return False

    def _window(self, digest: bytes) -> range:
        home = int.from_bytes(digest[:8], "little") % self._entries
        first = self._start + home * self._row_bytes
        return range(first, first + PROBE * self._row_bytes, self._row_bytes)


class BucketRows(_Rows):
    """Buckets by name."""

    def __init__(self, memory: mmap.mmap, start: int, *, entries: int) -> None:
        super().__init__(memory, start, entries=entries, row=BUCKET_ROW)
        self._words = memoryview(memory).cast("@q")

    def read(self, place: Place) -> Bucket | None:
        """The bucket of `place`, None when it has no row; `place.at` is true until the unlock."""
        row = BUCKET_ROW.unpack_from(self._memory, place.at)
        if row[0] != place.digest:
            if not self._seek(place):
                return None
            row = BUCKET_ROW.unpack_from(self._memory, place.at)
        return row[5:] if row[1] else row[2:5]

    def write(self, at: int, bucket: Bucket) -> None:
        """Replace the bucket in the row at `at`, as a whole or not at all."""
        word = (at + DIGEST_BYTES) // 8
        other = 0 if self._words[word] else 1
        STATE.pack_into(self._memory, at + STATE_OFFSETS[other], *bucket)
        self._words[word] = other

    def burden(self, at: int, now: float) -> float:
        """Seconds until the bucket has drained; forever when it has no pace."""
        row = BUCKET_ROW.unpack_from(self._memory, at)
        bucket: Bucket = row[5:] if row[1] else row[2:5]
        spent = spent_at(bucket, now)
        if spent <= 0.0:
            return 0.0
        return spent / bucket[2] if bucket[2] > 0.0 else inf

    def clear(self, at: int) -> None:
        self.write(at, EMPTY)

    def close(self) -> None:
        super().close()
        self._words.release()


class CounterRows(_Rows):
    """Concurrency counters by name: what is in flight in each worker."""

    def __init__(self, memory: mmap.mmap, start: int, *, entries: int, row: Struct) -> None:
        super().__init__(memory, start, entries=entries, row=row)
        self._cells = memoryview(memory).cast("@I")
        self._zeros = bytes(row.size - DIGEST_BYTES)

    @staticmethod
    def form(workers: int) -> Struct:
        """A row with a cell for each worker, padded to whole words."""
        return Struct(f"@{DIGEST_BYTES}s{workers}I{'4x' if workers % 2 else ''}")

    def read(self, place: Place) -> int:
        """What is in flight in all workers; `place.at` is true until the unlock."""
        row = self._row.unpack_from(self._memory, place.at)
        if row[0] != place.digest:
            if not self._seek(place):
                return 0
            row = self._row.unpack_from(self._memory, place.at)
        return sum(row[1:])

    def enter(self, at: int, worker: int) -> None:
        """One more in `worker`."""
        self._cells[(at + DIGEST_BYTES) // 4 + worker] += 1

    def leave(self, at: int, worker: int) -> None:
        """One less in `worker`, if there is one."""
        cell = (at + DIGEST_BYTES) // 4 + worker
        if self._cells[cell] > 0:
            self._cells[cell] -= 1

    def reclaim(self, worker: int) -> None:
        """Nothing is in flight in `worker`."""
        rows = self.everywhere()
        first = (rows.start + DIGEST_BYTES) // 4 + worker
        column = self._cells[first : rows.stop // 4 : rows.step // 4]
        column[:] = memoryview(bytes(4 * len(column))).cast("@I")

    def burden(self, at: int, now: float) -> float:
        """What is in flight."""
        return float(sum(self._row.unpack_from(self._memory, at)[1:]))

    def clear(self, at: int) -> None:
        self._memory[at + DIGEST_BYTES : at + self._row_bytes] = self._zeros

    def close(self) -> None:
        super().close()
        self._cells.release()


class SharedTable:
    """The memory and its lock. Made before the fork; every process uses its inherited copy."""

    def __init__(self, fd: int, memory: mmap.mmap, *, workers: int, entries: int) -> None:
        """Wrap what `create` made."""
        form = CounterRows.form(workers)
        self.workers = workers
        self.buckets = BucketRows(memory, HEADER_BYTES, entries=entries)
        self.counters = CounterRows(
            memory,
            HEADER_BYTES + BucketRows.size(entries, BUCKET_ROW),
            entries=_counters_for(entries),
            row=form,
        )
        self._fd = fd
        self._memory = memory
        self._closed = False

    @classmethod
    def create(cls, *, workers: int, entries: int = DEFAULT_ENTRIES) -> SharedTable:
        """A table for `entries` living buckets and a quarter as many counters. Memory is used as
        rows are. Raises ValueError, and OSError when the system has no such memory.
        """
        if not 1 <= workers <= MAX_WORKERS or entries < 1:
            raise ValueError(f"a table for {workers} workers and {entries} buckets cannot be made")
        size = HEADER_BYTES + BucketRows.size(entries, BUCKET_ROW)
        size += CounterRows.size(_counters_for(entries), CounterRows.form(workers))
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("aisix-limits")
        try:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, memory, workers=workers, entries=entries)

    @property
    def evictions(self) -> int:
        """Rows that were lost because the table is too small."""
        return int.from_bytes(self._memory[HEADER_BYTES - 8 : HEADER_BYTES], "little")

    def lock(self) -> None:
        """Wait until no other process is inside a decision: a few microseconds."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1)

    def unlock(self) -> None:
        """Let others decide."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)

    def reclaim(self, worker: int) -> None:
        """Take back every concurrency slot of a worker that is dead. Raises ValueError."""
        if not 0 <= worker < self.workers:
            raise ValueError(f"there is no worker {worker} of {self.workers}")
        self.lock()
        try:
            self.counters.reclaim(worker)
        finally:
            self.unlock()

    def used(self, now: float) -> int:
        """Rows that hold something. Walks the whole table: for tests and diagnosis."""
        self.lock()
        try:
            return sum(
                rows.burden(at, now) > 0.0
                for rows in (self.buckets, self.counters)
                for at in rows.everywhere()
            )
        finally:
            self.unlock()

    def close(self) -> None:
        """Let go of the memory in this process. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.buckets.close()
        self.counters.close()
        self._memory.close()
        os.close(self._fd)


def _counters_for(entries: int) -> int:
    return max(1, entries // BUCKETS_PER_COUNTER)
