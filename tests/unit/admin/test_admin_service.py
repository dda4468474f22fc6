"""The use cases on doubles: order of effects, races, failing stores, views."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest

from aisix.admin.refusals import Refusal
from aisix.core.ports import StaleRevision, StoreConflict, StoreUnavailable, TokenState
from tests.support.control import AZURE_KEY, MODEL, Control, MemoryStore, make_control

CALLER = {"key": "sk-azure-caller", "allowed_models": ["gpt-4o-azure"]}


async def loaded() -> Control:
    control = make_control()
    await control.service.load()
    return control


async def refused(status: int, awaitable) -> str:
    with pytest.raises(Refusal) as caught:
        await awaitable
    assert caught.value.status == status
    return caught.value.message


@pytest.mark.gen_test
async def test_the_guides_resources_are_effective_when_created():
    control = await loaded()
    key = await control.create("provider_keys", AZURE_KEY)
    assert key["revision"] == 1
    assert key["value"] == {**AZURE_KEY, "secret": "***"}
    await control.create("models", {**MODEL, "provider_key_id": key["id"]})
    await control.create("apikeys", CALLER)
    snapshot = control.holder.current()
    caller = snapshot.keys_by_hash[hashlib.sha256(b"sk-azure-caller").hexdigest()]
    assert caller.allows("gpt-4o-azure")
    assert snapshot.aliases["gpt-4o-azure"].deployment.name == "gpt4o-prod"
    assert snapshot.revision == await control.store.revision() == 3


@pytest.mark.gen_test
async def test_a_provider_key_shows_its_kind_of_credential_and_how_its_tokens_fare():
    control = await loaded()
    plain = await control.create("provider_keys", AZURE_KEY)
    nothing = {"token_expires_at": None, "last_error": None}
    assert plain["credential"] == {"kind": "resource_key", **nothing}
    secret = '{"client_id": "mine"}'
    key = await control.create(
        "provider_keys", {**AZURE_KEY, "display_name": "managed", "secret": secret}
    )
    assert key["credential"] == {"kind": "managed_identity", **nothing}
    control.tokens.states["mine"] = TokenState(1_700_003_600.0, (1_700_000_000.5, "AADSTS70"))
    shown = {
        "kind": "managed_identity",
        "token_expires_at": "2023-11-14T23:13:20.000Z",
        "last_error": {"at": "2023-11-14T22:13:20.500Z", "message": "AADSTS70"},
    }
    assert (await control.service.read("provider_keys", key["id"]))["credential"] == shown
    listed = await control.service.list_all("provider_keys")
    assert [entry["credential"] for entry in listed] == [plain["credential"], shown]
    written = await control.service.replace(
        "provider_keys", key["id"], key["value"], if_match=None, actor="tests"
    )
    assert written.answer["credential"] == shown


@pytest.mark.gen_test
async def test_a_provider_key_whose_secret_cannot_be_used_shows_no_credential():
    control = await loaded()
    key = await control.create("provider_keys", AZURE_KEY)
    control.adapter.refused.add(AZURE_KEY["secret"])
    assert (await control.service.read("provider_keys", key["id"]))["credential"] is None
    control.store.rows["provider_keys", key["id"]] = replace(
        control.store.rows["provider_keys", key["id"]], secret=None
    )
    assert (await control.service.read("provider_keys", key["id"]))["credential"] is None


@pytest.mark.gen_test
async def test_loading_publishes_what_is_stored():
    first = await loaded()
    await first.create_model()
    second = make_control(first.store)
    assert not second.holder.loaded
    await second.service.load()
    assert list(second.holder.current().aliases) == ["gpt-4o-azure"]


@pytest.mark.logs("admin.store_failed")
@pytest.mark.gen_test
async def test_a_failed_write_publishes_nothing():
    class FullDisk(MemoryStore):
        async def put(self, row, *, expected):
            raise StoreUnavailable("the disk is full")

    control = make_control(FullDisk())
    await control.service.load()
    published = control.holder.current()
    said = await refused(500, control.create("apikeys", CALLER))
    assert said == "store error: the disk is full"
    assert control.holder.current() is published


@pytest.mark.logs("admin.store_failed")
@pytest.mark.gen_test
async def test_a_store_that_fails_is_a_500_with_its_cause():
    control = await loaded()
    control.store.fail_with = "locked"
    assert await refused(500, control.service.list_all("models")) == "store error: locked"
    await refused(500, control.service.read("models", "1"))
    await refused(500, control.create("apikeys", CALLER))


@pytest.mark.gen_test
async def test_names_are_unique_within_a_kind_also_when_created_at_once():
    control = await loaded()
    results = await asyncio.gather(
        *(control.create("provider_keys", AZURE_KEY) for _ in range(10)), return_exceptions=True
    )
    refusals = [result for result in results if isinstance(result, Refusal)]
    assert len(refusals) == 9
    assert {refusal.message for refusal in refusals} == {
        'name "azure-prod" already in use by another resource'
    }
    await control.create_model(display_name="azure-prod")


@pytest.mark.gen_test
async def test_a_key_that_exists_in_any_spelling_is_refused():
    control = await loaded()
    await control.create("apikeys", CALLER)
    digest = hashlib.sha256(b"sk-azure-caller").hexdigest()
    body = {"key_hash": digest.upper(), "allowed_models": []}
    assert digest in await refused(409, control.create("apikeys", body))


@pytest.mark.gen_test
async def test_a_replace_is_whole_and_raises_the_revision():
    control = await loaded()
    entry = await control.create_model(timeout=5, rate_limit={"rpm": 1})
    body = {name: value for name, value in entry["value"].items() if name != "timeout"}
    again, _ = await control.service.replace(
        "models", entry["id"], {**body, "model_name": "other"}, if_match=None, actor="t"
    )
    assert (again["id"], again["revision"]) == (entry["id"], 2)
    assert again["value"] == {**body, "model_name": "other"}
    assert control.holder.current().aliases["gpt-4o-azure"].deployment.name == "other"
    assert control.holder.current().aliases["gpt-4o-azure"].timeout_s is None


@pytest.mark.gen_test
async def test_what_a_read_shows_can_be_put_back_unchanged():
    control = await loaded()
    await control.create_model(rate_limit={"rpm": 1})
    body = {**CALLER, "disabled": False, "expires_at": "2030-01-01T00:00:00Z"}
    await control.create("apikeys", {**body, "rate_limit": {"tpm": 5}, "display_name": "d"})
    for kind in ("provider_keys", "models", "apikeys"):
        (entry,) = await control.service.list_all(kind)
        again, _ = await control.service.replace(
            kind, entry["id"], entry["value"], if_match=None, actor="t"
        )
        assert again == {**entry, "revision": 2}
    (row,) = await control.store.list("provider_keys")
    assert row.secret == AZURE_KEY["secret"]


@pytest.mark.gen_test
async def test_a_shaped_key_shows_no_header_value_and_can_be_put_back():
    control = await loaded()
    request = {"default_headers": {"x-front-door": "front-door-key"}, "param_renames": {"a": "b"}}
    shown = {**request, "default_headers": {"x-front-door": "***"}}
    made = await control.create("provider_keys", {**AZURE_KEY, "request": request})
    assert made["value"] == {**AZURE_KEY, "secret": "***", "request": shown}
    await control.create("models", {**MODEL, "provider_key_id": made["id"]})
    again, _ = await control.service.replace(
        "provider_keys", made["id"], made["value"], if_match=None, actor="t"
    )
    assert again == {**made, "revision": 2}
    shaping = control.holder.current().aliases["gpt-4o-azure"].deployment.shaping
    assert shaping is not None
    assert shaping.default_headers == (("x-front-door", "front-door-key"),)


@pytest.mark.logs("admin.tls_not_verified")
@pytest.mark.gen_test
async def test_a_key_that_trusts_anyone_is_warned_of_once(caplog):
    control = await loaded()
    await control.create("provider_keys", {**AZURE_KEY, "tls": {"verify": False}})
    await control.create("apikeys", CALLER)
    said = [record for record in caplog.records if record.msg == "admin.tls_not_verified"]
    assert [record.__dict__["provider_key"] for record in said] == ["azure-prod"]


@pytest.mark.gen_test
async def test_the_order_of_a_replace_is_lookup_then_precondition_then_body():
    control = await loaded()
    entry = await control.create_model()
    broken = {"nonsense": 1}
    put = control.service.replace
    await refused(404, put("models", "none", broken, if_match={9}, actor="t"))
    said = await refused(412, put("models", entry["id"], broken, if_match={9}, actor="t"))
    assert "revision 1" in said
    await refused(400, put("models", entry["id"], broken, if_match={9, 1}, actor="t"))
    await refused(404, control.service.read("models", "none"))


@pytest.mark.gen_test
async def test_a_provider_key_in_use_cannot_be_deleted():
    control = await loaded()
    model = await control.create_model()
    key_id = model["value"]["provider_key_id"]
    delete = control.service.delete
    said = await refused(409, delete("provider_keys", key_id, if_match=None, actor="t"))
    assert '"gpt-4o-azure"' in said
    await refused(412, delete("models", model["id"], if_match={2}, actor="t"))
    gone, _ = await delete("models", model["id"], if_match={1}, actor="t")
    assert gone == {"deleted": True, "id": model["id"]}
    await delete("provider_keys", key_id, if_match=None, actor="t")
    assert control.holder.current().aliases == {}
    await refused(404, delete("models", model["id"], if_match=None, actor="t"))


@pytest.mark.gen_test
async def test_a_model_may_not_be_moved_to_a_provider_key_that_does_not_exist():
    control = await loaded()
    model = await control.create_model()
    body = {**model["value"], "provider_key_id": "none"}
    said = await refused(
        400, control.service.replace("models", model["id"], body, if_match=None, actor="t")
    )
    assert "/provider_key_id" in said


@pytest.mark.gen_test
async def test_a_rotation_ends_the_old_key_at_once():
    control = await loaded()
    entry = await control.create("apikeys", CALLER)
    rotated, _ = await control.service.rotate(entry["id"], None, if_match=None, actor="t")
    assert rotated["plaintext"].startswith("sk-")
    assert len(rotated["plaintext"]) == 35
    digest = hashlib.sha256(rotated["plaintext"].encode()).hexdigest()
    assert rotated["entry"]["value"] == {**entry["value"], "key_hash": digest}
    assert rotated["entry"]["revision"] == 2
    assert list(control.holder.current().keys_by_hash) == [digest]


@pytest.mark.gen_test
async def test_a_rotation_with_grace_keeps_the_old_key_that_long():
    control = await loaded()
    entry = await control.create("apikeys", CALLER)
    old = entry["value"]["key_hash"]
    await control.service.rotate(entry["id"], {"grace_seconds": 60}, if_match={1}, actor="t")
    keys = control.holder.current().keys_by_hash
    assert keys[old].id == entry["id"]
    assert keys[old].expires_at == control.clock.time() + 60
    said = await refused(409, control.create("apikeys", CALLER))
    assert old in said
    control.clock.now += 61
    await control.create("apikeys", CALLER)


@pytest.mark.gen_test
async def test_a_rotation_is_checked_like_any_write():
    control = await loaded()
    entry = await control.create("apikeys", CALLER)
    rotate = control.service.rotate
    await refused(404, rotate("none", None, if_match=None, actor="t"))
    await refused(412, rotate(entry["id"], None, if_match={7}, actor="t"))
    await refused(400, rotate(entry["id"], {"grace": 5}, if_match=None, actor="t"))
    await refused(400, rotate(entry["id"], [], if_match=None, actor="t"))


@pytest.mark.gen_test
async def test_concurrent_rotations_leave_one_key_and_distinct_revisions():
    control = await loaded()
    entry = await control.create("apikeys", CALLER)
    rotations = await asyncio.gather(
        *(control.service.rotate(entry["id"], None, if_match=None, actor="t") for _ in range(5))
    )
    assert sorted(rotated["entry"]["revision"] for rotated, _ in rotations) == [2, 3, 4, 5, 6]
    assert len(control.holder.current().keys_by_hash) == 1


@pytest.mark.gen_test
async def test_a_caller_that_leaves_cannot_split_a_write():
    """The row is durable, the caller is cancelled: the snapshot is published all the same."""

    class SlowStore(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.writing, self.go_on = asyncio.Event(), asyncio.Event()

        async def put(self, row, *, expected):
            await super().put(row, expected=expected)
            self.writing.set()
            await self.go_on.wait()

    store = SlowStore()
    control = make_control(store)
    await control.service.load()
    task = asyncio.ensure_future(control.create("apikeys", CALLER))
    await store.writing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.go_on.set()
    await control.service.close()
    assert len(control.holder.current().keys_by_hash) == 1
    await control.service.close()


@pytest.mark.parametrize(
    ("error", "status"), [(StaleRevision("row"), 409), (StoreConflict("name"), 409)]
)
@pytest.mark.gen_test
async def test_another_process_that_was_faster_is_told(error, status):
    class Contended(MemoryStore):
        async def put(self, row, *, expected):
            raise error

    control = make_control(Contended())
    await control.service.load()
    await refused(status, control.create("apikeys", CALLER))


@pytest.mark.gen_test
async def test_every_write_tells_how_many_workers_lag():
    control = await loaded()
    control.sink.lagging = 2
    created = await control.service.create("apikeys", CALLER, actor="t")
    entry = created.answer
    replaced = await control.service.replace(
        "apikeys", entry["id"], entry["value"], if_match=None, actor="t"
    )
    rotated = await control.service.rotate(entry["id"], None, if_match=None, actor="t")
    deleted = await control.service.delete("apikeys", entry["id"], if_match=None, actor="t")
    lagging = [write.lagging_workers for write in (created, replaced, rotated, deleted)]
    assert lagging == [2, 2, 2, 2]


@pytest.mark.gen_test
async def test_a_row_that_another_process_deleted_meanwhile_is_told():
    class Contended(MemoryStore):
        async def delete(self, kind, id, *, expected):
            return False

    control = make_control(Contended())
    await control.service.load()
    entry = await control.create("apikeys", CALLER)
    published = control.holder.current()
    await refused(409, control.service.delete("apikeys", entry["id"], if_match=None, actor="t"))
    assert control.holder.current() is published


# ── damaged rows ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.logs("admin.resource_unusable")
@pytest.mark.gen_test
async def test_an_unusable_row_is_said_once_and_shown_as_unhealthy(caplog):
    control = await loaded()
    model = await control.create_model()
    ((place, row),) = [item for item in control.store.rows.items() if item[0][0] == "provider_keys"]
    control.store.rows[place] = replace(row, secret=None, fault="the stored secret does not open")
    await control.service.load()
    await control.create("apikeys", CALLER)
    said = [record for record in caplog.records if record.msg == "admin.resource_unusable"]
    assert len(said) == 1
    (status,) = control.service.models_status()
    assert (status["id"], status["status"]) == (model["id"], "unhealthy")
    assert status["status_reason"] == "the stored secret does not open"
    assert (await control.service.health())["status"] == "unhealthy"
    body = {**AZURE_KEY, "secret": "mended"}
    await control.service.replace("provider_keys", row.id, body, if_match=None, actor="t")
    assert (await control.service.health())["status"] == "ok"


# ── views ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("levels", "status"),
    [({}, "ok"), ({"a": 1}, "degraded"), ({"a": 2}, "unhealthy"), ({"b*": 2, "a": 1}, "unhealthy")],
)
@pytest.mark.gen_test
async def test_health_is_that_of_the_worst_model(levels, status):
    control = await loaded()
    first = await control.create_model(display_name="a")
    second = await control.create_model(display_name="b*")
    control.health.levels = levels
    health = await control.service.health()
    assert health == {
        "status": status,
        "models": [
            {"id": first["id"], "name": "a", "health": levels.get("a", 0)},
            {"id": second["id"], "name": "b*", "health": levels.get("b*", 0)},
        ],
        "config": {"snapshot_revision": 3, "snapshot_age_seconds": 0},
    }


@pytest.mark.gen_test
async def test_an_idle_gateway_is_not_degraded():
    control = await loaded()
    control.clock.now += 86400
    assert (await control.service.health())["status"] == "ok"


@pytest.mark.gen_test
async def test_a_snapshot_that_cannot_be_confirmed_ages():
    control = await loaded()
    control.store.fail_with = "gone"
    control.clock.now += 300
    assert (await control.service.health())["status"] == "ok"
    control.clock.now += 1
    health = await control.service.health()
    assert health["status"] == "degraded"
    assert health["config"]["snapshot_age_seconds"] == 301


# ── another process on the same store ───────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_what_another_process_wrote_is_taken_over():
    first = await loaded()
    second = make_control(first.store)
    await second.service.load()
    await first.create_model()
    assert second.holder.current().aliases == {}
    assert await second.service.refresh()
    assert list(second.holder.current().aliases) == ["gpt-4o-azure"]
    published = second.holder.current()
    assert not await second.service.refresh()
    assert second.holder.current() is published


@pytest.mark.parametrize("moment", ["all", "revision"])
@pytest.mark.gen_test
async def test_no_write_of_another_process_is_missed_whenever_it_comes(moment):
    class Busy(MemoryStore):
        """After the next call of `moment`, another process writes."""

        busy = False

        async def all(self):
            rows = await super().all()
            return rows if moment != "all" else await self._then(rows)

        async def revision(self):
            number = await super().revision()
            return number if moment != "revision" else await self._then(number)

        async def _then(self, result):
            if self.busy:
                self.busy = False
                await other.create("apikeys", {"key": "sk-other", "allowed_models": []})
            return result

    store = Busy()
    control, other = make_control(store), make_control(store)
    await control.service.load()
    store.busy = True
    await control.create("apikeys", CALLER)
    await control.service.refresh()
    assert len(control.holder.current().keys_by_hash) == 2


@pytest.mark.logs("admin.store_failed")
@pytest.mark.gen_test
async def test_following_outlives_a_store_that_fails_and_says_so_once(caplog):
    first = await loaded()
    second = make_control(first.store)
    await second.service.load()
    following = asyncio.create_task(second.service.follow(every_s=0))
    try:
        first.store.fail_with = "gone"
        for _ in range(50):
            await asyncio.sleep(0)
        first.store.fail_with = None
        await first.create_model()
        async with asyncio.timeout(5):
            while not second.holder.current().aliases:
                await asyncio.sleep(0)
    finally:
        following.cancel()
    assert [r.__dict__["error"] for r in caplog.records if r.msg == "admin.store_failed"] == [
        "gone"
    ]


@pytest.mark.gen_test
@pytest.mark.logs("admin.follow_failed")
async def test_following_outlives_a_bug_and_says_so_once(caplog):
    control = await loaded()
    bug = KeyError("a bug")

    async def broken() -> int:
        raise bug

    whole, control.store.revision = control.store.revision, broken
    following = asyncio.create_task(control.service.follow(every_s=0))
    try:
        for _ in range(50):
            await asyncio.sleep(0)
        assert not following.done()
    finally:
        following.cancel()
        control.store.revision = whole
    assert [r.msg for r in caplog.records].count("admin.follow_failed") == 1


@pytest.mark.gen_test
async def test_before_loading_health_is_degraded():
    health = await make_control().service.health()
    assert health == {
        "status": "degraded",
        "models": [],
        "config": {"snapshot_revision": 0, "snapshot_age_seconds": None},
    }


@pytest.mark.gen_test
async def test_the_status_of_models_tells_the_newest_failure_in_rfc_3339():
    control = await loaded()
    good = await control.create_model(display_name="good")
    bad = await control.create_model(display_name="bad")
    control.health.levels = {"bad": 2}
    control.health.failures = {"bad": (0.0, "timeout")}
    assert control.service.models_status() == [
        {"id": good["id"], "display_name": "good", "kind": "direct", "status": "healthy"},
        {
            "id": bad["id"],
            "display_name": "bad",
            "kind": "direct",
            "status": "unhealthy",
            "last_checked_at": "1970-01-01T00:00:00.000Z",
            "last_check_status": "failed",
            "status_reason": "timeout",
        },
    ]
