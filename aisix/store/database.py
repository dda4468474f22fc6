"""The SQLite file: one writer, one reader, migrations, and the door that translates its errors.

I/O, the only place with cursors and pragmas. WAL lets the reader work beside the writer;
`synchronous=FULL` means that a committed transaction has been fsynced when the call returns. All
writes go through one connection under one lock, each in its own BEGIN IMMEDIATE. Whatever SQLite
raises leaves as StoreUnavailable with a text that names the cause and the remedy.

A cancelled writer is rolled back unless its COMMIT was already under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite

from aisix.core.ports import StoreUnavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 5.0

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "it is read-only; check owner and mode of the file and its folder",
    sqlite3.SQLITE_PERM: "permission denied; check owner and mode of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; the folder must exist and be writable",
    sqlite3.SQLITE_BUSY: "it is locked by another process; does a second gateway use this file?",
    sqlite3.SQLITE_LOCKED: "it is locked by another process; does a second gateway use this file?",
    sqlite3.SQLITE_IOERR: "the disk reports an I/O error (is it full, or gone?)",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database, or damaged; restore a backup",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a backup",
}
"""SQLite's primary result codes in an operator's words."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered script; its checksum is kept so that a later change of the script is noticed."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the script."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self) -> Iterator[str]:
        """The script's statements one by one, so that they can run in one transaction."""
        pending = ""
        for line in self.sql.splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                yield pending
                pending = ""


def load_migrations(folder: Path = _MIGRATIONS) -> tuple[Migration, ...]:
    """The scripts of `folder` (`0001_name.sql`), in order."""
    return tuple(
        Migration(int(path.name[:4]), path.stem, path.read_text("utf-8"))
        for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    )


class Database:
    """An open database file. Made by `open`; `close` is idempotent."""

    def __init__(
        self, path: Path, *, writer: aiosqlite.Connection, reader: aiosqlite.Connection
    ) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._lock = asyncio.Lock()
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        migrations: Sequence[Migration] | None = None,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Database:
        """Open or make the file, check it, and bring its schema up to date.

        `busy_timeout_s` is how long a lock of another process is waited for.

        Missing folders are made with mode 0700, the file with 0600. Raises StoreUnavailable;
        nothing is overwritten then.
        """
        known = load_migrations() if migrations is None else migrations
        path = _make_file(path)
        with _translated(path):
            writer = await _connect(path, busy_timeout_s)
            try:
                await _prepare(writer, path)
                await _migrate(writer, path, known=known)
                reader = await _connect(path, busy_timeout_s)
                await reader.execute("PRAGMA query_only=ON")
            except BaseException:
                await writer.close()
                raise
        return cls(path, writer=writer, reader=reader)

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query. Raises StoreUnavailable."""
        self._check_open()
        with _translated(self.path):
            async with self._reader.execute(sql, parameters) as cursor:
                return list(await cursor.fetchall())

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[aiosqlite.Connection]:
        """One write transaction: committed when the block ends, rolled back when it raises."""
        async with self._lock:
            self._check_open()
            with _translated(self.path):
                async with _transaction(self._writer):
                    yield self._writer

    async def close(self) -> None:
        """Wait for the write under way, then close both connections."""
        async with self._lock:
            if self._closed:
                return
            self._closed = True
            await self._reader.close()
            await self._writer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"database {self.path} is closed")


@asynccontextmanager
async def _transaction(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    await connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        await connection.execute("COMMIT")
    except BaseException:
        # does nothing when SQLite has ended the transaction itself (a full disk does that)
        await connection.rollback()
        raise


async def _connect(path: Path, busy_timeout_s: float) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None, timeout=busy_timeout_s)
    connection.row_factory = aiosqlite.Row
    return connection


async def _prepare(connection: aiosqlite.Connection, path: Path) -> None:
    await connection.execute("PRAGMA journal_mode=WAL")
    await connection.execute("PRAGMA synchronous=FULL")
    async with connection.execute("PRAGMA quick_check(1)") as cursor:
        row = await cursor.fetchone()
    if row is None or row[0] != "ok":
        raise StoreUnavailable(f"database {path}: {_CAUSES[sqlite3.SQLITE_CORRUPT]}")


async def _migrate(
    connection: aiosqlite.Connection, path: Path, *, known: Sequence[Migration]
) -> None:
    async with _transaction(connection):
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL,"
            " checksum TEXT NOT NULL, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
        )
        async with connection.execute("SELECT number, name, checksum FROM migrations") as cursor:
            applied = {row["number"]: row for row in await cursor.fetchall()}
        _check_applied(path, known=known, applied=applied)
        for migration in known:
            if migration.number in applied:
                continue
            for statement in migration.statements():
                await connection.execute(statement)
            await connection.execute(
                "INSERT INTO migrations (number, name, checksum) VALUES (?, ?, ?)",
                (migration.number, migration.name, migration.checksum),
            )


def _check_applied(
    path: Path, *, known: Sequence[Migration], applied: dict[int, sqlite3.Row]
) -> None:
    """Refuse a database whose history is not ours."""
    ours = {migration.number: migration for migration in known}
    for number, row in sorted(applied.items()):
        migration = ours.get(number)
        if migration is None:
            raise StoreUnavailable(
                f"database {path} was made by a newer version (migration {row['name']} is unknown "
                "here); start that version, or restore a backup from before the upgrade"
            )
        if migration.checksum != row["checksum"]:
            raise StoreUnavailable(
                f"migration {row['name']} was altered after it had been applied to database "
                f"{path}; restore the original script"
            )


def _make_file(given: Path | str) -> Path:
    """Make the folder and the file with owner-only modes; SQLite's side files inherit the mode."""
    path = Path(given).absolute()
    try:
        missing = [folder for folder in path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"database {path} cannot be opened for writing: {error.strerror} ({error.filename})"
        ) from error
    return path


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Let no SQLite exception out."""
    try:
        yield
    except aiosqlite.Error as error:
        raise StoreUnavailable(f"database {path}: {describe(error)}") from error


def describe(error: Exception) -> str:
    """The cause of a SQLite error in an operator's words."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", None)
    if code is None:
        return f"{type(error).__name__}: {error}"
    cause = _CAUSES.get(code & 0xFF)
    return f"{cause} ({name})" if cause else f"{error} ({name})"
