"""docs/simulator.md tells all there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from aisix.simulator.__main__ import build_parser
from aisix.simulator.control import _ACTIONS
from aisix.simulator.faults import BY_STATUS, CATALOGUE
from aisix.simulator.script import vocabulary

TEXT = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()


def rows(heading: str) -> list[list[str]]:
    table = TEXT.split(heading, 1)[1].split("\n\n", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_of_tokens_is_the_vocabulary() -> None:
    told = [(token.strip("`"), what) for token, what in rows("| token | meaning |")]
    assert told == vocabulary()


def test_the_table_of_errors_is_the_catalogue() -> None:
    short = {name: f"`err{status}`" for status, name in BY_STATUS.items()}
    told = [tuple(row) for row in rows("| name | short | answer |")]
    assert told == [
        (f"`err-{name}`", short.get(name, ""), what) for name, (what, _) in CATALOGUE.items()
    ]


def test_every_control_request_and_named_option_exists() -> None:
    told = set(re.findall(r"\| `(GET|POST|DELETE) /_sim/(\w+)", TEXT))
    assert {f"{method} {what}" for method, what in told} == {*_ACTIONS, "GET requests"}
    options = set(re.findall(r"(--[a-z][a-z-]+)", TEXT))
    assert options <= set(build_parser()._option_string_actions)  # argparse has no public list
