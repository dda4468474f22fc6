"""A limiter to play with: a clock moved by hand and exchanges as the pipeline would hand them in.

No I/O. `run` drives a coroutine that never has to wait, so that property tests need no event loop.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.core.exchange import Exchange, Payload, Timings
from aisix.core.request import InboundRequest
from aisix.core.resources import Alias, ApiKey, Deployment, LimitPolicy
from aisix.core.snapshot import Snapshot
from aisix.limits.limiter import BucketStore
from aisix.limits.shared import SharedBuckets, SharedTable

Result = TypeVar("Result")

CHAT, COMPLETION, EMBEDDING = ENDPOINTS[:3]


class HandClock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that ends at its first step."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the coroutine waits for something")


class TakingStore(BucketStore, Sized, Protocol):
    """A store that says how many entries it holds."""


@contextmanager
def shared_stores(
    clock: HandClock, *, workers: int, entries: int
) -> Iterator[tuple[SharedBuckets, ...]]:
    """A store for each worker over one table, all in this process."""
    table = SharedTable.create(workers=workers, entries=entries)
    try:
        yield tuple(SharedBuckets(table, worker=worker, clock=clock) for worker in range(workers))
    finally:
        table.close()


class _NoBody:
    async def read_all(self, limit: int) -> bytes:
        return b""

    async def chunks(self) -> Any:
        yield b""


def make_exchange(
    key: LimitPolicy | None = None,
    model: LimitPolicy | None = None,
    *,
    document: dict[str, Any] | None = None,
    spec: EndpointSpec = CHAT,
    key_id: str = "k1",
    alias_id: str = "m1",
) -> Exchange:
    """An exchange that stands before the limiter."""
    deployment = Deployment(
        name="d",
        provider="azure",
        adapter="azure-openai",
        api_base="https://r.openai.azure.com",
        api_version="2024-10-21",
        provider_key_id="p1",
        provider_key_name="p",
    )
    return Exchange(
        request=InboundRequest("r1", spec, "POST", spec.template, {}, _NoBody()),
        snapshot=Snapshot(),
        timings=Timings(0.0),
        caller=ApiKey(key_id, "0" * 64, limits=key or LimitPolicy()),
        alias=Alias(alias_id, "gpt-4o", deployment, model or LimitPolicy()),
        payload=Payload(document if document is not None else {}, "gpt-4o"),
    )


def tokens(count: int, *, output: int = 0) -> dict[str, Any]:
    """A completion body that is estimated at exactly `count` prompt and `output` tokens."""
    return {"prompt": [1] * count, "max_tokens": output}
