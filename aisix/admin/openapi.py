"""The admin API's route table, and the OpenAPI 3.1 document made of it and of the schemas.

Pure, but for `static_file`, which reads the vendored viewer. The same table gives the web layer
its routes and its Allow headers, and the same schemas validate bodies, so the document cannot
drift from what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aisix.admin.schemas import APIKEYS, MODELS, PROVIDER_KEYS, Schema, Schemas

_STATIC = Path(__file__).parent / "static"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `resource` names what serves the path; `body` and `answer` name
    schemas of the document; `media` is the answer's content type."""

    method: str
    path: str
    resource: str
    name: str
    summary: str
    kind: str = ""
    body: str = ""
    answer: str = ""
    media: str = _JSON
    public: bool = False
    statuses: tuple[int, ...] = ()


_TITLES = {PROVIDER_KEYS: "ProviderKey", MODELS: "Model", APIKEYS: "ApiKey"}
_WORDS = {PROVIDER_KEYS: "provider key", MODELS: "model", APIKEYS: "caller key"}


def _verify(kind: str) -> Operation:
    return Operation(
        "POST", f"/admin/v1/{kind}/{{id}}/verify", "verification", f"verify{_TITLES[kind]}",
        f"Try a {_WORDS[kind]} at Azure, by a call that costs nothing",
        kind=kind, answer="Verification", statuses=(404, 429),
    )  # fmt: skip


def _crud(kind: str) -> tuple[Operation, ...]:
    title, word = _TITLES[kind], _WORDS[kind]
    many, one = f"/admin/v1/{kind}", f"/admin/v1/{kind}/{{id}}"
    return (
        Operation(
            "GET", many, "collection", f"list{title}s", f"List all {word}s",
            kind=kind, answer=f"{title}List",
        ),
        Operation(
            "POST", many, "collection", f"create{title}", f"Create a {word}",
            kind=kind, body=f"{title}Create", answer=f"{title}Entry", statuses=(400, 409, 413, 415),
        ),
        Operation(
            "GET", one, "item", f"get{title}", f"Read a {word}",
            kind=kind, answer=f"{title}Entry", statuses=(404,),
        ),
        Operation(
            "PUT", one, "item", f"replace{title}", f"Replace a {word}",
            kind=kind, body=f"{title}Replace", answer=f"{title}Entry",
            statuses=(400, 404, 409, 412, 413, 415),
        ),
        Operation(
            "DELETE", one, "item", f"delete{title}", f"Delete a {word}",
            kind=kind, answer="Deleted", statuses=(400, 404, 409, 412),
        ),
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    *_crud(PROVIDER_KEYS),
    _verify(PROVIDER_KEYS),
    Operation(
        "GET", "/admin/v1/models/status", "models_status", "getModelsStatus",
        "Each model's upstream as the newest calls saw it", answer="ModelStatusList",
    ),
    *_crud(MODELS),
    _verify(MODELS),
    *_crud(APIKEYS),
    Operation(
        "POST", "/admin/v1/apikeys/{id}/rotate", "rotation", "rotateApiKey",
        "Give a caller key a new secret, shown this once", kind=APIKEYS,
        body="Rotation", answer="Rotated", statuses=(400, 404, 412, 413, 415),
    ),
    Operation(
        "GET", "/admin/v1/health", "health", "getHealth",
        "Health of models and configuration", answer="Health",
    ),
    Operation(
        "GET", "/admin/openapi.json", "document", "getOpenapi", "This document", public=True,
    ),
    Operation(
        "GET", "/admin/docs", "page", "getDocs", "This document as a page",
        public=True, media="text/html",
    ),
    Operation(
        "GET", "/admin/docs/rapidoc-min.js", "script", "getDocsScript", "The page's viewer",
        public=True, media="text/javascript",
    ),
)  # fmt: skip
"""Every route of the admin API; a fixed path stands before the pattern that would also match it."""

_PROBLEMS = {
    400: "The request breaks a rule; the text names the field and the remedy.",
    401: "No admin key, or not a good one.",
    404: "No resource has this id.",
    409: "The name is in use, or the resource is.",
    412: "The resource has another revision than If-Match names.",
    413: "The body is larger than 2 MiB.",
    415: "The body is not declared as JSON.",
    429: "As many verifications as are allowed run already.",
    500: "The store could not read or write, or the gateway failed.",
}


def static_file(name: str) -> bytes:
    """A file of the viewer."""
    return (_STATIC / name).read_bytes()


def build_document(schemas: Schemas, *, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _render(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AISIX for Azure OpenAI: admin API",
            "version": version,
            "description": "Provider keys, models and caller keys. A write is durable and "
            "effective when its answer is sent.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": _components(schemas),
            "responses": {
                f"Problem{status}": {
                    "description": text,
                    "content": {_JSON: {"schema": _ref("Problem")}},
                }
                for status, text in _PROBLEMS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An admin key."},
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "An admin key.",
                },
            },
        },
    }


def _render(operation: Operation) -> dict[str, Any]:
    content: Schema = {"schema": _ref(operation.answer)} if operation.answer else {}
    good: dict[str, Any] = {"description": "Done.", "content": {operation.media: content}}
    headers: dict[str, Any] = {}
    if operation.answer.endswith("Entry"):
        headers["ETag"] = {"description": "The revision, quoted.", "schema": {"type": "string"}}
    if operation.method != "GET" and operation.resource != "verification":
        headers["x-aisix-lagging-workers"] = {
            "description": "Workers that did not confirm the write in time; absent when all did.",
            "schema": {"type": "integer", "minimum": 1},
        }
    if headers:
        good["headers"] = headers
    statuses = operation.statuses if operation.public else (401, *operation.statuses, 500)
    rendered: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.kind or "gateway"],
        "responses": {
            "200": good,
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in sorted(statuses)
            },
        },
    }
    parameters = _parameters(operation)
    if parameters:
        rendered["parameters"] = parameters
    if operation.body:
        rendered["requestBody"] = {
            "required": operation.resource != "rotation",
            "content": {_JSON: {"schema": _ref(operation.body)}},
        }
    if operation.public:
        rendered["security"] = []
    return rendered


def _parameters(operation: Operation) -> Sequence[Schema]:
    parameters: list[Schema] = []
    if "{id}" in operation.path:
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        )
    if 412 in operation.statuses:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "description": 'Carry the write out only at this revision: 3, "3" or *.',
                "schema": {"type": "string"},
            }
        )
    return parameters


def _components(schemas: Schemas) -> Mapping[str, Schema]:
    components: dict[str, Schema] = {}
    for kind, title in _TITLES.items():
        components[title] = schemas.value[kind]
        components[f"{title}Create"] = schemas.create[kind]
        components[f"{title}Replace"] = schemas.replace[kind]
        more = {"credential": _CREDENTIAL} if kind == PROVIDER_KEYS else {}
        components[f"{title}Entry"] = _closed(
            id={"type": "string", "format": "uuid"},
            value=_ref(title),
            revision={"type": "integer", "minimum": 1},
            **more,
        )
        components[f"{title}List"] = {"type": "array", "items": _ref(f"{title}Entry")}
    components["Rotation"] = schemas.rotation
    components["Rotated"] = _closed(entry=_ref("ApiKeyEntry"), plaintext={"type": "string"})
    components["Deleted"] = _closed(deleted={"const": True}, id={"type": "string"})
    components["Problem"] = _closed(error_msg={"type": "string"})
    components["Health"] = _HEALTH
    components["Verification"] = _VERIFICATION
    components["ModelStatusList"] = {"type": "array", "items": _MODEL_STATUS}
    return components


def _closed(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_CREDENTIAL: Schema = {
    **_closed(
        kind={
            "enum": [
                "resource_key",
                "client_secret",
                "client_certificate",
                "managed_identity",
                "workload_identity",
            ]
        },
        token_expires_at={
            "type": ["string", "null"],
            "format": "date-time",
            "description": "Of the Entra ID token at hand; null when there is none.",
        },
        last_error={
            **_closed(
                at={"type": "string", "format": "date-time"},
                message={"type": "string"},
            ),
            "type": ["object", "null"],
            "description": "The newest failure to get a token since the last success.",
        },
    ),
    "type": ["object", "null"],
    "description": "How the provider key signs in; null when its stored secret cannot be used.",
}

_VERIFICATION: Schema = _closed(
    ok={"type": "boolean"},
    stage={
        "enum": [
            None,
            "settings",
            "credential",
            "network",
            "tls",
            "address",
            "authentication",
            "access",
            "version",
            "deployment",
            "limits",
            "upstream",
        ],
        "description": "What is at fault; null when nothing is.",
    },
    message={"type": "string", "description": "What was found, in words."},
    fix={"type": ["string", "null"], "description": "What to do about it."},
    request={"type": ["string", "null"], "description": "Method and URL of the call."},
    upstream_status={"type": ["integer", "null"]},
    upstream_message={"type": ["string", "null"], "description": "The upstream's own words."},
    upstream_request_id={
        "type": ["string", "null"],
        "description": "Azure's apim-request-id, OpenAI's x-request-id: their support asks for it.",
    },
    latency_ms={"type": "integer", "minimum": 0},
)

_HEALTH: Schema = _closed(
    status={"enum": ["ok", "degraded", "unhealthy"]},
    models={
        "type": "array",
        "items": _closed(
            id={"type": "string"},
            name={"type": "string"},
            health={"enum": [0, 1, 2], "description": "0 healthy, 1 shaky, 2 unhealthy."},
        ),
    },
    config=_closed(
        snapshot_revision={"type": "integer"},
        snapshot_age_seconds={
            "type": ["integer", "null"],
            "description": "Since the snapshot was last known to equal the store.",
        },
    ),
)

_MODEL_STATUS: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "display_name": {"type": "string"},
        "kind": {"enum": ["direct"]},
        "status": {"enum": ["healthy", "unhealthy"]},
        "last_checked_at": {"type": "string", "format": "date-time"},
        "last_check_status": {"enum": ["failed"]},
        "status_reason": {"type": "string"},
    },
    "required": ["id", "display_name", "kind", "status"],
    "additionalProperties": False,
}
