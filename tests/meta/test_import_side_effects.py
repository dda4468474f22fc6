"""Importing any module starts nothing: no loop, no thread, no socket, no file left open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import asyncio, importlib, os, pkgutil, sys, threading
sys.path.insert(0, os.getcwd())
before = set(os.listdir("/proc/self/fd"))
import aisix
names = [m.name for m in pkgutil.walk_packages(aisix.__path__, "aisix.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
import server
assert len(names) > 40, names
assert threading.active_count() == 1, threading.enumerate()
assert asyncio._get_running_loop() is None
left = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before
        if os.path.exists(f"/proc/self/fd/{fd}")}
assert not any(target.startswith("socket:") for target in left.values()), left
import logging
assert not logging.getLogger().handlers, logging.getLogger().handlers
assert not logging.getLogger("aisix").handlers
print("clean")
"""


def test_importing_every_module_starts_nothing():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "clean"


LOADED = """
import sys
import server, aisix.control, aisix.workers.control_process
print(sorted({"azure", "msal", "requests"} & sys.modules.keys()))
"""


def test_nothing_loads_azure_identity_before_a_token_is_wanted():
    """It is a sixth of the memory of a gateway at rest."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert run.stdout.strip() == "[]"
