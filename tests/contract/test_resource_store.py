"""What every ResourceStore does: SQLite, and the one in memory that other tests stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aisix.core.ports import ResourceStore, StaleRevision, StoreConflict, StoredResource
from aisix.store.cipher import Cipher
from aisix.store.database import Database
from aisix.store.resources import SqliteResourceStore
from tests.support.control import MemoryStore


@asynccontextmanager
async def opened(form: str, folder: Path) -> AsyncIterator[ResourceStore]:
    if form == "memory":
        yield MemoryStore()
        return
    database = await Database.open(folder / "aisix.db")
    try:
        yield SqliteResourceStore(database, Cipher(bytes(32)))
    finally:
        await database.close()


def row(**fields: Any) -> StoredResource:
    plain = StoredResource(
        kind="models",
        id="1",
        name="one",
        revision=1,
        doc={"display_name": "one", "n": [1, {"ü": None}]},
        secret="s3cret",
        created_at=12.5,
    )
    return replace(plain, **fields)


pytestmark = pytest.mark.parametrize("form", ["sqlite", "memory"])


@pytest.mark.gen_test
async def test_a_row_comes_back_as_it_was_put(form, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=0)
        assert await store.get("models", "1") == row()
        assert await store.get("models", "2") is None
        assert await store.get("apikeys", "1") is None


@pytest.mark.gen_test
async def test_rows_are_listed_oldest_first_and_by_kind(form, tmp_path):
    async with opened(form, tmp_path) as store:
        for id, kind in (("b", "models"), ("c", "apikeys"), ("a", "models")):
            await store.put(row(id=id, name=id, kind=kind), expected=0)
        await store.put(row(id="b", name="b", revision=2), expected=1)
        assert [found.id for found in await store.all()] == ["b", "c", "a"]
        assert [found.id for found in await store.list("models")] == ["b", "a"]


@pytest.mark.gen_test
async def test_a_replaced_row_keeps_its_creation_time(form, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=0)
        changed = row(revision=2, name="two", secret=None, doc={}, created_at=99.0)
        await store.put(changed, expected=1)
        assert await store.get("models", "1") == replace(changed, created_at=12.5)


@pytest.mark.gen_test
async def test_a_name_is_taken_within_its_kind_only(form, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=0)
        await store.put(row(kind="apikeys"), expected=0)
        await store.put(row(id="2", name="two"), expected=0)
        with pytest.raises(StoreConflict, match="one"):
            await store.put(row(id="3"), expected=0)
        with pytest.raises(StoreConflict, match="one"):
            await store.put(row(id="2", revision=2), expected=1)
        assert (await store.get("models", "2")) == row(id="2", name="two")


@pytest.mark.parametrize("expected", [1, 2, 7])
@pytest.mark.gen_test
async def test_an_insert_that_expects_a_row_is_stale(form, expected, tmp_path):
    async with opened(form, tmp_path) as store:
        with pytest.raises(StaleRevision):
            await store.put(row(), expected=expected)
        assert await store.all() == []


@pytest.mark.parametrize("expected", [0, 2])
@pytest.mark.gen_test
async def test_a_write_over_another_revision_is_stale(form, expected, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=0)
        with pytest.raises(StaleRevision):
            await store.put(row(revision=2, name="late"), expected=expected)
        with pytest.raises(StaleRevision):
            await store.delete("models", "1", expected=expected + 5)
        assert await store.all() == [row()]


@pytest.mark.gen_test
async def test_without_expectation_the_last_write_wins(form, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=None)
        await store.put(row(revision=5, name="five"), expected=None)
        assert (await store.all())[0].revision == 5
        assert await store.delete("models", "1", expected=None)
        assert await store.all() == []


@pytest.mark.gen_test
async def test_deleting_tells_whether_there_was_a_row(form, tmp_path):
    async with opened(form, tmp_path) as store:
        await store.put(row(), expected=0)
        assert await store.delete("models", "1", expected=1) is True
        assert await store.delete("models", "1", expected=1) is False


@pytest.mark.gen_test
async def test_the_revision_grows_with_writes_and_only_with_them(form, tmp_path):
    async with opened(form, tmp_path) as store:
        seen = [await store.revision()]
        await store.put(row(), expected=0)
        seen.append(await store.revision())
        await store.all()
        with pytest.raises(StaleRevision):
            await store.put(row(), expected=9)
        assert await store.revision() == seen[-1]
        await store.delete("models", "1", expected=None)
        seen.append(await store.revision())
        assert await store.delete("models", "1", expected=None) is False
        assert await store.revision() == seen[-1]
        assert seen == [0, 1, 2]


@pytest.mark.gen_test
async def test_values_of_headers_are_kept_with_the_secret(form, tmp_path):
    async with opened(form, tmp_path) as store:
        written = row(header_values={"x-a": "one", "x-b": 'tw"o'})
        await store.put(written, expected=0)
        assert await store.get("models", "1") == written
        odd = row(id="2", name="two", secret="\0packed:no JSON")
        await store.put(odd, expected=0)
        assert await store.get("models", "2") == odd
        await store.put(row(revision=2), expected=1)
        assert await store.get("models", "1") == row(revision=2)
