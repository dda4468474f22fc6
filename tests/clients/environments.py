"""Makes the environment of each client from its pins, once, below `build/clients/`. I/O.

`python -m tests.clients.environments [NAME …]` makes those that are named, or all. An environment
is made anew when its pins, or the interpreter, are other than those it was made with.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.clients.registry import CLIENTS, PROGRAMS, Client, Runtime

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "clients"
STAMP = "made-from.txt"
TIMEOUT_S = 900.0


class CannotMake(Exception):
    """An environment could not be made; the text says by what command and why."""


def chosen(names: Sequence[str]) -> list[Client]:
    """The clients of these names, or all. Raises ValueError for a name that no client has."""
    unknown = sorted(set(names) - {client.name for client in CLIENTS})
    if unknown:
        known = ", ".join(client.name for client in CLIENTS)
        raise ValueError(f"no such client: {', '.join(unknown)}; there are {known}")
    return [client for client in CLIENTS if not names or client.name in names]


def folder(client: Client) -> Path:
    """Where its environment is."""
    return BUILD / client.name


def prepare(client: Client, say: Callable[[str], object] = lambda _: None) -> None:
    """Make its environment, unless it is there. Raises CannotMake."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with _alone(BUILD / f"{client.name}.lock"):
        stamp = folder(client) / STAMP
        made_from = _made_from(client)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
            return
        say(f"==> making the environment of {client.name}")
        shutil.rmtree(folder(client), ignore_errors=True)
        if client.runtime is Runtime.PYTHON:
            _make_python(client)
        else:
            _make_node(client)
        stamp.write_text(made_from, encoding="utf-8")


def command(client: Client) -> tuple[list[str], Path]:
    """The command that runs its program, and the working directory for it."""
    if client.runtime is Runtime.PYTHON:
        python = folder(client) / "bin" / "python"
        return [str(python), "-m", f"tests.clients.programs.{client.program}"], ROOT
    for program in PROGRAMS.glob("*.mjs"):  # Node looks for packages from where the program is
        shutil.copy(program, folder(client))
    return ["node", f"{client.program}.mjs"], folder(client)


def runtime(client: Client) -> str:
    """What runs the client, with its version, as the table shows it."""
    if client.runtime is Runtime.PYTHON:
        return f"Python {sysconfig.get_python_version()}"
    version = _run(["node", "--version"], BUILD).strip().removeprefix("v")
    return f"Node {version.split('.')[0]}"


def _made_from(client: Client) -> str:
    by = sys.version if client.runtime is Runtime.PYTHON else ""
    return f"{by}\n{client.pins.read_text(encoding='utf-8')}"


def _make_python(client: Client) -> None:
    place = folder(client)
    _run([sys.executable, "-m", "venv", str(place)], BUILD)
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "-q", "--no-deps", "-r", str(client.pins)], BUILD)
    _run([*pip, "check"], BUILD)  # a pin that is missing, or that another one refuses


def _make_node(client: Client) -> None:
    shutil.copytree(client.pins.parent, folder(client))
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder(client))


def _run(words: Sequence[str], place: Path) -> str:
    try:
        done = subprocess.run(
            words, cwd=place, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMake(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        raise CannotMake(f"{' '.join(words)}: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Test processes that want the same environment wait for each other."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(names: Sequence[str]) -> int:
    """Make them; the exit status."""
    try:
        clients = chosen(names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for client in clients:
        try:
            prepare(client, lambda text: print(text, flush=True))
        except CannotMake as error:
            print(f"    cannot be made: {error}", file=sys.stderr)
            status = 1 if os.environ.get("REQUIRE_SERVICES") == "1" else status
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
