"""What the clients' programs report is judged as it should be: nothing slips through."""

from __future__ import annotations

import json

import pytest

from tests.clients.environments import chosen
from tests.clients.registry import ASYNC, CLIENTS, Client, Fault, Runtime
from tests.clients.results import complaints, parse

CLIENT = Client(
    name="some",
    title="some",
    runtime=Runtime.PYTHON,
    program="some",
    packages=(),
    setups=("plain", "azure"),
    paces=(ASYNC,),
    operations=("chat", "speech"),
    faults=(Fault(("azure",), "speech", "it says so"),),
)
GOOD = {
    ("plain, async", "chat"): "ok",
    ("plain, async", "speech"): "ok",
    ("azure, async", "chat"): "ok",
    ("azure, async", "speech"): "failed",
}


def judged(outcomes: dict[tuple[str, str], str]) -> list[str]:
    lines = [
        json.dumps(
            {
                "way": way,
                "operation": operation,
                "outcome": outcome,
                "note": "why" * (outcome != "ok"),
            }
        )
        for (way, operation), outcome in outcomes.items()
    ]
    return complaints(CLIENT, parse("\n".join(lines)))


def test_all_that_is_registered_and_passes_is_no_complaint() -> None:
    assert judged(GOOD) == []


def test_a_failure_is_a_complaint_with_its_reason() -> None:
    assert judged({**GOOD, ("plain, async", "chat"): "failed"}) == ["plain, async: chat: why"]


def test_an_outcome_that_is_not_ok_is_a_failure() -> None:
    assert judged({**GOOD, ("plain, async", "chat"): "skipped"}) == ["plain, async: chat: why"]


def test_a_fault_that_passes_is_a_complaint() -> None:
    [said] = judged({**GOOD, ("azure, async", "speech"): "ok"})
    assert said == "azure, async: speech: passes, and is listed among the faults"


def test_what_was_not_tried_is_a_complaint() -> None:
    tried = {key: outcome for key, outcome in GOOD.items() if key != ("plain, async", "speech")}
    assert judged(tried) == ["plain, async: speech: was not tried"]
    assert len(judged({})) == 4


def test_what_is_not_registered_is_a_complaint() -> None:
    found = judged({**GOOD, ("plain, async", "dance"): "ok"})
    assert found == ["plain, async: dance: is not registered"]


def test_clients_are_chosen_by_name_and_all_when_none_is_named() -> None:
    assert chosen([]) == list(CLIENTS)
    assert chosen(["openai-js"]) == [client for client in CLIENTS if client.name == "openai-js"]
    with pytest.raises(
        ValueError, match="no such client: openai-cobol; there are openai-python-1,"
    ):
        chosen(["openai-cobol"])
