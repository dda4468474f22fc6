"""What a client's program said, kept below `build/clients/results/` for the table. I/O.

A result knows the pins it was made with; once these have changed, it is a result no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.clients.environments import BUILD
from tests.clients.registry import Client

FOLDER = BUILD / "results"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One operation in one way: whether it passed, and if not, why."""

    way: str
    operation: str
    passed: bool
    note: str


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run of one client in front of one api-version."""

    runtime: str
    attempts: tuple[Attempt, ...]


def parse(output: str) -> tuple[Attempt, ...]:
    """The attempts of a program's standard output."""
    lines = [json.loads(line) for line in output.splitlines()]
    return tuple(
        Attempt(line["way"], line["operation"], line["outcome"] == "ok", line["note"])
        for line in lines
    )


def complaints(client: Client, attempts: Sequence[Attempt]) -> list[str]:
    """What failed, what passed though it is a known fault, and what was left out or unexpected."""
    faulty = client.faulty()
    wanted = {(way, operation) for way in client.ways for operation in client.operations}
    tried = {(attempt.way, attempt.operation) for attempt in attempts}
    found = [
        f"{a.way}: {a.operation}: {a.note or 'passes, and is listed among the faults'}"
        for a in attempts
        if a.passed == ((a.way, a.operation) in faulty)
    ]
    found += [f"{way}: {operation}: was not tried" for way, operation in sorted(wanted - tried)]
    found += [f"{way}: {operation}: is not registered" for way, operation in sorted(tried - wanted)]
    return found


def keep(client: Client, upstream: str, result: Result) -> None:
    """Keep a run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    shown = {"pins": _digest(client), **asdict(result)}
    _path(client, upstream).write_text(json.dumps(shown, indent=1), encoding="utf-8")


def forget(client: Client, upstream: str) -> None:
    """Forget the last run."""
    _path(client, upstream).unlink(missing_ok=True)


def recall(client: Client, upstream: str) -> Result:
    """The run that was kept. Raises LookupError when there is none with these pins."""
    try:
        shown = json.loads(_path(client, upstream).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LookupError(f"{client.name} has not passed in front of {upstream}") from None
    if shown["pins"] != _digest(client):
        raise LookupError(f"{client.name} has been run in front of {upstream} with other pins")
    return Result(shown["runtime"], tuple(Attempt(**each) for each in shown["attempts"]))


def _path(client: Client, upstream: str) -> Path:
    return FOLDER / f"{client.name}.{upstream}.json"


def _digest(client: Client) -> str:
    return hashlib.sha256(client.pins.read_bytes()).hexdigest()
