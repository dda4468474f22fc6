"""What the allocator does with large blocks, asked in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import ctypes
from aisix.allocator import fix_thresholds

class Figures(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Figures
assert fix_thresholds()
block = bytes(20_000_000)
del block
before = mallinfo().hblkhd
block = bytes(8_000_000)
print(mallinfo().hblkhd - before >= 8_000_000)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_after_one_large_block_others_are_still_mapped():
    """A mapped block goes back to the system when it is freed."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert run.stdout.strip() == "True"


CALM = """
import gc
from aisix.allocator import calm_collector

calm_collector()
print(gc.get_threshold()[0] >= 10_000, gc.get_freeze_count() > 1_000, gc.isenabled())
"""


def test_the_collector_is_calm_but_not_off():
    run = subprocess.run(
        [sys.executable, "-c", CALM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert run.stdout.split() == ["True"] * 3
