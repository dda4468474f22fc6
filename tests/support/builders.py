"""Values of the data path with defaults that work; a test names only what matters to it.

`make_exchange` gives an exchange that has been answered well; `marks` are seconds after arrival.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.core.exchange import Exchange, Payload, Phase, Timings, Usage
from aisix.core.request import InboundRequest
from aisix.core.resources import Alias, ApiKey, Deployment, ResourceKey
from aisix.core.snapshot import Snapshot

RESOURCE_KEY = "resource-key-of-the-tests"
ARRIVED = 1_000.0
"""Monotonic second at which built exchanges arrive."""

USAGE = Usage(
    prompt_tokens=9, completion_tokens=5, total_tokens=14, cached_tokens=2, reasoning_tokens=1
)


def endpoint(operation: str) -> EndpointSpec:
    """The row of ENDPOINTS with this operation."""
    return next(spec for spec in ENDPOINTS if spec.operation == operation)


CHAT = endpoint("chat_completions")
EMBEDDINGS = endpoint("embeddings")
LIST_MODELS = endpoint("list_models")


def make_key(**fields: Any) -> ApiKey:
    """A caller key that may use every alias."""
    defaults: dict[str, Any] = {
        "id": "key-1",
        "key_hash": "hash-1",
        "allowed_models": ("*",),
        "display_name": "team one",
    }
    return ApiKey(**{**defaults, **fields})


def make_deployment(**fields: Any) -> Deployment:
    """An Azure deployment reached with a resource key."""
    defaults: dict[str, Any] = {
        "name": "gpt4o-prod",
        "provider": "Azure",
        "adapter": "azure-openai",
        "api_base": "https://acme-west.openai.azure.com",
        "api_version": "2024-10-21",
        "provider_key_id": "pk-1",
        "provider_key_name": "azure-prod",
        "credential": ResourceKey(RESOURCE_KEY),
    }
    return Deployment(**{**defaults, **fields})


def make_openai_deployment(**fields: Any) -> Deployment:
    """A model of an OpenAI-compatible server."""
    defaults: dict[str, Any] = {
        "name": "meta-llama/Llama-3-8B",
        "provider": "vllm",
        "adapter": "openai",
        "api_base": "http://vllm.example:8000/v1",
        "api_version": "",
        "provider_key_name": "vllm",
    }
    return make_deployment(**{**defaults, **fields})


def make_alias(**fields: Any) -> Alias:
    """An alias of `make_deployment()`."""
    defaults: dict[str, Any] = {
        "id": "model-1",
        "name": "gpt-4o-azure",
        "deployment": make_deployment(),
        "created": 1_700_000_000,
    }
    return Alias(**{**defaults, **fields})


def make_snapshot(
    *,
    keys: Iterable[ApiKey] | None = None,
    aliases: Iterable[Alias] | None = None,
    revision: int = 3,
) -> Snapshot:
    """A snapshot, of one key and one alias unless told otherwise."""
    return Snapshot.build(
        revision=revision,
        taken_at=1_700_000_000.0,
        keys=[make_key()] if keys is None else keys,
        aliases=[make_alias()] if aliases is None else aliases,
    )


class Headers:
    """A HeaderView over a mapping."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {name.lower(): value for name, value in values.items()}

    def get(self, name: str, /) -> str | None:
        """The value of `name`, or None."""
        return self._values.get(name.lower())

    def items(self) -> Iterable[tuple[str, str]]:
        """All names with their values."""
        return self._values.items()


class Pieces:
    """An async iterator over pieces that are there; no generator, as RequestBody demands."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop(0)


class WholeBody:
    """A RequestBody that is all there."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = content

    async def read_all(self, limit: int) -> bytes:
        """All of it."""
        return self._content

    def chunks(self) -> AsyncIterator[bytes]:
        """All of it, in one piece."""
        return Pieces(self._content)


def make_request(
    spec: EndpointSpec = CHAT, *, headers: Mapping[str, str] | None = None, **fields: Any
) -> InboundRequest:
    """A request for `spec`, with the caller key of `make_key`."""
    defaults: dict[str, Any] = {
        "request_id": "req-1",
        "spec": spec,
        "method": spec.method,
        "path": spec.template,
        "headers": Headers({"authorization": "Bearer caller-key", **(headers or {})}),
        "body": WholeBody(),
        "client_address": "192.0.2.7",
    }
    return InboundRequest(**{**defaults, **fields})


def make_timings(*, arrived: float = ARRIVED, **marks: float) -> Timings:
    """Marks given in seconds after arrival."""
    return Timings(arrived=arrived, **{name: arrived + mark for name, mark in marks.items()})


def make_exchange(
    spec: EndpointSpec = CHAT,
    *,
    stream: bool = False,
    alias: Alias | None = None,
    marks: Mapping[str, float] | None = None,
    request: InboundRequest | None = None,
    **fields: Any,
) -> Exchange:
    """An exchange that Azure answered well; `fields` are those of Exchange."""
    known = alias or make_alias()
    defaults: dict[str, Any] = {
        "phase": Phase.DONE,
        "caller": make_key(),
        "payload": Payload(document={"model": known.name}, requested=known.name, stream=stream),
        "alias": known,
        "deployment": known.deployment,
        "usage": USAGE,
        "served_model": "gpt-4o-2024-08-06",
        "upstream_request_id": "apim-1",
        "upstream_status": 200,
        "finish_reason": "stop",
        "attempts": 1,
        "status": 200,
    }
    timings = {
        "dispatched": 0.002,
        "upstream_first_byte": 0.4,
        "first_token": 0.401,
        "first_out": 0.401,
        "upstream_last_byte": 0.9,
        "ended": 0.901,
    }
    if not stream:
        timings.pop("first_token")
    return Exchange(
        request=request or make_request(spec),
        snapshot=make_snapshot(),
        timings=make_timings(**(timings if marks is None else marks)),
        **{**defaults, **fields},
    )


def make_refused(spec: EndpointSpec = CHAT, **fields: Any) -> Exchange:
    """An exchange that ended before its alias was known."""
    nothing: dict[str, Any] = {
        "payload": None,
        "deployment": None,
        "usage": None,
        "served_model": None,
        "upstream_request_id": None,
        "upstream_status": None,
        "finish_reason": None,
        "attempts": 0,
        "marks": {"first_out": 0.001, "ended": 0.001},
    }
    exchange = make_exchange(spec, **{**nothing, **fields})
    return replace(exchange, alias=None)
