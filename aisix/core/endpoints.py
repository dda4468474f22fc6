"""The table of endpoints: one row each, one pipeline for all. Pure.

Every row is served under `/v1`, `/openai/v1` and, when it names a deployment, under
`/openai/deployments/{alias}` (decisions §3). Nothing else in the project may branch on an
operation's name: what differs between endpoints is a field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class UsageForm(Enum):
    """Where an answer's usage block is and how its streamed text is spelt."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    NONE = "none"


class Action(Enum):
    """Who answers: Azure, or the gateway from its snapshot."""

    __hash__ = object.__hash__

    RELAY = "relay"
    LIST_MODELS = "list_models"
    GET_MODEL = "get_model"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One operation.

    `path` follows the surface prefix; `{model}` in it captures an alias. `template` is the fixed
    text that metrics and logs carry. `prompt_field` is the body field that holds the prompt.
    """

    operation: str
    method: str
    path: str
    action: Action = Action.RELAY
    usage: UsageForm = UsageForm.NONE
    may_stream: bool = False
    deployment_scoped: bool = False
    prompt_field: str | None = None
    required_list: str | None = None

    @property
    def template(self) -> str:
        """The fixed route text of metrics and logs; "other" for requests that meet no row."""
        return f"/v1{self.path}" if self.path else "other"


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
    EndpointSpec(operation="list_models", method="GET", path="/models", action=Action.LIST_MODELS),
    EndpointSpec(
        operation="get_model", method="GET", path="/models/{model}", action=Action.GET_MODEL
    ),
)

OTHER = EndpointSpec(operation="other", method="*", path="", action=Action.REFUSE)
"""Stands for every request that meets no row, so that it too is logged and counted by the pipeline.
"""
