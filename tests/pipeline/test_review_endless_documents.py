"""An answer that must be held whole is held up to a bound: an upstream may never stop sending."""

from __future__ import annotations

import json

import pytest

from aisix.relay import pump
from aisix.transport.memory import MemoryAnswer
from tests.support.builders import CHAT
from tests.support.pipeline import Harness

PIECE = b" " * (1 << 20)


@pytest.mark.gen_test
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "json-for-a-stream"])
async def test_a_document_beyond_the_bound_is_an_error_and_is_not_read_on(stream):
    harness = Harness()
    count = pump.MAX_DOCUMENT_BYTES // len(PIECE) + 50
    answer = MemoryAnswer(headers={"content-type": "application/json"}, pieces=[PIECE] * count)
    harness.transport.script(answer)
    _, reply = await harness.run(CHAT, stream=stream)
    assert reply.status == 502
    assert json.loads(reply.body)["error"]["code"] == "upstream_decode_error"
    assert harness.transport.closed_early == 1
    await harness.audit()
