"""Doubles and builders for the control half: a store in memory, a stub adapter, a manual clock,
and an admin API on a real socket.

Everything goes in through ports; nothing of the product is patched.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from aisix.admin.service import AdminService
from aisix.admin.verify import Verification
from aisix.core.ports import (
    Finding,
    StaleRevision,
    StoreConflict,
    StoredResource,
    StoreUnavailable,
    TokenState,
)
from aisix.core.resources import (
    Credential,
    Deployment,
    ManagedIdentity,
    ResourceKey,
    TokenCredential,
)
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.errors import FieldError
from aisix.web.applications import admin_application
from aisix.web.base import ProcessState

ADMIN_KEY = "admin-key-of-the-tests"

AZURE_KEY = {
    "display_name": "azure-prod",
    "provider": "azure",
    "adapter": "azure-openai",
    "secret": "the-resource-key",
    "api_base": "https://acme-west.openai.azure.com",
}
MODEL = {"display_name": "gpt-4o-azure", "provider": "azure", "model_name": "gpt4o-prod"}


class ManualClock:
    """A clock that moves when told."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def time(self) -> float:
        """UTC epoch seconds."""
        return self.now


class StubAdapter:
    """The checks of an adapter in their simplest form; `refused` lists secrets it will not take."""

    name = "azure-openai"

    def __init__(self) -> None:
        self.refused: set[str] = set()

    def parse_api_base(self, api_base: str | None) -> str:
        """A URL without its trailing slash."""
        if not api_base:
            raise FieldError("api_base is required")
        if "?" in api_base:
            raise FieldError("must not have a query")
        return api_base.rstrip("/")

    def parse_api_version(self, api_version: str | None) -> str:
        """Lower case."""
        if api_version == "never":
            raise FieldError("is no version")
        return (api_version or "2024-10-21").lower()

    def parse_secret(self, secret: str) -> Credential:
        """A resource key; a managed identity when it is JSON."""
        if secret in self.refused:
            raise FieldError("is not usable")
        if secret.startswith("{"):
            return ManagedIdentity("x/.default", "client_id", json.loads(secret)["client_id"])
        return ResourceKey(secret)

    def check_credential(self, credential: Credential, *, api_base: str, now: float) -> None:
        """All are good."""

    def check_deployment_name(self, name: str) -> None:
        """No spaces."""
        if " " in name:
            raise FieldError("must not contain spaces")


class StubHealth:
    """Levels and failures as set by the test."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self.failures: dict[str, tuple[float, str]] = {}

    def level(self, alias_name: str) -> int:
        """As set, else healthy."""
        return self.levels.get(alias_name, 0)

    def last_failure(self, alias_name: str) -> tuple[float, str] | None:
        """As set."""
        return self.failures.get(alias_name)


class StubTokens:
    """TokenView whose states are as set by the test, by the client id."""

    def __init__(self) -> None:
        self.states: dict[str, TokenState] = {}

    def state(self, credential: TokenCredential) -> TokenState:
        """As set, else nothing."""
        return self.states.get(credential.names.get("client_id", ""), TokenState())


class StubVerifier:
    """Finds what the test says, and remembers of which deployments."""

    def __init__(self) -> None:
        self.finding = Finding("", "all is right")
        self.asked: list[Deployment] = []

    async def verify(self, deployment: Deployment) -> Verification:
        """As set."""
        self.asked.append(deployment)
        return Verification(self.finding, latency_ms=1)


class StubSink:
    """SnapshotSink over a holder; `lagging` is what the test says of the workers."""

    def __init__(self, holder: SnapshotHolder) -> None:
        self.holder = holder
        self.lagging = 0

    async def publish(self, snapshot: Snapshot) -> int:
        """Make it the current one."""
        self.holder.publish(snapshot)
        return self.lagging


class MemoryStore:
    """ResourceStore in memory; `fail_with` makes every call fail."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], StoredResource] = {}
        self.fail_with: str | None = None
        self._revision = 0

    async def all(self) -> list[StoredResource]:
        """Every row, oldest first."""
        self._check()
        return [*self.rows.values()]

    async def list(self, kind: str) -> list[StoredResource]:
        """Rows of a kind, oldest first."""
        self._check()
        return [row for row in self.rows.values() if row.kind == kind]

    async def get(self, kind: str, id: str) -> StoredResource | None:
        """One row."""
        self._check()
        return self.rows.get((kind, id))

    async def put(self, row: StoredResource, *, expected: int | None) -> None:
        """Insert or replace."""
        self._check()
        found = self.rows.get((row.kind, row.id))
        if expected is not None and expected != (found.revision if found else 0):
            raise StaleRevision(row.id)
        for other in self.rows.values():
            if other is not found and (other.kind, other.name) == (row.kind, row.name):
                raise StoreConflict(row.name)
        created_at = found.created_at if found else row.created_at
        self.rows[row.kind, row.id] = replace(row, created_at=created_at)
        self._revision += 1

    async def delete(self, kind: str, id: str, *, expected: int | None) -> bool:
        """Remove."""
        self._check()
        found = self.rows.get((kind, id))
        if found is None:
            return False
        if expected is not None and expected != found.revision:
            raise StaleRevision(id)
        del self.rows[kind, id]
        self._revision += 1
        return True

    async def revision(self) -> int:
        """Grows with every write."""
        self._check()
        return self._revision

    def _check(self) -> None:
        if self.fail_with is not None:
            raise StoreUnavailable(self.fail_with)


@dataclass
class Control:
    """A control half on doubles."""

    service: AdminService
    store: Any
    holder: SnapshotHolder
    sink: StubSink
    adapter: StubAdapter
    health: StubHealth
    tokens: StubTokens
    verifier: StubVerifier
    clock: ManualClock

    async def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """A create through the service."""
        return (await self.service.create(kind, body, actor="tests")).answer

    async def create_model(self, **fields: Any) -> dict[str, Any]:
        """The guide's model, with its provider key when there is none."""
        keys = await self.service.list_all("provider_keys")
        key = keys[0] if keys else await self.create("provider_keys", AZURE_KEY)
        return await self.create("models", {**MODEL, "provider_key_id": key["id"], **fields})


def make_control(store: Any = None) -> Control:
    """A control half whose store is `store`, else one in memory. Nothing is loaded yet."""
    store = store if store is not None else MemoryStore()
    holder, adapter = SnapshotHolder(), StubAdapter()
    health, clock, sink = StubHealth(), ManualClock(), StubSink(holder)
    tokens, verifier = StubTokens(), StubVerifier()
    service = AdminService(
        store,
        sink,
        adapters={adapter.name: adapter},  # type: ignore[dict-item]
        health=health,
        tokens=tokens,
        verifier=verifier,  # type: ignore[arg-type]
        clock=clock,
    )
    return Control(service, store, holder, sink, adapter, health, tokens, verifier, clock)


@dataclass
class AdminApi:
    """An admin API on a socket."""

    control: Control
    state: ProcessState
    port: int
    client: AsyncHTTPClient

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        key: str | None = ADMIN_KEY,
    ) -> HTTPResponse:
        """One request; `body` is sent as JSON unless it is bytes."""
        sent = dict(headers or {})
        if key is not None:
            sent.setdefault("Authorization", f"Bearer {key}")
        raw: bytes | None = None
        if body is not None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        request = HTTPRequest(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            headers=sent,
            body=raw,
            allow_nonstandard_methods=True,
            decompress_response=False,
        )
        return await self.client.fetch(request, raise_error=False)

    async def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The JSON of a request that must succeed."""
        response = await self.call(method, path, body, **options)
        assert response.code == 200, (response.code, response.body)
        return json.loads(response.body)


@asynccontextmanager
async def serve_admin(control: Control | None = None) -> AsyncIterator[AdminApi]:
    """An admin API on a free port, loaded."""
    control = control or make_control()
    await control.service.load()
    state = ProcessState()
    server = HTTPServer(
        admin_application(control.service, admin_keys=["other-key", ADMIN_KEY], state=state)
    )
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    client = AsyncHTTPClient(force_instance=True)
    try:
        yield AdminApi(control, state, sockets[0].getsockname()[1], client)
    finally:
        client.close()
        server.stop()
        await server.close_all_connections()
        await control.service.close()


def error_of(response: HTTPResponse) -> str:
    """The text of an error answer; it must be the envelope and nothing else."""
    document = json.loads(response.body)
    assert list(document) == ["error_msg"]
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-aisix-request-id"]
    text: str = document["error_msg"]
    return text
