"""Every operation of the resource as one table, and what a path names.

A row says which body an operation reads, where its deployment stands and since which dated
api-version it exists; `locate` finds the row's path in a request's path. On the dated surface an
operation either stands below `/openai/deployments/{name}/` or beside it, never both; v1 has no
such prefix and takes the deployment from the body, and so does the OpenAI-compatible `/v1`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from aisix.simulator.identity import APP_PATH, IMDS_PATH

JSON, FORM, NO_BODY = "json", "form", ""
PATH, BODY, NOWHERE = "path", "body", ""
V1_VERSIONS = frozenset({"", "v1", "preview"})

_DATE = len("2024-10-21")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `name` is what quota messages call it."""

    method: str
    path: str
    name: str
    body: str = NO_BODY
    deployment: str = NOWHERE
    since: str = ""
    preview: bool = False  # on the dated surface in previews only

    @property
    def key(self) -> str:
        """What handlers are filed under."""
        return f"{self.method} {self.path}"

    def known_to(self, version: str) -> bool:
        """Whether a dated api-version has it."""
        return version[:_DATE] >= self.since and (not self.preview or version.endswith("-preview"))


def _deployed(
    path: str, name: str, body: str, since: str = "", *, preview: bool = False
) -> Operation:
    return Operation("POST", path, name, body, PATH, since, preview)


def _resource(
    path: str, name: str, *methods: str, since: str = "", preview: bool = False
) -> list[Operation]:
    """The operations on one path that take JSON when they write and nothing else."""
    return [
        Operation(
            method, path, f"{name}_{_VERBS[method]}", _BODIES[method], since=since, preview=preview
        )
        for method in methods
    ]


def _vector_stores(path: str, name: str, *methods: str) -> list[Operation]:
    return _resource(path, name, *methods, since="2024-05-01", preview=True)


def _evals(path: str, name: str, *methods: str) -> list[Operation]:
    return _resource(path, name, *methods, since="2025-04-01", preview=True)


_VERBS = {"GET": "Get", "POST": "Create", "DELETE": "Delete"}
_BODIES = {"GET": NO_BODY, "POST": JSON, "DELETE": NO_BODY}

_RESPONSES_SINCE = "2025-03-01"
_BATCHES_SINCE = "2024-07-01"

_ROWS: tuple[Operation, ...] = (
    _deployed("chat/completions", "ChatCompletions_Create", JSON),
    _deployed("completions", "Completions_Create", JSON),
    _deployed("embeddings", "Embeddings_Create", JSON),
    _deployed("images/generations", "ImageGenerations_Create", JSON),
    _deployed("images/edits", "ImageEdits_Create", FORM, "2025-04-01", preview=True),
    _deployed("audio/transcriptions", "Transcriptions_Create", FORM),
    _deployed("audio/translations", "Translations_Create", FORM),
    _deployed("audio/speech", "Speech_Create", JSON, "2024-02-15", preview=True),
    Operation("GET", "models", "Models_List"),
    Operation("POST", "responses", "Responses_Create", JSON, BODY, _RESPONSES_SINCE),
    Operation("POST", "responses/compact", "Responses_Compact", JSON, BODY, _RESPONSES_SINCE),
    *_resource("responses/{id}", "Responses", "GET", "DELETE", since=_RESPONSES_SINCE),
    Operation("POST", "responses/{id}/cancel", "Responses_Cancel", since=_RESPONSES_SINCE),
    *_resource("responses/{id}/input_items", "ResponsesInputItems", "GET", since=_RESPONSES_SINCE),
    Operation("POST", "files", "Files_Create", FORM),
    *_resource("files", "Files", "GET"),
    *_resource("files/{id}", "Files", "GET", "DELETE"),
    *_resource("files/{id}/content", "FilesContent", "GET"),
    *_resource("batches", "Batches", "POST", "GET", since=_BATCHES_SINCE),
    *_resource("batches/{id}", "Batches", "GET", since=_BATCHES_SINCE),
    Operation("POST", "batches/{id}/cancel", "Batches_Cancel", since=_BATCHES_SINCE),
    *_resource("fine_tuning/jobs", "FineTuning", "POST", "GET"),
    *_resource("fine_tuning/jobs/{id}", "FineTuning", "GET"),
    Operation("POST", "fine_tuning/jobs/{id}/cancel", "FineTuning_Cancel"),
    *_resource("fine_tuning/jobs/{id}/events", "FineTuningEvents", "GET"),
    *_resource("fine_tuning/jobs/{id}/checkpoints", "FineTuningCheckpoints", "GET"),
    *_vector_stores("vector_stores", "VectorStores", "POST", "GET"),
    *_vector_stores("vector_stores/{id}", "VectorStores", "GET", "POST", "DELETE"),
    *_vector_stores("vector_stores/{id}/search", "VectorStoresSearch", "POST"),
    *_vector_stores("vector_stores/{id}/files", "VectorStoresFiles", "POST", "GET"),
    *_vector_stores("vector_stores/{id}/files/{id}", "VectorStoresFiles", "GET", "POST", "DELETE"),
    *_vector_stores("vector_stores/{id}/files/{id}/content", "VectorStoresFilesContent", "GET"),
    *_evals("evals", "Evals", "POST", "GET"),
    *_evals("evals/{id}", "Evals", "GET", "POST", "DELETE"),
    *_evals("evals/{id}/runs", "EvalsRuns", "POST", "GET"),
    *_evals("evals/{id}/runs/{id}", "EvalsRuns", "GET", "DELETE"),
    Operation("POST", "evals/{id}/runs/{id}", "EvalsRuns_Cancel", since="2025-04-01", preview=True),
    Operation(
        "POST", "evals/{id}/runs/{id}/cancel", "EvalsRuns_Cancel", since="2025-04-01", preview=True
    ),
    *_evals("evals/{id}/runs/{id}/output_items", "EvalsOutputItems", "GET"),
)

OPERATIONS: Mapping[str, Operation] = {row.key: row for row in _ROWS}


# --- paths --------------------------------------------------------------------------------------

_DATED = re.compile(r"/openai/deployments/([^/]+)/(.+)")
_V1 = re.compile(r"/openai/v1/(.+)")
_COMPATIBLE = re.compile(r"/v1/(.+)")
_TOKEN = re.compile(r"/([^/]+)/oauth2/v2\.0/token")
_OPENID = re.compile(r"/([^/]+)/v2\.0/\.well-known/openid-configuration")
_OTHER = re.compile(r"/openai/([^/].*)")

_BELOW_DEPLOYMENTS = frozenset(row.path for row in _ROWS if row.deployment == PATH)
_EXACT = frozenset(row.path for row in _ROWS if "{" not in row.path)
_TEMPLATES = [path.split("/") for path in dict.fromkeys(r.path for r in _ROWS) if "{" in path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a path names. `kind`: azure, token, identity, openid or nowhere. `ids` are the names
    that stand where the operation's path has braces. `compatible`: of v1, the surface that is not
    Azure's."""

    kind: str
    operation: str = ""
    deployment: str = ""
    ids: tuple[str, ...] = ()
    tenant: str = ""
    v1: bool = False
    compatible: bool = False


def locate(path: str) -> Place:
    """The place a path names; a deployment that stands in the body is added later."""
    if match := _V1.fullmatch(path):
        operation, ids = _operation(match[1])
        return Place(kind="azure", operation=operation, ids=ids, v1=True)
    if match := _COMPATIBLE.fullmatch(path):
        operation, ids = _operation(match[1])
        return Place(kind="azure", operation=operation, ids=ids, v1=True, compatible=True)
    if match := _DATED.fullmatch(path):
        deployment = unquote(match[1])
        kind = "azure" if match[2] in _BELOW_DEPLOYMENTS else "nowhere"
        return Place(kind=kind, deployment=deployment, operation=match[2])
    if match := _TOKEN.fullmatch(path):
        return Place(kind="token", tenant=unquote(match[1]), operation="token")
    if match := _OPENID.fullmatch(path):
        return Place(kind="openid", tenant=unquote(match[1]), operation="openid-configuration")
    if path in {IMDS_PATH, APP_PATH}:
        return Place(kind="identity", operation="token")
    if match := _OTHER.fullmatch(path):
        operation, ids = _operation(match[1])
        kind = "nowhere" if operation in _BELOW_DEPLOYMENTS else "azure"
        return Place(kind=kind, operation=operation, ids=ids)
    return Place(kind="nowhere")


def _operation(path: str) -> tuple[str, tuple[str, ...]]:
    """The operation's path with braces, and what stands in them; unknown paths stay as they are."""
    if path in _EXACT or "/" not in path:
        return path, ()
    parts = path.split("/")
    for template in _TEMPLATES:
        if len(template) == len(parts) and all(
            part and (part == wanted or wanted[0] == "{")
            for part, wanted in zip(parts, template, strict=True)
        ):
            pairs = zip(parts, template, strict=True)
            ids = tuple(unquote(part) for part, wanted in pairs if wanted[0] == "{")
            return "/".join(template), ids
    return path, ()


def deployment_in_body(place: Place, method: str) -> bool:
    """Whether the body names the deployment."""
    row = OPERATIONS.get(f"{method} {place.operation}")
    if row is None or place.kind != "azure":
        return False
    return row.deployment == BODY or (row.deployment == PATH and place.v1)
