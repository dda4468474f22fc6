"""How the C library hands memory back to the system. I/O: settings of this process.

glibc adapts: once a block of 20 MB was freed, blocks of that size come from the heap and up to
twice as much of it is kept. One large request would leave its size behind for good. Fixed figures
end that. They are high enough that bodies of ordinary size never cost a system call of their own.
"""

from __future__ import annotations

import ctypes

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


def fix_thresholds() -> bool:
    """Apply the figures, to this process and those it forks; False when this C library has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _FIGURES)
