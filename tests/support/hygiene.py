"""For tests that send what no good client would: a pipeline that answers everything, and what must
hold of it and of each answer, whatever was sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

from aisix.core.ports import Clock, UpstreamCall
from aisix.core.resources import LimitPolicy
from aisix.transport.memory import MemoryAnswer, MemoryTransport
from tests.support.builders import CHAT
from tests.support.front import FrontAnswer, FrontCaller, post, request
from tests.support.pipeline import Harness
from tests.support.rows import good_answer, good_body

PATH = "/v1/chat/completions"
MODELS = "/v1/models"


class Obliging(MemoryTransport):
    """Has a good answer to every call, streamed if it was asked for."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, _good)


def _good(call: UpstreamCall) -> MemoryAnswer:
    assert isinstance(call.body, bytes)
    return good_answer(CHAT, stream=json.loads(call.body).get("stream") is True)


@dataclass
class ObligingHarness(Harness):
    """Serves any number of requests, without limits."""

    alias_limits: LimitPolicy = field(default_factory=LimitPolicy)
    key_limits: LimitPolicy = field(default_factory=LimitPolicy)
    transport_type: ClassVar[type[MemoryTransport]] = Obliging

    @property
    def paths(self) -> list[str]:
        """Of the requests that were seen, in their order."""
        return [exchange.request.path for exchange in self.recorder.ended]

    def check_settled(self) -> None:
        """Every exchange that began has ended, once, with its transfer closed."""
        assert self.recorder.started == len(self.recorder.ended) == len(self.log.lines)
        assert all(exchange.ended for exchange in self.recorder.ended)
        assert self.transport.opened == self.transport.closed


def chat(*, stream: bool = False, **options: object) -> bytes:
    """A whole chat completion request."""
    return post(PATH, good_body(CHAT, stream=stream), **options)


def models(**headers: str | None) -> bytes:
    """A request for the list of models; `Expect_X=…` is the field `Expect-X`."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("GET", MODELS, headers=fields)


def chunked(data: bytes) -> bytes:
    """`data` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def check_refusal(answer: FrontAnswer, status: int) -> None:
    """A refusal in the envelope, with ids, that says that the connection ends."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == answer.headers["x-aisix-request-id"]
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.headers["connection"] == "close"


async def check_serving(caller: FrontCaller) -> None:
    """This connection still serves."""
    await caller.send(models())
    assert (await caller.answer()).status == 200
