"""Writes the tables of `docs/clients.md` from what the suite kept.

`python -m tests.clients.report` does it after a whole run (`make test-clients`); it refuses while a
client has not passed with its present pins. Only `main` does I/O.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients import results
from tests.clients.registry import CLIENTS, OPERATIONS, UPSTREAMS, Client, Fault
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


def _cell(client: Client, operation: str, runs: Sequence[Result]) -> str:
    """`yes` when it passed in every way in every run, but for the faults, which have notes."""
    attempts = [a for run in runs for a in run.attempts if a.operation == operation]
    if not attempts:
        return ABSENT
    known = client.faulty()
    failed = {a.way for a in attempts if not a.passed and (a.way, operation) not in known}
    if failed:
        return f"failed: {', '.join(sorted(failed))}"
    return expected_cell(client, operation)


def expected_cell(client: Client, operation: str) -> str:
    """What the table says when all is as it is registered."""
    if operation not in client.operations:
        return ABSENT
    texts = [_note(fault) for fault in client.faults if fault.operation == operation]
    return "".join([PASSED, *(f"[^{_noted().index(text) + 1}]" for text in texts)])


def _note(fault: Fault) -> str:
    return f"{', '.join(fault.setups)}: {fault.why}"


def _noted() -> list[str]:
    """The different notes, in the order of the clients."""
    return list(dict.fromkeys(_note(fault) for client in CLIENTS for fault in client.faults))


def notes() -> list[str]:
    """What stands below the table: the setups in which something cannot be done."""
    return [f"[^{number}]: not with {text}" for number, text in enumerate(_noted(), 1)]


def tables(found: Results) -> str:
    """Both tables and their notes: the clients, and what each of them could do."""
    clients = [_row(["client", "version", "runs on", "set up as", "called"]), _row(["---"] * 5)]
    for client in CLIENTS:
        runtimes = ", ".join(sorted({run.runtime for run in found[client.name]}))
        setups, paces = "; ".join(client.setups), ", ".join(client.paces)
        clients.append(_row([client.title, _versions(client), runtimes, setups, paces]))
    titles = [client.title for client in CLIENTS]
    matrix = [_row(["operation", *titles]), _row(["---"] * (1 + len(titles)))]
    for operation, text in OPERATIONS.items():
        cells = [_cell(client, operation, found[client.name]) for client in CLIENTS]
        matrix.append(_row([text, *cells]))
    below = ["", *notes()] if notes() else []
    return "\n".join([*clients, "", *matrix, *below])


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
