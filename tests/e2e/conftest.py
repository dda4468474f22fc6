"""Processes that a module shares: starting them takes longer than most tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import ROOT, Stand, stand

NPM_TIMEOUT_S = 50.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway in front of a simulator, for a whole module."""
    with stand(tmp_path_factory.mktemp("stand")) as running:
        yield running


@pytest.fixture
def js_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pinned openai-js in it, installed by npm and kept in pytest's cache."""
    pinned = ROOT / "tests" / "data" / "js"
    lock = (pinned / "package-lock.json").read_text()
    cache = pytestconfig.cache
    folder = Path(cache.mkdir("openai-js")) if cache else tmp_path_factory.mktemp("openai-js")
    done = folder / "installed-lock.json"
    if not done.exists() or done.read_text() != lock:
        shutil.copytree(pinned, folder, dirs_exist_ok=True)
        _npm_install(folder)
        done.write_text(lock)
    shutil.copytree(pinned, folder, dirs_exist_ok=True)
    return folder


def _npm_install(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr or ""
        if isinstance(said, bytes):  # a time-out hands over what came so far, undecoded
            said = said.decode(errors="replace")
        why = f"npm cannot install openai-js: {error} {said}"[:500]
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(why)
        pytest.skip(why)
