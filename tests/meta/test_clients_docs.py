"""`docs/clients.md` says what was tried: its tables follow the registry of clients and its pins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.registry import CLIENTS, OPERATIONS, PINS, Client, Runtime
from tests.clients.report import BEGIN, END, expected_cell, notes

ROOT = Path(__file__).resolve().parents[2]
RENEW = "run make test-clients"


def generated() -> list[str]:
    """The clients, what they can do, and the notes."""
    text = (ROOT / "docs" / "clients.md").read_text().split(BEGIN, 1)[1].split(END, 1)[0]
    return [*text.strip().split("\n\n"), ""][:3]


def rows(table: str) -> list[list[str]]:
    """The rows with their cells, the head first."""
    head, _, *others = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [head, *others]]


def test_the_document_has_a_row_for_each_client_with_its_pinned_version():
    _, *found = rows(generated()[0])
    assert [row[0] for row in found] == [client.title for client in CLIENTS], RENEW
    for row, client in zip(found, CLIENTS, strict=True):
        assert row[1].split(", ") == [f"{p} {v}" for p, v in client.versions().items()], RENEW
        assert row[3].split("; ") == list(client.setups), RENEW
        assert row[4].split(", ") == list(client.paces), RENEW


def test_the_document_has_a_row_for_each_operation_and_says_who_passed():
    head, *found = rows(generated()[1])
    assert head[1:] == [client.title for client in CLIENTS], RENEW
    assert [row[0] for row in found] == list(OPERATIONS.values()), RENEW
    for row, operation in zip(found, OPERATIONS, strict=True):
        assert row[1:] == [expected_cell(client, operation) for client in CLIENTS], RENEW


def test_the_document_tells_every_fault_of_a_client():
    assert generated()[2].splitlines() == notes(), RENEW


def test_every_operation_is_one_that_some_client_has():
    had = {operation for client in CLIENTS for operation in client.operations}
    assert had == set(OPERATIONS)


def test_a_fault_is_one_of_a_setup_and_an_operation_that_the_client_has():
    for client in CLIENTS:
        assert {setup for fault in client.faults for setup in fault.setups} <= set(client.setups)
        assert {fault.operation for fault in client.faults} <= set(client.operations)


def test_clients_have_names_and_titles_of_their_own():
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    assert len({client.title for client in CLIENTS}) == len(CLIENTS)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_pins_are_exact_and_name_no_registry(client: Client):
    text = client.pins.read_text()
    assert "://" not in text
    if client.runtime is Runtime.PYTHON:
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in text.splitlines())


def test_no_pins_are_left_over():
    found = {path.name.removesuffix(".txt") for path in PINS.iterdir()}
    assert found == {client.name for client in CLIENTS}
