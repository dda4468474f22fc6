"""The table of endpoints: one row each, one pipeline for all. Pure.

Every row is served under `/v1` and `/openai/v1`, under `/openai` when it names no deployment in
Azure's dated paths, and under `/openai/deployments/{alias}` when a request may name its alias
(decisions §3). Nothing else in the project may branch on an operation's name: what differs between
endpoints is a field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class UsageForm(Enum):
    """What an answer looks like: where its usage block is, and how its streamed text is spelt."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RESPONSE = "response"
    IMAGE = "image"
    TRANSCRIPT = "transcript"
    SPEECH = "speech"
    REALTIME = "realtime"
    NONE = "none"


OPTED_USAGE = (UsageForm.CHAT, UsageForm.COMPLETION)
"""Streams of these carry usage only when `stream_options.include_usage` asks for it."""


class Action(Enum):
    """Who answers: Azure, once or in a session of both directions, or the gateway from its
    snapshot."""

    __hash__ = object.__hash__

    RELAY = "relay"
    SESSION = "session"
    LIST_MODELS = "list_models"
    GET_MODEL = "get_model"
    REFUSE = "refuse"


class BodyForm(Enum):
    """How a request's body is taken in.

    JSON is read whole, checked and edited; of a FORM (multipart) only `model` is edited, and its
    files pass as they arrive; a STREAM passes as it arrives, unread; NONE is dropped. A SESSION has
    no end: it is what the caller says on a WebSocket.
    """

    __hash__ = object.__hash__

    JSON = "json"
    FORM = "form"
    STREAM = "stream"
    SESSION = "session"
    NONE = "none"


class Naming(Enum):
    """Where a request says which alias it means, beside the alias in its path.

    BODY: the field `model`. QUERY: the parameter `deployment` or `model`. RESPONSE: the response id
    in the path, which remembers it. HEADER: `x-aisix-model`; without it the caller key's only
    alias.
    """

    __hash__ = object.__hash__

    BODY = "body"
    QUERY = "query"
    RESPONSE = "response"
    HEADER = "header"


PASSING = (BodyForm.FORM, BodyForm.STREAM, BodyForm.SESSION)
"""Bodies that go on as they arrive."""

SUBTREE_METHODS = ("GET", "POST", "DELETE")
"""What a row with a subtree is served under."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One operation.

    `path` follows the surface prefix; `{model}` in it captures an alias, `{response_id}` a response
    id, and a row with a `subtree` takes every path below its own, under any of SUBTREE_METHODS.
    `deployment_scoped` says that Azure's dated paths name the deployment. `prompt_field` is the
    body field that holds the prompt. `family` is what a caller key's `allowed_resources` must name.
    `counts` is False for reads of what was counted when it was made.
    """

    operation: str
    method: str
    path: str
    action: Action = Action.RELAY
    body: BodyForm = BodyForm.JSON
    naming: Naming = Naming.BODY
    usage: UsageForm = UsageForm.NONE
    may_stream: bool = False
    deployment_scoped: bool = False
    subtree: bool = False
    prompt_field: str | None = None
    required_list: str | None = None
    family: str | None = None
    counts: bool = True

    @property
    def template(self) -> str:
        """The fixed route text of metrics and logs; "other" for requests that meet no row."""
        return f"/v1{self.path}" if self.path else "other"

    @property
    def flows(self) -> bool:
        """Whether its answers are handed on bit by bit, whether asked for as a stream or not."""
        return self.usage is UsageForm.SPEECH or self.body in PASSING

    @property
    def takes_path_alias(self) -> bool:
        """Whether it is served under `/openai/deployments/{alias}`."""
        return self.action is Action.RELAY and self.naming is not Naming.RESPONSE

    @property
    def forwards_query(self) -> bool:
        """Whether a caller's query says something to the upstream."""
        return self.naming is not Naming.BODY


def _response(operation: str, method: str, tail: str, *, may_stream: bool = False) -> EndpointSpec:
    """A row for what is done with a response that was made before."""
    return EndpointSpec(
        operation=operation,
        method=method,
        path="/responses/{response_id}" + tail,
        body=BodyForm.NONE,
        naming=Naming.RESPONSE,
        usage=UsageForm.RESPONSE,
        may_stream=may_stream,
        counts=False,
    )


def _family(name: str) -> EndpointSpec:
    """A row for objects that live at a resource and are shared by all who may reach it."""
    return EndpointSpec(
        operation=name,
        method="*",
        path=f"/{name}",
        body=BodyForm.STREAM,
        naming=Naming.HEADER,
        subtree=True,
        family=name,
    )


ENDPOINTS: tuple[EndpointSpec, ...] = (
    EndpointSpec(
        operation="chat_completions",
        method="POST",
        path="/chat/completions",
        usage=UsageForm.CHAT,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="messages",
        required_list="messages",
    ),
    EndpointSpec(
        operation="completions",
        method="POST",
        path="/completions",
        usage=UsageForm.COMPLETION,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="prompt",
    ),
    EndpointSpec(
        operation="embeddings",
        method="POST",
        path="/embeddings",
        usage=UsageForm.EMBEDDING,
        deployment_scoped=True,
        prompt_field="input",
    ),
    EndpointSpec(
        operation="create_response",
        method="POST",
        path="/responses",
        usage=UsageForm.RESPONSE,
        may_stream=True,
        prompt_field="input",
    ),
    EndpointSpec(
        operation="compact_response",
        method="POST",
        path="/responses/compact",
        usage=UsageForm.RESPONSE,
        prompt_field="input",
    ),
    _response("get_response", "GET", "", may_stream=True),
    _response("delete_response", "DELETE", ""),
    _response("cancel_response", "POST", "/cancel"),
    _response("list_response_input_items", "GET", "/input_items"),
    EndpointSpec(
        operation="generate_images",
        method="POST",
        path="/images/generations",
        usage=UsageForm.IMAGE,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="prompt",
    ),
    EndpointSpec(
        operation="edit_images",
        method="POST",
        path="/images/edits",
        body=BodyForm.FORM,
        usage=UsageForm.IMAGE,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="prompt",
    ),
    EndpointSpec(
        operation="create_transcription",
        method="POST",
        path="/audio/transcriptions",
        body=BodyForm.FORM,
        usage=UsageForm.TRANSCRIPT,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="prompt",
    ),
    EndpointSpec(
        operation="create_translation",
        method="POST",
        path="/audio/translations",
        body=BodyForm.FORM,
        usage=UsageForm.TRANSCRIPT,
        deployment_scoped=True,
        prompt_field="prompt",
    ),
    EndpointSpec(
        operation="create_speech",
        method="POST",
        path="/audio/speech",
        usage=UsageForm.SPEECH,
        may_stream=True,
        deployment_scoped=True,
        prompt_field="input",
    ),
    EndpointSpec(
        operation="realtime",
        method="GET",
        path="/realtime",
        action=Action.SESSION,
        body=BodyForm.SESSION,
        naming=Naming.QUERY,
        usage=UsageForm.REALTIME,
    ),
    EndpointSpec(operation="list_models", method="GET", path="/models", action=Action.LIST_MODELS),
    EndpointSpec(
        operation="get_model", method="GET", path="/models/{model}", action=Action.GET_MODEL
    ),
    _family("files"),
    _family("batches"),
    _family("fine_tuning"),
    _family("vector_stores"),
    _family("evals"),
)

FAMILIES = tuple(spec.family for spec in ENDPOINTS if spec.family is not None)
"""What a caller key's `allowed_resources` may name."""

OTHER = EndpointSpec(operation="other", method="*", path="", action=Action.REFUSE)
"""Stands for every request that meets no row, so that it too is logged and counted by the pipeline.
"""
