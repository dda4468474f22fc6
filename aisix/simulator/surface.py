"""The Azure OpenAI resource without its wire: one request in, one answer out.

Order of judgement, as the service does it: credentials, path and api-version, deployment, the
script's error, the body. Answers carry the headers of the real service; streams come as lazy
events. Pure but for the clock and the ids handed in.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from aisix.simulator import answers, checks, faults
from aisix.simulator.content import JsonObject, compose_chat, compose_text
from aisix.simulator.entra import Authority
from aisix.simulator.events import ChatStream, text_events
from aisix.simulator.faults import Fault, Occasion
from aisix.simulator.identity import APP_PATH, IMDS_PATH
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import Script

OPERATIONS = {
    # path below the deployment → its name in quota messages
    "chat/completions": "ChatCompletions_Create",
    "completions": "Completions_Create",
    "embeddings": "Embeddings_Create",
}
V1_VERSIONS = frozenset({"", "v1", "preview"})

_DATED = re.compile(r"/openai/deployments/([^/]+)/(.+)")
_V1 = re.compile(r"/openai/v1/(.+)")
_TOKEN = re.compile(r"/([^/]+)/oauth2/v2\.0/token")
_OPENID = re.compile(r"/([^/]+)/v2\.0/\.well-known/openid-configuration")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_OTHER = re.compile(r"/openai/([^/]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a path names. `kind`: azure, token, identity, openid or nowhere."""

    kind: str
    operation: str = ""
    deployment: str = ""
    tenant: str = ""
    v1: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One request, read whole. Header names are lower case."""

    method: str
    place: Place
    query: Mapping[str, str]
    headers: Mapping[str, str]
    json: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a body, or events."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    events: Iterator[bytes] | None = None


def locate(path: str) -> Place:
    """The place a path names; on v1 the deployment is in the body and added later."""
    if match := _V1.fullmatch(path):
        return Place(kind="azure", operation=match[1], v1=True)
    if match := _DATED.fullmatch(path):
        return Place(kind="azure", deployment=unquote(match[1]), operation=match[2])
    if match := _TOKEN.fullmatch(path):
        return Place(kind="token", tenant=unquote(match[1]), operation="token")
    if match := _OPENID.fullmatch(path):
        return Place(kind="openid", tenant=unquote(match[1]), operation="openid-configuration")
    if path in {IMDS_PATH, APP_PATH}:
        return Place(kind="identity", operation="token")
    if match := _OTHER.fullmatch(path):
        return Place(kind="azure", operation=match[1])
    return Place(kind="nowhere")


class Surface:
    """Judges requests as the resource would."""

    def __init__(self, options: SimulatorOptions, authority: Authority) -> None:
        self._options = options
        self._authority = authority
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
        occasion = Occasion(
            now=self._options.clock(),
            request_id=ids["x-request-id"],
            operation=OPERATIONS.get(inbound.place.operation, "Unknown"),
            api_version=inbound.query.get("api-version", "v1"),
            deployment=inbound.place.deployment,
            script=script,
        )
        fault = self._refusal(inbound) or self._scripted(occasion)
        if fault is None and inbound.place.operation == "models":
            return self._models(ids)
        if fault is None:
            fault = checks.check(inbound, script, self._options.context_tokens)
        if fault is not None:
            return self._faulty(fault, ids)
        return self._serve(inbound, script, ids)

    # --- refusals -------------------------------------------------------------------------------

    def _refusal(self, inbound: Inbound) -> Fault | None:
        place = inbound.place
        refused = self._credentials(inbound) or checks.custom_headers(inbound.headers)
        if refused is not None:
            return refused
        method = "GET" if place.operation == "models" and not place.deployment else "POST"
        known = place.operation in OPERATIONS or method == "GET"
        if not known or method != inbound.method or not self._version_known(inbound):
            return faults.resource_not_found()
        if method == "POST" and not self._has(place.deployment):
            # without a name there is nothing to look for: the body check says so
            return faults.deployment_not_found() if place.deployment else None
        return None

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

    def _version_known(self, inbound: Inbound) -> bool:
        version = inbound.query.get("api-version", "")
        if inbound.place.v1:
            return version in V1_VERSIONS
        return inbound.place.kind == "azure" and version in self._options.api_versions

    def _has(self, deployment: str) -> bool:
        names = self._options.deployments
        if names is None:
            return _NAME.fullmatch(deployment) is not None and not deployment.startswith("missing")
        return deployment in names

    @staticmethod
    def _scripted(occasion: Occasion) -> Fault | None:
        script = occasion.script
        if script.err is None or script.fail is not None:  # with `fail` the error is mid-stream
            return None
        return faults.build(script.err, occasion)

    # --- answers --------------------------------------------------------------------------------

    def _serve(self, inbound: Inbound, script: Script, ids: Mapping[str, str]) -> Answer:
        body: JsonObject = inbound.json
        operation = inbound.place.operation
        if operation == "embeddings":
            answer = answers.embeddings_answer(body, self._options.embeddings_model)
            return self._json(answer, inbound, ids)
        if operation == "completions":
            composition = compose_text(body, script)
            identity = self._identity("cmpl", self._options.text_model)
            if body.get("stream") is True:
                events = text_events(body, composition, script=script, identity=identity)
                return self._stream(events, inbound, ids)
            text = answers.text_answer(body, composition, script=script, identity=identity)
            return self._json(text, inbound, ids)
        composition = compose_chat(body, script)
        identity = self._identity("chatcmpl", self._options.chat_model)
        if body.get("stream") is True:
            stream = ChatStream(body, composition, script, identity)
            return self._stream(stream.events(), inbound, ids)
        chat = answers.chat_answer(body, composition, script=script, identity=identity)
        return self._json(chat, inbound, ids)

    def _identity(self, prefix: str, model: str) -> answers.Identity:
        created = int(self._options.clock())
        return answers.Identity(
            f"{prefix}-{uuid.uuid4().hex[:29]}", created, model, "fp_3bc1b5746c"
        )

    def _models(self, ids: Mapping[str, str]) -> Answer:
        options = self._options
        names = (options.chat_model, options.text_model, options.embeddings_model)
        body = json.dumps(answers.models_answer(names, 1_722_902_400)).encode()
        return Answer(200, [("content-type", faults.JSON_TYPE), *ids.items()], body)

    def _json(self, value: JsonObject, inbound: Inbound, ids: Mapping[str, str]) -> Answer:
        body = json.dumps(value, separators=(",", ":")).encode()
        used = value.get("usage", {}).get("total_tokens", 0)
        return Answer(200, self._headers(faults.JSON_TYPE, inbound, ids, used=used), body)

    def _stream(self, events: Iterator[bytes], inbound: Inbound, ids: Mapping[str, str]) -> Answer:
        headers = self._headers("text/event-stream; charset=utf-8", inbound, ids)
        headers.append(("x-accel-buffering", "no"))
        return Answer(200, headers, events=events)

    def _faulty(self, fault: Fault, ids: Mapping[str, str]) -> Answer:
        kind = [("content-type", fault.content_type)]
        region = ("x-ms-region", self._options.region)
        return Answer(fault.status, [*kind, *ids.items(), region, *fault.headers], fault.body)

    def _headers(
        self, kind: str, inbound: Inbound, ids: Mapping[str, str], *, used: int = 0
    ) -> list[tuple[str, str]]:
        remaining = max(0, self._options.limit_tokens - used)
        return [
            ("content-type", kind),
            *ids.items(),
            ("x-ms-deployment-name", inbound.place.deployment),
            *self._fixed_headers,
            ("x-ratelimit-remaining-tokens", str(remaining)),
        ]

    @staticmethod
    def _ids(inbound: Inbound) -> dict[str, str]:
        ids = {"apim-request-id": str(uuid.uuid4()), "x-request-id": str(uuid.uuid4())}
        client = inbound.headers.get("x-ms-client-request-id")
        return {**ids, "x-ms-client-request-id": client} if client else ids
