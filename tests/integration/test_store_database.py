"""The SQLite file as an operator meets it: modes, crashes, damage, upgrades, wrong keys."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aisix.core.ports import StoredResource, StoreUnavailable
from aisix.store.cipher import Cipher, unlock
from aisix.store.database import Database, Migration, describe, load_migrations
from aisix.store.resources import SqliteResourceStore

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


@asynccontextmanager
async def opened(path: Path, **options):
    database = await Database.open(path, **options)
    try:
        yield database
    finally:
        await database.close()


def row(id: str = "1", secret: str | None = "the-secret") -> StoredResource:
    return StoredResource(
        kind="provider_keys", id=id, name=f"name-{id}", revision=1, doc={"a": 1}, secret=secret
    )


async def fill(path: Path, *, key: bytes | None = KEY, count: int = 1) -> None:
    async with opened(path) as database:
        store = SqliteResourceStore(database, (await unlock(database, key=key)).cipher)
        for number in range(count):
            await store.put(row(str(number)), expected=0)


@pytest.mark.gen_test
async def test_folder_and_files_are_for_the_owner_only(tmp_path):
    path = tmp_path / "a" / "b" / "aisix.db"
    async with opened(path) as database:
        await unlock(database, key=None)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["aisix.db", "aisix.db-wal", "aisix.db-shm", "aisix.db.key"], 0o600
    )
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.gen_test
async def test_the_file_is_in_wal_mode_and_synced_in_full(tmp_path):
    async with opened(tmp_path / "aisix.db") as database, database.writing() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2)):
            cursor = await connection.execute(f"PRAGMA {pragma}")
            assert (await cursor.fetchone())[0] == value


@pytest.mark.gen_test
async def test_what_was_written_is_there_after_reopening(tmp_path):
    await fill(tmp_path / "aisix.db", count=3)
    async with opened(tmp_path / "aisix.db") as database:
        store = SqliteResourceStore(database, (await unlock(database, key=KEY)).cipher)
        assert [found.secret for found in await store.all()] == ["the-secret"] * 3
        assert await store.revision() == 3


@pytest.mark.gen_test
async def test_a_killed_process_loses_nothing_it_had_confirmed(tmp_path):
    """SIGKILL right after the confirmation: no close, no checkpoint."""
    program = """
import asyncio, sys
from aisix.core.ports import StoredResource
from aisix.store.cipher import Cipher
from aisix.store.database import Database
from aisix.store.resources import SqliteResourceStore

async def main():
    store = SqliteResourceStore(await Database.open(sys.argv[1]), Cipher(bytes(32)))
    for n in range(1000):
        row = StoredResource(kind="models", id=str(n), name=str(n), revision=1, doc={})
        await store.put(row, expected=0)
        print(n, flush=True)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "aisix.db"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(20):
        await process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).splitlines()
    await process.wait()
    confirmed = 20 + len(rest)
    async with opened(tmp_path / "aisix.db") as database:
        store = SqliteResourceStore(database, Cipher(bytes(32)))
        assert len(await store.all()) in (confirmed, confirmed + 1)


@pytest.mark.gen_test
async def test_a_failed_write_changes_nothing(tmp_path):
    async with opened(tmp_path / "aisix.db") as database:
        with pytest.raises(RuntimeError):
            async with database.writing() as connection:
                await connection.execute("UPDATE meta SET value = 77")
                raise RuntimeError("on the way")
        assert (await database.rows("SELECT value FROM meta"))[0][0] == 0
        async with database.writing() as connection:
            await connection.execute("UPDATE meta SET value = 1")
        assert (await database.rows("SELECT value FROM meta"))[0][0] == 1


@pytest.mark.gen_test
async def test_a_cancelled_write_is_rolled_back_and_the_next_one_runs(tmp_path):
    async with opened(tmp_path / "aisix.db") as database:
        inside = asyncio.Event()

        async def write() -> None:
            async with database.writing() as connection:
                await connection.execute("UPDATE meta SET value = 77")
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(write())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.writing() as connection:
            await connection.execute("UPDATE meta SET value = value + 1")
        assert (await database.rows("SELECT value FROM meta"))[0][0] == 1


@pytest.mark.gen_test
async def test_the_reader_cannot_write(tmp_path):
    async with opened(tmp_path / "aisix.db") as database:
        with pytest.raises(StoreUnavailable, match="read-only"):
            await database.rows("UPDATE meta SET value = 9")


@pytest.mark.gen_test
async def test_closing_twice_is_harmless_and_use_afterwards_is_named(tmp_path):
    database = await Database.open(tmp_path / "aisix.db")
    await asyncio.gather(database.close(), database.close())
    await database.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await database.rows("SELECT 1")
    with pytest.raises(StoreUnavailable, match="closed"):
        async with database.writing():
            pass
    assert not (tmp_path / "aisix.db-wal").exists()


# ── files that cannot be used ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", [b"this is no database\n" * 100, b"\x00" * 8192])
@pytest.mark.gen_test
async def test_a_file_that_is_no_database_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "aisix.db"
    path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match=r"aisix\.db.*not an SQLite database.*backup"):
        await Database.open(path)
    assert path.read_bytes() == content


@pytest.mark.gen_test
async def test_a_damaged_page_is_found_at_start(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path, count=200)
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match=r"damaged.*backup"):
        await Database.open(path)


@pytest.mark.gen_test
async def test_a_cut_file_is_found_at_start(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path, count=200)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(StoreUnavailable, match=r"damaged.*backup"):
        await Database.open(path)


@pytest.mark.gen_test
async def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match=r"cannot be opened for writing: .*file"):
        await Database.open(tmp_path / "file" / "aisix.db")


@pytest.mark.gen_test
async def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(StoreUnavailable, match="Is a directory"):
        await Database.open(tmp_path)


def test_a_read_only_folder_is_named_for_new_and_for_existing_files():
    """In a process of its own, because root, who runs containers and CI, can write everywhere."""
    program = """
import asyncio, os, sys
from aisix.core.ports import StoreUnavailable
from aisix.store.database import Database

if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
for name in ("new.db", "sub/new.db", "old.db"):
    try:
        asyncio.run(Database.open(sys.argv[1] + "/" + name))
    except StoreUnavailable as error:
        print(name, error)
"""
    # not tmp_path: its parents are closed to other users
    with tempfile.TemporaryDirectory() as folder:
        existing = sqlite3.connect(Path(folder) / "old.db")
        existing.execute("CREATE TABLE t (a)")
        existing.close()
        (Path(folder) / "old.db").chmod(0o666)
        Path(folder).chmod(0o555)
        result = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
        )
        Path(folder).chmod(0o700)
    new, sub, old = result.stdout.splitlines()
    assert "cannot be opened for writing: Permission denied" in new
    assert "cannot be opened for writing: Permission denied" in sub
    assert "old.db: it " in old
    assert "folder" in old


@pytest.mark.gen_test
async def test_a_full_disk_is_named_and_changes_nothing(tmp_path):
    """A file size limit stands for the full disk."""
    async with opened(tmp_path / "aisix.db") as database:
        store = SqliteResourceStore(database, Cipher(KEY))
        await store.put(row("0"), expected=0)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = (tmp_path / "aisix.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(StoreUnavailable, match=r"disk|full"):
                await store.put(row("1", secret="x" * 100_000), expected=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [found.id for found in await store.all()] == ["0"]
        await store.put(row("2"), expected=0)
        assert [found.id for found in await store.all()] == ["0", "2"]


@pytest.mark.gen_test
async def test_a_lock_held_by_another_process_is_named(tmp_path):
    async with opened(tmp_path / "aisix.db", busy_timeout_s=0.05) as database:
        other = sqlite3.connect(tmp_path / "aisix.db", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                async with database.writing():
                    pass
            other.execute("COMMIT")
        finally:
            other.close()
        async with database.writing():
            pass


def test_an_error_without_a_code_still_says_what_it_was():
    assert describe(sqlite3.ProgrammingError("what happened")) == "ProgrammingError: what happened"


# ── migrations ──────────────────────────────────────────────────────────────────────────────────

EXTRA = Migration(2, "0002_extra", "CREATE TABLE extra (a);\nINSERT INTO extra VALUES (';');\n")


def test_migrations_are_numbered_without_a_gap():
    numbers = [migration.number for migration in load_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.gen_test
async def test_a_new_migration_is_applied_once_and_rows_stay(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path)
    for _ in range(2):
        async with opened(path, migrations=[*load_migrations(), EXTRA]) as database:
            assert len(await database.rows("SELECT * FROM extra")) == 1
            assert len(await database.rows("SELECT * FROM resources")) == 1


@pytest.mark.gen_test
async def test_an_older_program_refuses_a_newer_database(tmp_path):
    path = tmp_path / "aisix.db"
    async with opened(path, migrations=[*load_migrations(), EXTRA]):
        pass
    with pytest.raises(StoreUnavailable, match=r"newer version.*0002_extra"):
        await Database.open(path)


@pytest.mark.gen_test
async def test_an_altered_migration_is_refused(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path)
    first = load_migrations()[0]
    altered = Migration(first.number, first.name, first.sql + "-- changed\n")
    with pytest.raises(StoreUnavailable, match=r"0001_initial was altered"):
        await Database.open(path, migrations=[altered])


@pytest.mark.gen_test
async def test_a_failing_migration_leaves_the_database_as_it_was(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path)
    broken = Migration(2, "0002_broken", "CREATE TABLE half (a);\nSELECT * FROM nowhere;\n")
    with pytest.raises(StoreUnavailable, match="nowhere"):
        await Database.open(path, migrations=[*load_migrations(), broken])
    async with opened(path) as database:
        assert await database.rows("SELECT 1 FROM sqlite_master WHERE name = 'half'") == []


# ── the sealing key ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_the_first_start_makes_a_key_file_and_says_so(tmp_path):
    path = tmp_path / "aisix.db"
    async with opened(path) as database:
        first = await unlock(database, key=None)
        assert first.created
        assert first.key_file == tmp_path / "aisix.db.key"
        exposed = []
        for mode in (0o600, 0o644, 0o600):
            (tmp_path / "aisix.db.key").chmod(mode)
            exposed.append(first.exposed)
        assert exposed == [False, True, False], "others could open every secret"
        again = await unlock(database, key=None)
        assert not again.created
    sealed = first.cipher.seal("s", kind="k", id="1")
    assert again.cipher.open(sealed, kind="k", id="1") == "s"


@pytest.mark.gen_test
async def test_a_configured_key_makes_no_file(tmp_path):
    async with opened(tmp_path / "aisix.db") as database:
        unlocked = await unlock(database, key=KEY)
    assert (unlocked.key_file, unlocked.created) == (None, False)
    assert not (tmp_path / "aisix.db.key").exists()


@pytest.mark.gen_test
async def test_no_secret_is_readable_in_the_file(tmp_path):
    await fill(tmp_path / "aisix.db")
    assert b"the-secret" not in (tmp_path / "aisix.db").read_bytes()


@pytest.mark.gen_test
async def test_no_value_of_a_header_is_readable_in_the_file(tmp_path):
    path = tmp_path / "aisix.db"
    async with opened(path) as database:
        store = SqliteResourceStore(database, (await unlock(database, key=KEY)).cipher)
        await store.put(replace(row(), header_values={"x-a": "front-door-key"}), expected=0)
    assert b"front-door-key" not in path.read_bytes()


@pytest.mark.gen_test
async def test_a_wrong_key_stops_the_start_and_changes_nothing(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path)
    before = path.read_bytes()
    async with opened(path) as database:
        with pytest.raises(StoreUnavailable, match=r"store\.encryption_key is not the one"):
            await unlock(database, key=OTHER_KEY)
    assert path.read_bytes() == before
    async with opened(path) as database:
        await unlock(database, key=KEY)


@pytest.mark.gen_test
async def test_a_missing_key_file_stops_the_start_while_secrets_are_sealed(tmp_path):
    path, key_file = tmp_path / "aisix.db", tmp_path / "aisix.db.key"
    await fill(path, key=None)
    kept = key_file.read_bytes()
    key_file.unlink()
    async with opened(path) as database:
        with pytest.raises(StoreUnavailable, match=r"key file .* is missing"):
            await unlock(database, key=None)
        assert not key_file.exists()
        key_file.write_bytes(kept)
        await unlock(database, key=None)


@pytest.mark.gen_test
async def test_a_missing_key_file_is_made_anew_while_nothing_is_sealed(tmp_path):
    path, key_file = tmp_path / "aisix.db", tmp_path / "aisix.db.key"
    await fill(path, key=None, count=0)
    key_file.unlink()
    async with opened(path) as database:
        assert (await unlock(database, key=None)).created
        assert not (await unlock(database, key=None)).created


@pytest.mark.parametrize("content", ["", "nonsense", "ü"])
@pytest.mark.gen_test
async def test_a_damaged_key_file_is_named_and_kept(content, tmp_path):
    path, key_file = tmp_path / "aisix.db", tmp_path / "aisix.db.key"
    key_file.write_text(content, "utf-8")
    async with opened(path) as database:
        with pytest.raises(StoreUnavailable, match=r"key file .*aisix\.db\.key"):
            await unlock(database, key=None)
    assert key_file.read_text("utf-8") == content


@pytest.mark.gen_test
async def test_a_key_file_that_cannot_be_written_is_named(tmp_path):
    path, key_file = tmp_path / "aisix.db", tmp_path / "aisix.db.key"
    key_file.symlink_to(tmp_path / "nowhere" / "key")
    async with opened(path) as database:
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await unlock(database, key=None)


@pytest.mark.gen_test
async def test_sealed_secrets_without_their_proof_are_damage(tmp_path):
    path = tmp_path / "aisix.db"
    await fill(path)
    async with opened(path) as database:
        async with database.writing() as connection:
            await connection.execute("DELETE FROM meta WHERE name = 'canary'")
        with pytest.raises(StoreUnavailable, match=r"no proof of their key"):
            await unlock(database, key=KEY)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE resources SET doc = '{' WHERE id = '0'", "document is damaged"),
        ("UPDATE resources SET doc = '[]' WHERE id = '0'", "document is damaged"),
        ("UPDATE resources SET secret = x'01' WHERE id = '0'", "does not open"),
        (
            "UPDATE resources SET secret = (SELECT secret FROM resources WHERE id = '1')"
            " WHERE id = '0'",
            "does not open",
        ),
    ],
)
@pytest.mark.gen_test
async def test_one_damaged_row_is_named_and_hides_no_other(change, fault, tmp_path):
    async with opened(tmp_path / "aisix.db") as database:
        store = SqliteResourceStore(database, Cipher(KEY))
        await store.put(row("0"), expected=0)
        await store.put(row("1"), expected=0)
        async with database.writing() as connection:
            await connection.execute(change)
        damaged, good = await store.all()
        assert damaged.fault is not None
        assert fault in damaged.fault
        assert (good.secret, good.fault) == ("the-secret", None)
