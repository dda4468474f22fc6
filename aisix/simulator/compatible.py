"""An OpenAI-compatible server beside the Azure resource, at `/v1`: the same work in OpenAI's words.

The key comes as Bearer and nothing else, the model stands in the body under any name, answers have
none of Azure's extension fields and headers, and what is refused is refused as OpenAI says it
(`oldapi`: as vLLM does). What is kept here is not kept at the resource. Pure but for the clock and
the ids.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping

from aisix.simulator import faults
from aisix.simulator.entra import Authority
from aisix.simulator.exchange import Answer, Call, Inbound, Json
from aisix.simulator.faults import Fault
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import Script
from aisix.simulator.surface import Surface

_CREATED = 1_722_902_400
_OWN_BEGINNINGS = ("x-ratelimit-", "x-content-type-options")


class CompatibleSurface(Surface):
    """Judges requests as OpenAI would."""

    def __init__(self, options: SimulatorOptions, authority: Authority) -> None:
        super().__init__(options, authority)
        self._handlers = {**self._handlers, "GET models": _models}
        self._fixed_headers = [
            ("openai-version", "2020-10-01"),
            ("openai-processing-ms", "42"),
            *(pair for pair in self._fixed_headers if pair[0].startswith(_OWN_BEGINNINGS)),
        ]

    def answer(self, inbound: Inbound, script: Script) -> Answer:
        """The answer to one request."""
        return super().answer(inbound, dataclasses.replace(script, plain=True))

    def _credentials(self, inbound: Inbound) -> Fault | None:
        scheme, _, key = inbound.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return faults.no_api_key()
        return None if key in self._options.api_keys else faults.invalid_api_key(key)

    def _unknown(self, inbound: Inbound) -> Fault:
        return faults.unknown_url(inbound.method, f"/v1/{inbound.place.operation}")

    def _missing(self, deployment: str) -> Fault:
        return faults.model_not_found(deployment)

    def _has(self, deployment: str) -> bool:
        names = self._options.deployments
        return not deployment.startswith("missing") if names is None else deployment in names

    def _faulty(self, fault: Fault, ids: Mapping[str, str]) -> Answer:
        kind = [("content-type", fault.content_type)]
        return Answer(fault.status, [*kind, *ids.items(), *fault.headers], fault.body)

    def _headers(
        self, kind: str, inbound: Inbound, ids: Mapping[str, str], *, used: int = 0
    ) -> list[tuple[str, str]]:
        headers = super()._headers(kind, inbound, ids, used=used)
        return [pair for pair in headers if not pair[0].startswith("x-ms-")]

    @staticmethod
    def _ids(inbound: Inbound) -> dict[str, str]:
        return {"x-request-id": f"req_{uuid.uuid4().hex}"}


def _models(call: Call) -> Json:
    options = call.options
    usual = (options.chat_model, options.text_model, options.embeddings_model)
    names = usual if options.deployments is None else sorted(options.deployments)
    entry = {"object": "model", "created": _CREATED, "owned_by": "simulator"}
    return Json({"object": "list", "data": [{"id": name, **entry} for name in names]})
