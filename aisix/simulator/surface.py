"""The Azure OpenAI resource without its wire: one request in, one answer out.

Order of judgement, as the service does it: credentials, path and api-version, deployment, the
script's error, the body. What then happens is the business of the operation's handler; what the
resource keeps (responses, files, jobs) lives in the handlers, so another surface is another
resource. Answers carry the headers of the real service. Pure but for the clock and the ids.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping

from aisix.simulator import audio, chat, checks, faults, images
from aisix.simulator.batches import Batches
from aisix.simulator.content import JsonObject
from aisix.simulator.entra import Authority
from aisix.simulator.evals import Evals
from aisix.simulator.exchange import Answer, Call, Content, Events, Handler, Headers, Inbound, Json
from aisix.simulator.faults import Fault, Occasion
from aisix.simulator.files import Files
from aisix.simulator.fine_tuning import FineTuning
from aisix.simulator.operations import OPERATIONS, V1_VERSIONS, Operation, Place, locate
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.responses import Responses
from aisix.simulator.script import Script
from aisix.simulator.vector_stores import VectorStores

__all__ = ["Answer", "Inbound", "Place", "Surface", "locate"]

_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Surface:
    """Judges requests as the resource would."""

    def __init__(self, options: SimulatorOptions, authority: Authority) -> None:
        self._options = options
        self._authority = authority
        files = Files()
        self._handlers: Mapping[str, Handler] = {
            **chat.handlers(),
            **images.handlers(),
            **audio.handlers(),
            **Responses(seal=uuid.uuid4().hex).handlers(),
            **files.handlers(),
            **Batches(files).handlers(),
            **FineTuning(files).handlers(),
            **VectorStores(files).handlers(),
            **Evals().handlers(),
        }
        self._fixed_headers = [
            ("x-ms-region", options.region),
            ("azureml-model-session", "d012-20241120121505"),
            ("x-envoy-upstream-service-time", "42"),
            ("x-ms-rai-invoked", "true"),
            ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
            ("x-content-type-options", "nosniff"),
            ("x-ratelimit-limit-requests", str(options.limit_requests)),
            ("x-ratelimit-remaining-requests", str(max(0, options.limit_requests - 1))),
            ("x-ratelimit-reset-requests", "10"),
            ("x-ratelimit-limit-tokens", str(options.limit_tokens)),
            ("x-ratelimit-reset-tokens", "60"),
        ]

    def answer(self, inbound: Inbound, script: Script) -> Answer:
        """The answer to one request at the resource."""
        ids = self._ids(inbound)
        operation = OPERATIONS.get(f"{inbound.method} {inbound.place.operation}")
        occasion = Occasion(
            now=self._options.clock(),
            request_id=ids["x-request-id"],
            operation=operation.name if operation else "Unknown",
            api_version=inbound.query.get("api-version", "v1"),
            deployment=inbound.place.deployment,
            script=script,
        )
        fault = self._refusal(inbound, operation) or self._scripted(occasion)
        if fault is not None or operation is None:
            return self._faulty(fault or faults.resource_not_found(), ids)
        fault = checks.check(
            inbound, operation, script, context_tokens=self._options.context_tokens
        )
        if fault is not None:
            return self._faulty(fault, ids)
        return self._serve(inbound, operation, occasion, ids=ids)

    def refuse_session(
        self, inbound: Inbound, script: Script, *, version_known: bool
    ) -> Answer | None:
        """Why a request for a realtime session is refused, in the same order; None if it is not."""
        ids = self._ids(inbound)
        occasion = Occasion(
            now=self._options.clock(),
            request_id=ids["x-request-id"],
            operation="Realtime",
            api_version=inbound.query.get("api-version", "v1"),
            deployment=inbound.place.deployment,
            script=script,
        )
        fault = self._credentials(inbound)
        if fault is None and (not version_known or inbound.method != "GET"):
            fault = self._unknown(inbound)
        if fault is None and not self._has(inbound.place.deployment):
            fault = self._missing(inbound.place.deployment)
        if fault is None:
            fault = self._scripted(occasion)
        if fault is None and inbound.headers.get("upgrade", "").lower() != "websocket":
            fault = faults.wrapped(426, "UpgradeRequired", "A WebSocket is needed here.")
        return None if fault is None else self._faulty(fault, ids)

    # --- refusals -------------------------------------------------------------------------------

    def _refusal(self, inbound: Inbound, operation: Operation | None) -> Fault | None:
        place = inbound.place
        refused = self._credentials(inbound) or checks.custom_headers(inbound.headers)
        if refused is not None:
            return refused
        if operation is None or not self._version_known(inbound, operation):
            return self._unknown(inbound)
        if operation.deployment and not self._has(place.deployment):
            # without a name there is nothing to look for: the body check says so
            return self._missing(place.deployment) if place.deployment else None
        return None

    def _unknown(self, inbound: Inbound) -> Fault:
        return faults.resource_not_found()

    def _missing(self, deployment: str) -> Fault:
        return faults.deployment_not_found()

    def _credentials(self, inbound: Inbound) -> Fault | None:
        options = self._options
        key = inbound.headers.get("api-key")
        scheme, _, bearer = inbound.headers.get("authorization", "").partition(" ")
        if key is None and inbound.place.v1 and bearer in options.api_keys:
            key = bearer  # on v1 the key may come as a bearer value
        if key is not None:
            if key not in options.api_keys:
                return faults.bad_key()
            return None if options.key_auth else faults.key_disabled()
        if scheme.lower() != "bearer" or not bearer:
            return faults.no_credentials()
        return None if self._authority.accepts(bearer.strip()) else faults.bad_token()

    def _version_known(self, inbound: Inbound, operation: Operation) -> bool:
        version = inbound.query.get("api-version", "")
        if inbound.place.v1:
            return version in V1_VERSIONS
        known = version in self._options.api_versions and operation.known_to(version)
        return inbound.place.kind == "azure" and known

    def _has(self, deployment: str) -> bool:
        names = self._options.deployments
        if names is None:
            return _NAME.fullmatch(deployment) is not None and not deployment.startswith("missing")
        return deployment in names

    @staticmethod
    def _scripted(occasion: Occasion) -> Fault | None:
        script = occasion.script
        late = script.fail is not None or script.failed is not None
        if script.err is None or late:  # then the error stands inside the 200
            return None
        return faults.build(script.err, occasion)

    # --- answers --------------------------------------------------------------------------------

    def _serve(
        self, inbound: Inbound, operation: Operation, occasion: Occasion, *, ids: Mapping[str, str]
    ) -> Answer:
        call = Call(
            inbound=inbound,
            script=occasion.script,
            options=self._options,
            now=int(occasion.now),
            hex_id=lambda: uuid.uuid4().hex,
        )
        outcome = self._handlers[operation.key](call)
        if isinstance(outcome, Fault):
            return self._faulty(outcome, ids)
        if isinstance(outcome, Json):
            headers = self._headers(faults.JSON_TYPE, inbound, ids, used=_tokens(outcome.value))
            body = json.dumps(outcome.value, separators=(",", ":")).encode()
            return Answer(200, [*headers, *outcome.headers], body)
        if isinstance(outcome, Content):
            headers = self._headers(outcome.kind, inbound, ids)
            pieces, length = outcome.pieces, outcome.length
            return Answer(200, [*headers, *outcome.headers], pieces=pieces, length=length)
        return self._stream(outcome, inbound, occasion, ids=ids)

    def _stream(
        self, stream: Events, inbound: Inbound, occasion: Occasion, *, ids: Mapping[str, str]
    ) -> Answer:
        headers = self._headers("text/event-stream; charset=utf-8", inbound, ids)
        headers += [("x-accel-buffering", "no"), *stream.headers]
        late_error = b""
        if occasion.script.fail is not None:
            late_error = (
                stream.late_error(faults.late_failure(occasion))
                if stream.late_error
                else faults.stream_error(occasion)
            )
        return Answer(200, headers, events=stream.events, late_error=late_error)

    def _faulty(self, fault: Fault, ids: Mapping[str, str]) -> Answer:
        kind = [("content-type", fault.content_type)]
        region = ("x-ms-region", self._options.region)
        return Answer(fault.status, [*kind, *ids.items(), region, *fault.headers], fault.body)

    def _headers(
        self, kind: str, inbound: Inbound, ids: Mapping[str, str], *, used: int = 0
    ) -> list[tuple[str, str]]:
        remaining = max(0, self._options.limit_tokens - used)
        deployment = inbound.place.deployment
        named: Headers = (("x-ms-deployment-name", deployment),) if deployment else ()
        return [
            ("content-type", kind),
            *ids.items(),
            *named,
            *self._fixed_headers,
            ("x-ratelimit-remaining-tokens", str(remaining)),
        ]

    @staticmethod
    def _ids(inbound: Inbound) -> dict[str, str]:
        ids = {"apim-request-id": str(uuid.uuid4()), "x-request-id": str(uuid.uuid4())}
        client = inbound.headers.get("x-ms-client-request-id")
        return {**ids, "x-ms-client-request-id": client} if client else ids


def _tokens(value: JsonObject) -> int:
    usage = value.get("usage")
    return int(usage.get("total_tokens", 0)) if isinstance(usage, dict) else 0
