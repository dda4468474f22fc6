"""The use cases of the admin API: list, read, create, replace, delete, rotate, verify, two views.

No I/O of its own: the store and the snapshot sink are ports. Law: a write first does everything
that may fail (checks, compiling the next snapshot), then makes the row durable, then publishes,
then returns. So a write is effective when its answer is sent, and a failed one has changed
nothing. Writes run one at a time under one lock, which makes the uniqueness checks free of races,
and they run shielded: a caller that leaves cannot separate a durable row from its publication.

Another gateway may write to the same store. The store's revision is always read before the rows it
stands for, so a snapshot is never taken for newer than it is, and `follow` catches up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from aisix.admin import refusals, rules
from aisix.admin.audit import Audit
from aisix.admin.compiler import Compiled, compile_snapshot, deployment_of
from aisix.admin.schemas import APIKEYS, MODELS, PROVIDER_KEYS, ROTATION, Schemas
from aisix.admin.verify import Verifier
from aisix.core.ports import (
    Adapter,
    Clock,
    HealthView,
    ResourceStore,
    SnapshotSink,
    StaleRevision,
    StoreConflict,
    StoredResource,
    StoreUnavailable,
    TokenState,
    TokenView,
)
from aisix.core.resources import Alias, ResourceKey
from aisix.core.snapshot import Snapshot
from aisix.errors import FieldError

STALE_AFTER_S = 300.0
"""A snapshot that could not be compared with the store for this long makes health degraded."""

FOLLOW_EVERY_S = 1.0
"""How often a write of another process is looked for; replicas follow within twice that."""

_UNHEALTHY = 2
_logger = logging.getLogger("aisix.admin")

T = TypeVar("T")
Entry = dict[str, Any]
Revisions = Collection[int] | None
"""What If-Match names; None when any revision will do."""


class Written(NamedTuple):
    """What a write answers, and how many workers may not have heard of it yet."""

    answer: Entry
    lagging_workers: int


class AdminService:
    """All resources of one gateway, seen from the admin API."""

    def __init__(  # noqa: PLR0913 - one argument per port, all but two by name
        self,
        store: ResourceStore,
        sink: SnapshotSink,
        *,
        adapters: Mapping[str, Adapter],
        health: HealthView,
        tokens: TokenView,
        verifier: Verifier,
        clock: Clock,
        seal_key: bytes = b"",
    ) -> None:
        self._seal_key = seal_key
        self.schemas = Schemas(tuple(adapters))
        self.audit = Audit()
        self._store = store
        self._sink = sink
        self._adapters = adapters
        self._health = health
        self._tokens = tokens
        self._verifier = verifier
        self._clock = clock
        self._lock = asyncio.Lock()
        self._writes: set[asyncio.Task[Any]] = set()
        self._rows_revision = 0
        self._snapshot: Snapshot | None = None
        self._confirmed_at = 0.0
        self._problems: frozenset[str] = frozenset()
        self._unverified: frozenset[str] = frozenset()

    async def load(self) -> None:
        """Publish what the store holds. Raises StoreUnavailable."""
        async with self._lock:
            rows = await self._rows()
            await self._publish(self._compile(rows, self._rows_revision))

    async def refresh(self) -> bool:
        """Publish what another process has written; whether there was anything. Raises
        StoreUnavailable."""
        async with self._lock:
            published = self._snapshot.revision if self._snapshot else None
            if await self._store.revision() == published:
                return False
            rows = await self._rows()
            await self._publish(self._compile(rows, self._rows_revision))
            return True

    async def follow(self, *, every_s: float = FOLLOW_EVERY_S) -> None:
        """`refresh` again and again, until cancelled. What fails is told once."""
        told = False
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.refresh()
                told = False
            except StoreUnavailable as error:
                if not told:
                    _logger.error("admin.store_failed", extra={"error": str(error)})
                told = True
            except Exception:
                # a bug must not end the following without a word
                if not told:
                    _logger.exception("admin.follow_failed")
                told = True

    async def close(self) -> None:
        """Wait for the writes under way."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    # ── reads ───────────────────────────────────────────────────────────────────────────────────

    async def list_all(self, kind: str) -> Sequence[Entry]:
        """All resources of a kind, oldest first."""
        with _store_errors():
            return [self._present(row) for row in await self._store.list(kind)]

    async def read(self, kind: str, id: str) -> Entry:
        """One resource. Raises Refusal 404."""
        with _store_errors():
            row = await self._store.get(kind, id)
        if row is None:
            raise refusals.not_found()
        return self._present(row)

    async def health(self) -> dict[str, Any]:
        """How the models fare, and whether the published snapshot is the store's newest."""
        levels = [(alias, self._level(alias)) for alias in self._aliases()]
        models = [{"id": a.id, "name": a.name, "health": level} for a, level in levels]
        age = await self._snapshot_age_s()
        worst = max((level for _, level in levels), default=0)
        status = "ok"
        if worst >= _UNHEALTHY:
            status = "unhealthy"
        elif worst or age is None or age > STALE_AFTER_S:
            status = "degraded"
        config = {
            "snapshot_revision": self._snapshot.revision if self._snapshot else 0,
            "snapshot_age_seconds": None if age is None else int(age),
        }
        return {"status": status, "models": models, "config": config}

    def models_status(self) -> Sequence[Entry]:
        """Each model's upstream as the newest calls saw it."""
        return [self._model_status(alias) for alias in self._aliases()]

    async def verify(self, kind: str, id: str, *, actor: str) -> Entry:
        """Whether Azure takes what a provider key or model says. Raises Refusal 404, 429."""
        with _store_errors():
            rows = await self._store.all()
        row = _find(rows, kind, id, if_match=None)
        found = await self._verifier.verify(deployment_of(row, rows, self._adapters))
        self.audit.verified(kind, id, actor=actor, stage=found.finding.stage)
        return found.render()

    # ── writes ──────────────────────────────────────────────────────────────────────────────────

    async def create(self, kind: str, document: Any, *, actor: str) -> Written:
        """A new resource. Raises Refusal 400, 409."""
        body = self.schemas.check(kind, document)

        async def work() -> Written:
            rows = await self._rows()
            draft = self._draft(kind, body, stored=None, rows=rows)
            row = StoredResource(
                kind=kind,
                id=str(uuid.uuid4()),
                name=draft.name,
                revision=1,
                doc=draft.doc,
                secret=draft.secret,
                header_values=draft.header_values,
                created_at=self._clock.time(),
            )
            lagging = await self._write("create", rows, before=None, after=row, actor=actor)
            return Written(self._present(row), lagging)

        return await self._alone(work)

    async def replace(
        self, kind: str, id: str, document: Any, *, if_match: Revisions, actor: str
    ) -> Written:
        """A whole new value for a resource. Raises Refusal 400, 404, 409, 412."""

        async def work() -> Written:
            rows = await self._rows()
            before = _find(rows, kind, id, if_match=if_match)
            body = self.schemas.check(kind, document, replacing=True)
            draft = self._draft(kind, body, stored=before, rows=rows)
            after = _next(before, draft)
            lagging = await self._write("replace", rows, before=before, after=after, actor=actor)
            return Written(self._present(after), lagging)

        return await self._alone(work)

    async def delete(self, kind: str, id: str, *, if_match: Revisions, actor: str) -> Written:
        """Remove a resource that nothing needs. Raises Refusal 404, 409, 412."""

        async def work() -> Written:
            rows = await self._rows()
            before = _find(rows, kind, id, if_match=if_match)
            if kind == PROVIDER_KEYS:
                _check_unused(id, rows)
            lagging = await self._write("delete", rows, before=before, after=None, actor=actor)
            return Written({"deleted": True, "id": id}, lagging)

        return await self._alone(work)

    async def rotate(self, id: str, document: Any, *, if_match: Revisions, actor: str) -> Written:
        """A new secret for a caller key, shown this once; with `grace_seconds` the old one keeps
        working that long. Raises Refusal 400, 404, 412."""

        async def work() -> Written:
            rows = await self._rows()
            before = _find(rows, APIKEYS, id, if_match=if_match)
            body = self.schemas.check(ROTATION, {} if document is None else document)
            grace_s = body.get("grace_seconds", 0)
            plaintext = f"sk-{secrets.token_hex(16)}"
            until = self._clock.time() + grace_s if grace_s else None
            draft = rules.rotated_apikey(before, plaintext, grace_until=until)
            after = _next(before, draft)
            lagging = await self._write("rotate", rows, before=before, after=after, actor=actor)
            return Written({"entry": self._present(after), "plaintext": plaintext}, lagging)

        return await self._alone(work)

    # ── inside a write ──────────────────────────────────────────────────────────────────────────

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T:
        async def locked() -> T:
            async with self._lock:
                with _store_errors():
                    return await work()

        task = asyncio.get_running_loop().create_task(locked())
        self._writes.add(task)
        task.add_done_callback(self._write_ended)
        return await asyncio.shield(task)

    def _write_ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; the error is then nobody's to read

    def _draft(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        stored: StoredResource | None,
        rows: Sequence[StoredResource],
    ) -> rules.Draft:
        if kind == PROVIDER_KEYS:
            draft = rules.draft_provider_key(
                body, stored, adapters=self._adapters, now=self._clock.time()
            )
        elif kind == MODELS:
            wanted = body["provider_key_id"]
            keys = (row for row in rows if row.kind == PROVIDER_KEYS and row.id == wanted)
            draft = rules.draft_model(body, next(keys, None), adapters=self._adapters)
        else:
            draft = rules.draft_apikey(body, stored)
        own_id = stored.id if stored else None
        self._check_unique(kind, draft.name, own_id=own_id, rows=rows)
        return draft

    def _check_unique(
        self, kind: str, name: str, *, own_id: str | None, rows: Sequence[StoredResource]
    ) -> None:
        now = self._clock.time()
        for row in rows:
            if row.kind != kind or row.id == own_id:
                continue
            names = rules.live_hashes(row, now) if kind == APIKEYS else {row.name}
            if name in names:
                raise refusals.name_taken(name)

    async def _write(
        self,
        action: str,
        rows: Sequence[StoredResource],
        *,
        before: StoredResource | None,
        after: StoredResource | None,
        actor: str,
    ) -> int:
        """Compile, make durable, publish, tell the audit log; in this order. Returns how many
        workers lag."""
        compiled = self._compile(_with_change(rows, before, after), self._rows_revision + 1)
        expected = before.revision if before else 0
        if after is not None:
            await self._store.put(after, expected=expected)
        elif before is not None and not await self._store.delete(
            before.kind, before.id, expected=expected
        ):
            raise refusals.changed_meanwhile()
        lagging = await self._publish(compiled)
        self.audit.written(action, actor=actor, before=before, after=after)
        return lagging

    async def _rows(self) -> Sequence[StoredResource]:
        self._rows_revision = await self._store.revision()
        return await self._store.all()

    def _compile(self, rows: Sequence[StoredResource], revision: int) -> Compiled:
        return compile_snapshot(
            rows,
            self._adapters,
            revision=revision,
            taken_at=self._clock.time(),
            seal_key=self._seal_key,
        )

    async def _publish(self, compiled: Compiled) -> int:
        lagging = await self._sink.publish(compiled.snapshot)
        self._snapshot = compiled.snapshot
        self._confirmed_at = self._clock.monotonic()
        for problem in compiled.problems:
            if problem not in self._problems:
                _logger.warning("admin.resource_unusable", extra={"problem": problem})
        self._problems = frozenset(compiled.problems)
        for name in sorted(compiled.unverified - self._unverified):
            _logger.warning(
                "admin.tls_not_verified",
                extra={
                    "provider_key": name,
                    "advice": "tls.verify is false: anyone on the way can read its secret",
                },
            )
        self._unverified = compiled.unverified
        return lagging

    # ── inside the views ────────────────────────────────────────────────────────────────────────

    def _present(self, row: StoredResource) -> Entry:
        entry = rules.present(row)
        if row.kind == PROVIDER_KEYS:
            entry["credential"] = self._credential(row)
        return entry

    def _credential(self, row: StoredResource) -> Entry | None:
        """None when the stored secret cannot be used."""
        adapter = self._adapters.get(row.doc.get("adapter", ""))
        if adapter is None or row.secret is None:
            return None
        try:
            credential = adapter.parse_secret(row.secret)
        except FieldError:
            return None
        if isinstance(credential, ResourceKey):
            return rules.present_credential(credential, TokenState())
        return rules.present_credential(credential, self._tokens.state(credential))

    def _aliases(self) -> Iterator[Alias]:
        if self._snapshot is not None:
            yield from self._snapshot.aliases.values()
            yield from self._snapshot.wildcards

    def _level(self, alias: Alias) -> int:
        if alias.deployment.fault is not None:
            return _UNHEALTHY
        return self._health.level(alias.name)

    def _model_status(self, alias: Alias) -> Entry:
        status: Entry = {
            "id": alias.id,
            "display_name": alias.name,
            "kind": "direct",
            "status": "unhealthy" if self._level(alias) >= _UNHEALTHY else "healthy",
        }
        failure = self._health.last_failure(alias.name)
        if failure is not None:
            at, reason = failure
            status["last_checked_at"] = rules.render_time(at)
            status["last_check_status"] = "failed"
            status["status_reason"] = reason
        if alias.deployment.fault is not None:
            status["status_reason"] = alias.deployment.fault.reason
        return status

    async def _snapshot_age_s(self) -> float | None:
        """Seconds since the snapshot was last known to be the store's newest state.

        Asking confirms it: a gateway whose resources nobody changes is not stale.
        """
        if self._snapshot is None:
            return None
        try:
            # a write under way is waited for: between commit and publication the two differ
            async with self._lock:
                newest = await self._store.revision()
        except StoreUnavailable:
            newest = None
        now = self._clock.monotonic()
        if newest == self._snapshot.revision:
            self._confirmed_at = now
        return now - self._confirmed_at


@contextmanager
def _store_errors() -> Iterator[None]:
    """What the store raises, as refusals."""
    try:
        yield
    except StoreUnavailable as error:
        _logger.error("admin.store_failed", extra={"error": str(error)})
        raise refusals.store_failed(str(error)) from error
    except StoreConflict as error:
        raise refusals.name_taken(str(error)) from error
    except StaleRevision as error:
        raise refusals.changed_meanwhile() from error


def _find(
    rows: Sequence[StoredResource], kind: str, id: str, *, if_match: Revisions
) -> StoredResource:
    for row in rows:
        if row.kind == kind and row.id == id:
            if if_match is not None and row.revision not in if_match:
                raise refusals.stale(row.revision)
            return row
    raise refusals.not_found()


def _check_unused(provider_key_id: str, rows: Sequence[StoredResource]) -> None:
    users = [
        row.name
        for row in rows
        if row.kind == MODELS and row.doc.get("provider_key_id") == provider_key_id
    ]
    if users:
        raise refusals.in_use(users)


def _next(before: StoredResource, draft: rules.Draft) -> StoredResource:
    return replace(
        before,
        name=draft.name,
        revision=before.revision + 1,
        doc=draft.doc,
        secret=draft.secret,
        header_values=draft.header_values,
        fault=None,
    )


def _with_change(
    rows: Sequence[StoredResource], before: StoredResource | None, after: StoredResource | None
) -> Sequence[StoredResource]:
    """The rows as they will be."""
    if before is None:
        return [*rows, after] if after else rows
    changed = [after if row is before else row for row in rows]
    return [row for row in changed if row is not None]
