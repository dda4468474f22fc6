"""Whatever JSON a caller sends, the simulator answers in the shape of the service."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.simulator.entra import Authority
from aisix.simulator.exchange import Inbound
from aisix.simulator.operations import JSON, OPERATIONS, Operation, Place
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import NORMAL, Script
from aisix.simulator.surface import Surface

WRITING = [row for row in OPERATIONS.values() if row.body == JSON]
PARAMETERS = [
    "input",
    "messages",
    "prompt",
    "model",
    "stream",
    "tools",
    "tool_choice",
    "text",
    "instructions",
    "include",
    "background",
    "store",
    "previous_response_id",
    "max_output_tokens",
    "n",
    "size",
    "quality",
    "response_format",
    "partial_images",
    "voice",
    "stream_format",
    "speed",
    "query",
    "file_id",
    "file_ids",
    "attributes",
    "expires_after",
    "metadata",
    "name",
    "endpoint",
    "input_file_id",
    "completion_window",
    "training_file",
    "validation_file",
    "suffix",
    "method",
    "seed",
    "data_source",
    "data_source_config",
    "testing_criteria",
]
LEAVES = st.none() | st.booleans() | st.integers(-3, 30) | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "role", "format"]), inner)
    ),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=6)


@pytest.mark.parametrize("operation", WRITING, ids=lambda row: str(row.key))
@given(body=BODIES, script=st.sampled_from([NORMAL, Script(reasoning=True, tools=True)]))
def test_any_json_object_is_answered(
    operation: Operation, body: dict[str, Any], script: Script
) -> None:
    options = SimulatorOptions()
    surface = Surface(options, Authority(options.directory))
    place = Place(
        kind="azure",
        operation=operation.path,
        deployment="dep" if operation.deployment else "",
        ids=("none",) * operation.path.count("{"),
        v1=True,
    )
    inbound = Inbound(
        method=operation.method,
        place=place,
        query={},
        headers={"api-key": "simulator-key"},
        json=body,
    )
    answer = surface.answer(inbound, script)
    if answer.status == 200:
        assert answer.body or answer.pieces or list(answer.events or ())
    else:
        assert answer.status in (400, 404, 500)
        assert json.loads(answer.body)["error"]["message"]
