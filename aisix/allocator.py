"""How memory is handed back: by the C library, by the collector. I/O: settings of this process.

glibc adapts: once a block of 20 MB was freed, blocks of that size come from the heap and up to
twice as much of it is kept. One large request would leave its size behind for good. Fixed figures
end that. They are high enough that bodies of ordinary size never cost a system call of their own.

Python's collector looks for circles among young objects after every 700 of them: with some dozens
of exchanges under way that is a look at all of them every few requests, a twentieth of the CPU.
Exchanges make no circles (`tests/integration/test_exchange_memory.py`), so it may look rarely.
"""

from __future__ import annotations

import ctypes
import gc

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_MIB = 1024 * 1024
_FIGURES = (
    (_M_MMAP_THRESHOLD, 4 * _MIB),  # a block from this size on is mapped, and goes when it is freed
    (_M_TRIM_THRESHOLD, 4 * _MIB),  # so much free heap is kept
    # the heap grows by what is asked for: of memory that nobody had yet libcurl's buffers then
    # take the pages they write to, 7 KB less for each stream
    (_M_TOP_PAD, 0),
)


_YOUNG_OBJECTS = 50_000
"""So many more objects than before make the collector look; circles of that many cost some MB."""


def calm_collector() -> None:
    """Leave what exists now out of all collections, and look rarely at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 100)


def fix_thresholds() -> bool:
    """Apply the figures, to this process and those it forks; False when this C library has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _FIGURES)
