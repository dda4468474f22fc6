"""Resources in SQLite: implements the ResourceStore port over one table.

I/O through `Database`. A write is one transaction that also raises the store's revision; it is on
the disk when the call returns. A row whose document or secret cannot be read is still listed, with
the reason in `fault`, so that one damaged row never hides the others.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

import aiosqlite

from aisix.core.ports import StaleRevision, StoreConflict, StoredResource
from aisix.store.cipher import Cipher, SealBroken
from aisix.store.database import Database

_COLUMNS = "kind, id, name, revision, doc, secret, created_at"
_SELECT = f"SELECT {_COLUMNS} FROM resources"  # noqa: S608 - a constant
_ORDER = " ORDER BY rowid"
_PACKED = "\0packed:"
"""Begins what is sealed when it is more than the secret."""


class SqliteResourceStore:
    """The durable resources of one gateway."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def all(self) -> list[StoredResource]:
        """Every row, oldest first."""
        return [self._load(row) for row in await self._database.rows(_SELECT + _ORDER)]

    async def list(self, kind: str) -> list[StoredResource]:
        """Rows of a kind, oldest first."""
        rows = await self._database.rows(_SELECT + " WHERE kind = ?" + _ORDER, (kind,))
        return [self._load(row) for row in rows]

    async def get(self, kind: str, id: str) -> StoredResource | None:
        """One row."""
        rows = await self._database.rows(_SELECT + " WHERE kind = ? AND id = ?", (kind, id))
        return self._load(rows[0]) if rows else None

    async def put(self, row: StoredResource, *, expected: int | None) -> None:
        """Insert (`expected` 0), replace (its revision), or either (None); a replaced row keeps
        its creation time. Raises StoreConflict, StaleRevision."""
        doc = json.dumps(row.doc, separators=(",", ":"))
        secret = None
        if row.secret is not None:
            text = _pack(row.secret, row.header_values)
            secret = self._cipher.seal(text, kind=row.kind, id=row.id)
        async with self._database.writing() as connection:
            found = await _revision_of(connection, row.kind, row.id)
            if expected is not None and expected != (found or 0):
                raise StaleRevision(f"{row.kind}/{row.id} has revision {found or 0}")
            try:
                if found is None:
                    await connection.execute(
                        f"INSERT INTO resources ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
                        (row.kind, row.id, row.name, row.revision, doc, secret, row.created_at),
                    )
                else:
                    await connection.execute(
                        "UPDATE resources SET name = ?, revision = ?, doc = ?, secret = ?"
                        " WHERE kind = ? AND id = ?",
                        (row.name, row.revision, doc, secret, row.kind, row.id),
                    )
            except aiosqlite.IntegrityError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                    raise
                raise StoreConflict(row.name) from error
            await _grow(connection)

    async def delete(self, kind: str, id: str, *, expected: int | None) -> bool:
        """Remove; False when there was none. Raises StaleRevision."""
        async with self._database.writing() as connection:
            found = await _revision_of(connection, kind, id)
            if found is None:
                return False
            if expected is not None and expected != found:
                raise StaleRevision(f"{kind}/{id} has revision {found}")
            await connection.execute("DELETE FROM resources WHERE kind = ? AND id = ?", (kind, id))
            await _grow(connection)
            return True

    async def revision(self) -> int:
        """A number that grows with every write."""
        rows = await self._database.rows("SELECT value FROM meta WHERE name = 'revision'")
        return int(rows[0]["value"])

    def _load(self, row: sqlite3.Row) -> StoredResource:
        doc: Any = {}
        secret: str | None = None
        header_values: Mapping[str, str] = {}
        fault: str | None = None
        try:
            doc = json.loads(row["doc"])
        except ValueError:
            fault = "the stored document is damaged"
        if not isinstance(doc, dict):
            doc, fault = {}, "the stored document is damaged"
        if row["secret"] is not None:
            try:
                text = self._cipher.open(row["secret"], kind=row["kind"], id=row["id"])
                secret, header_values = _unpack(text)
            except SealBroken:
                fault = fault or "the stored secret does not open; write it again"
        return StoredResource(
            kind=row["kind"],
            id=row["id"],
            name=row["name"],
            revision=row["revision"],
            doc=doc,
            secret=secret,
            created_at=row["created_at"],
            fault=fault,
            header_values=header_values,
        )


def _pack(secret: str, header_values: Mapping[str, str]) -> str:
    """What is sealed: the secret, and with it what else of the row must not be readable."""
    if not header_values and not secret.startswith(_PACKED):
        return secret
    return _PACKED + json.dumps([secret, dict(header_values)])


def _unpack(text: str) -> tuple[str, Mapping[str, str]]:
    if not text.startswith(_PACKED):
        return text, {}
    secret, header_values = json.loads(text.removeprefix(_PACKED))
    return secret, header_values


async def _revision_of(connection: aiosqlite.Connection, kind: str, id: str) -> int | None:
    query = "SELECT revision FROM resources WHERE kind = ? AND id = ?"
    async with connection.execute(query, (kind, id)) as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else None


async def _grow(connection: aiosqlite.Connection) -> None:
    await connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
