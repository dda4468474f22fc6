"""The table of operations, and the paths that lead to it."""

from __future__ import annotations

import pytest

from aisix.simulator.entra import Authority
from aisix.simulator.operations import OPERATIONS, Place, deployment_in_body, locate
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.surface import Surface


def test_every_operation_has_a_handler_and_every_handler_an_operation() -> None:
    options = SimulatorOptions()
    surface = Surface(options, Authority(options.directory))
    assert set(surface._handlers) == set(OPERATIONS)  # the table has no other reader


@pytest.mark.parametrize(
    ("path", "operation", "ids"),
    [
        ("/openai/v1/responses/compact", "responses/compact", ()),
        ("/openai/v1/responses/resp_1", "responses/{id}", ("resp_1",)),
        ("/openai/responses/a%2Fb/cancel", "responses/{id}/cancel", ("a/b",)),
        ("/openai/v1/evals/e/runs/r", "evals/{id}/runs/{id}", ("e", "r")),
        ("/openai/v1/files//content", "files//content", ()),
        ("/openai/realtime", "realtime", ()),
        ("/v1/responses/resp_1", "responses/{id}", ("resp_1",)),
    ],
)
def test_names_in_a_path_are_found(path: str, operation: str, ids: tuple[str, ...]) -> None:
    place = locate(path)
    assert (place.kind, place.operation, place.ids) == ("azure", operation, ids)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/openai/deployments/d/audio/speech", "azure"),
        ("/openai/deployments/d/responses", "nowhere"),
        ("/openai/audio/speech", "nowhere"),
        ("/openai//responses", "nowhere"),
    ],
)
def test_an_operation_stands_below_deployments_or_beside_them(path: str, kind: str) -> None:
    assert locate(path).kind == kind


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/openai/v1/audio/speech", "POST", True),
        ("/v1/audio/speech", "POST", True),
        ("/openai/deployments/d/audio/speech", "POST", False),
        ("/openai/responses", "POST", True),
        ("/openai/v1/responses/r", "GET", False),
        ("/openai/v1/fine_tuning/jobs", "POST", False),
        ("/openai/v1/elsewhere", "POST", False),
    ],
)
def test_where_the_deployment_stands(path: str, method: str, expected: bool) -> None:
    assert deployment_in_body(locate(path), method) is expected


def test_versions_know_what_they_had() -> None:
    speech = OPERATIONS["POST audio/speech"]
    assert [speech.known_to(v) for v in ("2024-02-01", "2024-03-01-preview", "2024-10-21")] == [
        False,
        True,
        False,
    ]
    assert Place(kind="azure").ids == ()
