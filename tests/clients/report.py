"""Writes the tables of `docs/clients.md` from what the suite kept.

`python -m tests.clients.report` does it after a whole run (`make test-clients`); it refuses while a
client has not passed with its present pins. Only `main` does I/O.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients import results
from tests.clients.registry import CLIENTS, OPERATIONS, UPSTREAMS, Client
from tests.clients.results import Result

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
BEGIN, END = "<!-- clients: generated -->", "<!-- /clients -->"
PASSED, ABSENT = "yes", "–"

Results = Mapping[str, Sequence[Result]]
"""The runs of each client by its name, one per api-version."""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _versions(client: Client) -> str:
    return ", ".join(f"{package} {version}" for package, version in client.versions().items())


def _cell(operation: str, runs: Sequence[Result]) -> str:
    """`yes` when it passed in every way in every run, the ways that failed otherwise."""
    attempts = [a for run in runs for a in run.attempts if a.operation == operation]
    if not attempts:
        return ABSENT
    failed = sorted({attempt.way for attempt in attempts if not attempt.passed})
    return f"failed: {', '.join(failed)}" if failed else PASSED


def tables(found: Results) -> str:
    """Both tables: the clients, and what each of them could do."""
    clients = [_row(["client", "version", "runs on", "set up as", "called"]), _row(["---"] * 5)]
    for client in CLIENTS:
        runtimes = ", ".join(sorted({run.runtime for run in found[client.name]}))
        setups, paces = "; ".join(client.setups), ", ".join(client.paces)
        clients.append(_row([client.title, _versions(client), runtimes, setups, paces]))
    titles = [client.title for client in CLIENTS]
    matrix = [_row(["operation", *titles]), _row(["---"] * (1 + len(titles)))]
    for operation, text in OPERATIONS.items():
        cells = [_cell(operation, found[client.name]) for client in CLIENTS]
        matrix.append(_row([text, *cells]))
    return "\n".join([*clients, "", *matrix])


def with_tables(document: str, text: str) -> str:
    """`document` with what is between the two marks renewed."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def main() -> int:
    """Renew the document; the exit status."""
    try:
        found = {
            client.name: [results.recall(client, upstream) for upstream in UPSTREAMS]
            for client in CLIENTS
        }
    except LookupError as error:
        print(f"docs/clients.md is left as it is: {error.args[0]}", file=sys.stderr)
        return 1
    written = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables(found))
    DOCUMENT.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
