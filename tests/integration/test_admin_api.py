"""The admin API over a real socket: routes, envelopes, status codes, bad input."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import socket
from typing import Any

import pytest

from aisix.admin.openapi import OPERATIONS
from aisix.admin.service import AdminService
from aisix.core.ports import Finding
from aisix.core.resources import ResourceKey
from aisix.store.cipher import Cipher
from aisix.store.database import Database
from aisix.store.resources import SqliteResourceStore
from tests.support.control import ADMIN_KEY, AZURE_KEY, MODEL, error_of, make_control, serve_admin

V1 = "/admin/v1"
CALLER: dict[str, Any] = {"key": "sk-azure-caller", "allowed_models": ["gpt-4o-azure"]}


async def raw_exchange(port: int, request: bytes) -> bytes:
    """Send bytes as they are; everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


# ── the guide ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_the_guides_three_resources_can_be_made_read_replaced_and_deleted(tmp_path):
    """On SQLite, through HTTP, whole."""
    database = await Database.open(tmp_path / "aisix.db")
    try:
        control = make_control(SqliteResourceStore(database, Cipher(bytes(32))))
        async with serve_admin(control) as api:
            key = await api.json("POST", f"{V1}/provider_keys", AZURE_KEY)
            body = {**MODEL, "provider_key_id": key["id"]}
            model = await api.json("POST", f"{V1}/models", body)
            digest = hashlib.sha256(b"sk-azure-caller").hexdigest()
            caller = await api.json(
                "POST", f"{V1}/apikeys", {"key_hash": digest, "allowed_models": ["gpt-4o-azure"]}
            )
            for kind, entry in (("provider_keys", key), ("models", model), ("apikeys", caller)):
                more = ["credential"] if kind == "provider_keys" else []
                assert list(entry) == ["id", "value", "revision", *more]
                assert re.fullmatch(r"[0-9a-f-]{36}", entry["id"])
                assert await api.json("GET", f"{V1}/{kind}") == [entry]
                assert await api.json("GET", f"{V1}/{kind}/{entry['id']}") == entry
                path = f"{V1}/{kind}/{entry['id']}"
                assert await api.json("PUT", path, entry["value"]) == {**entry, "revision": 2}
            assert control.holder.current().keys_by_hash[digest].allows("gpt-4o-azure")
            for kind, entry in (("apikeys", caller), ("models", model), ("provider_keys", key)):
                gone = await api.json("DELETE", f"{V1}/{kind}/{entry['id']}")
                assert gone == {"deleted": True, "id": entry["id"]}
                assert await api.json("GET", f"{V1}/{kind}") == []
    finally:
        await database.close()


@pytest.mark.gen_test
async def test_the_later_spellings_are_accepted():
    async with serve_admin() as api:
        body = {name: value for name, value in AZURE_KEY.items() if name != "secret"}
        key = await api.json("POST", f"{V1}/provider_keys", {**body, "api_key": "s"})
        assert key["value"]["secret"] == "***"
        caller = await api.json("POST", f"{V1}/api_keys", CALLER)
        assert await api.json("GET", f"{V1}/apikeys/{caller['id']}") == caller
        await api.json("POST", f"{V1}/api_keys/{caller['id']}/rotate")
        await api.json("GET", f"{V1}/apikeys/")


@pytest.mark.gen_test
async def test_no_answer_and_no_log_line_holds_a_secret_or_a_key(caplog):
    secrets = ["the-resource-key", "sk-azure-caller", ADMIN_KEY, "wrong-admin-key"]
    with caplog.at_level(logging.DEBUG):
        async with serve_admin() as api:
            texts = []
            for method, path, body in (
                ("POST", f"{V1}/provider_keys", AZURE_KEY),
                ("POST", f"{V1}/provider_keys", AZURE_KEY),
                ("POST", f"{V1}/provider_keys", {**AZURE_KEY, "secret": [AZURE_KEY["secret"]]}),
                ("GET", f"{V1}/provider_keys", None),
                ("POST", f"{V1}/apikeys", CALLER),
                ("POST", f"{V1}/apikeys", CALLER),
                ("POST", f"{V1}/apikeys", {**CALLER, "key": CALLER["key"] + "\n"}),
                ("GET", f"{V1}/apikeys", None),
            ):
                texts.append((await api.call(method, path, body)).body.decode())
            refused = await api.call("GET", f"{V1}/models", key="wrong-admin-key")
            texts.append(refused.body.decode())
            entry = (await api.json("GET", f"{V1}/apikeys"))[0]
            rotated = await api.json("POST", f"{V1}/apikeys/{entry['id']}/rotate")
            secrets.append(rotated["plaintext"])
            assert rotated["plaintext"] not in json.dumps(rotated["entry"])
    lines = "\n".join(str(record.__dict__) + record.getMessage() for record in caplog.records)
    for secret in secrets:
        assert secret not in "".join(texts)
        assert secret not in lines
    events = [record.getMessage() for record in caplog.records if record.name == "aisix.admin"]
    assert events == ["admin.write", "admin.write", "admin.denied", "admin.write"]


# ── credentials ─────────────────────────────────────────────────────────────────────────────────

PRIVATE = [operation for operation in OPERATIONS if not operation.public]


@pytest.mark.parametrize("operation", PRIVATE, ids=lambda operation: operation.name)
@pytest.mark.gen_test
async def test_every_private_operation_needs_an_admin_key(operation):
    async with serve_admin() as api:
        path = operation.path.replace("{id}", "1")
        for key in (None, "wrong"):
            response = await api.call(operation.method, path, b"{not json", key=key)
            assert response.code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert error_of(response) == "missing or malformed admin authorization"


@pytest.mark.gen_test
async def test_x_api_key_and_any_admin_key_open():
    async with serve_admin() as api:
        for headers in ({"x-api-key": ADMIN_KEY}, {"x-api-key": "other-key"}):
            await api.json("GET", f"{V1}/models", headers=headers, key=None)
        spoilt = {"Authorization": "Basic x", "x-api-key": ADMIN_KEY}
        assert (await api.call("GET", f"{V1}/models", headers=spoilt, key=None)).code == 401


@pytest.mark.gen_test
async def test_a_refusal_does_not_wait_for_the_body():
    async with serve_admin() as api:
        head = b"POST /admin/v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(head + b"Content-Type: application/json\r\n\r\n{")
        async with asyncio.timeout(5):
            assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


# ── routes and methods ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/", "/admin", "/admin/v1", f"{V1}/guardrails", f"{V1}/models/1/2", "/v1/models"]
)
@pytest.mark.gen_test
async def test_an_unknown_path_is_a_404_in_the_envelope(path):
    async with serve_admin() as api:
        for method in ("GET", "POST", "DELETE"):
            response = await api.call(method, path)
            assert response.code == 404
            assert "no such route" in error_of(response)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", f"{V1}/models", "GET, POST"),
        ("PATCH", f"{V1}/models/1", "GET, PUT, DELETE"),
        ("POST", f"{V1}/models/1", "GET, PUT, DELETE"),
        ("GET", f"{V1}/apikeys/1/rotate", "POST"),
        ("POST", f"{V1}/models/status", "GET"),
        ("OPTIONS", f"{V1}/models", "GET, POST"),
        ("BREW", f"{V1}/models", "GET, POST"),
        ("POST", "/admin/docs", "GET"),
    ],
)
@pytest.mark.gen_test
async def test_another_method_is_a_405_that_tells_the_right_ones(method, path, allowed):
    async with serve_admin() as api:
        response = await api.call(method, path)
        assert response.code == 405
        assert response.headers["Allow"] == allowed
        assert error_of(response) == "method not allowed"


@pytest.mark.parametrize("kind", ["provider_keys", "models", "apikeys"])
@pytest.mark.gen_test
async def test_an_unknown_id_is_a_404_before_the_body_is_judged(kind):
    async with serve_admin() as api:
        for id in ("nobody", "%00", "..", "a%2Fb"):
            path = f"{V1}/{kind}/{id}"
            for method, body in (("GET", None), ("PUT", {"bad": 1}), ("DELETE", None)):
                response = await api.call(method, path, body)
                assert (response.code, error_of(response)) == (404, "resource not found")
        response = await api.call("GET", f"{V1}/{kind}/%ff")
        assert (response.code, error_of(response)) == (400, "the request is malformed")


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null x",
        b'{"display_name":NaN}',
        b'{"a":1,"a":2}',
        b'{"display_name":"\xff"}',
        b'{"display_name":"\\ud800"}',
        b"[" * 50_000,
        b'{"model":["x"]}',
        b"[]",
    ],
)
@pytest.mark.gen_test
async def test_a_bad_body_is_a_400_in_the_envelope(body):
    async with serve_admin() as api:
        response = await api.call("POST", f"{V1}/models", body)
        assert response.code == 400
        assert error_of(response).startswith(("malformed JSON: ", "schema validation failed at "))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": 'Application/JSON;charset="UTF-8"'}, 200),
        ({"Content-Type": "application/merge-patch+json"}, 200),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "identity"}, 200),
    ],
)
@pytest.mark.gen_test
async def test_a_body_must_be_declared_as_json(headers, status):
    async with serve_admin() as api:
        response = await api.call("POST", f"{V1}/apikeys", CALLER, headers=headers)
        assert response.code == status
        if status != 200:
            error_of(response)


@pytest.mark.gen_test
async def test_a_body_over_the_limit_is_a_413_declared_or_not():
    async with serve_admin() as api:
        big = b'"' + b"x" * (2 * 1024 * 1024) + b'"'
        response = await api.call("POST", f"{V1}/models", big)
        assert response.code == 413
        assert error_of(response) == "request body exceeds 2097152-byte limit"
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        head = (
            f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            "Connection: close\r\n\r\n"
        )
        answer = await raw_exchange(api.port, head.encode() + piece * 40 + b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'{"error_msg": "request body exceeds' in answer
        assert await api.json("GET", f"{V1}/models") == []


@pytest.mark.gen_test
async def test_fifty_megabytes_are_refused_and_the_refusal_can_be_read():
    async with serve_admin() as api:
        response = await api.call("POST", f"{V1}/models", b"x" * 50_000_000)
        assert response.code == 413


@pytest.mark.parametrize(("key", "status"), [(ADMIN_KEY, 413), ("wrong", 401)])
@pytest.mark.gen_test
async def test_a_client_that_reads_only_after_sending_can_read_the_refusal(key, status):
    async with serve_admin() as api:
        head = (
            f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 30000000\r\n"
            "Connection: close\r\n\r\n"
        )
        answer = await raw_exchange(api.port, head.encode() + b"x" * 30_000_000)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b'{"error_msg": ' in answer


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 3000000\r\nExpect: 100-continue",
        "Content-Length: 100000000",
    ],
)
@pytest.mark.gen_test
async def test_a_body_that_nobody_wants_is_not_waited_for(framing):
    """A client that asks first is told at once; so is one with more than is worth swallowing."""
    async with serve_admin() as api:
        head = (
            f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            f"Content-Type: application/json\r\n{framing}\r\n\r\n"
        )
        answer = await raw_exchange(api.port, head.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("key", [ADMIN_KEY, "wrong"])
@pytest.mark.gen_test
async def test_a_head_without_a_clear_end_has_one_answer(key):
    async with serve_admin() as api:
        head = (
            f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
            "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
        )
        answer = await raw_exchange(api.port, head.encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        await api.state.wait_idle()


@pytest.mark.gen_test
async def test_after_a_refusal_the_connection_serves_on():
    async with serve_admin() as api:
        wrong = f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        good = "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = await raw_exchange(api.port, (wrong + good).encode())
        first, _, second = answer.partition(b"HTTP/1.1 401 ")[2].partition(b"HTTP/1.1 ")
        assert first.endswith(b'{"error_msg": "missing or malformed admin authorization"}')
        assert second.startswith(b"503 ")


@pytest.mark.gen_test
async def test_a_body_without_end_is_cut_off():
    async with serve_admin() as api:
        head = (
            f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with socket.create_connection(("127.0.0.1", api.port)) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, head.encode())
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(10):
                    for _ in range(2048):
                        await loop.sock_sendall(client, piece)
        await api.state.wait_idle()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.gen_test
async def test_probes_answer_here_too_in_the_admin_envelope(path):
    async with serve_admin() as api:
        api.state.ready = True
        good = await api.call("GET", path, key=None)
        assert (good.code, good.body) == (200, b"ok")
        assert good.headers["x-aisix-request-id"]
        for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
            wrong = await api.call(method, path, key=None)
            assert (wrong.code, error_of(wrong)) == (405, "method not allowed")
            assert wrong.headers["Allow"] == "GET, HEAD"


@pytest.mark.gen_test
async def test_a_body_that_stops_half_way_changes_nothing_and_leaves_nothing_in_flight():
    async with serve_admin() as api:
        head = (
            f"POST {V1}/apikeys HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(head.encode() + b'{"key":"half')
        await writer.drain()
        async with asyncio.timeout(5):
            while not api.state.inflight:
                await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()
            await api.state.wait_idle()
        assert await api.json("GET", f"{V1}/apikeys") == []


@pytest.mark.gen_test
async def test_a_name_with_a_slash_and_a_key_with_a_newline_are_refused_with_words():
    async with serve_admin() as api:
        key = await api.json("POST", f"{V1}/provider_keys", AZURE_KEY)
        body = {**MODEL, "provider_key_id": key["id"], "display_name": "a/b"}
        response = await api.call("POST", f"{V1}/models", body)
        assert 'at /display_name: must not contain "/"' in error_of(response)
        response = await api.call("POST", f"{V1}/apikeys", {**CALLER, "key": "sk\n"})
        assert "at /key: must be visible ASCII" in error_of(response)


# ── revisions ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ("1", 200),
        ('"1"', 200),
        ("*", 200),
        ('"7", "1"', 200),
        ("2", 412),
        ('"2"', 412),
        ("", 400),
        ("one", 400),
        ('W/"1"', 400),
        ("-1", 400),
        ("1;", 400),
        ("9" * 400, 400),
    ],
)
@pytest.mark.gen_test
async def test_if_match_guards_put_delete_and_rotate(if_match, status):
    async with serve_admin() as api:
        for method, rest in (("PUT", ""), ("DELETE", ""), ("POST", "/rotate")):
            entry = await api.json("POST", f"{V1}/apikeys", {**CALLER, "key": f"k{method}"})
            path = f"{V1}/apikeys/{entry['id']}{rest}"
            body: Any = {"allowed_models": []} if method == "PUT" else None
            response = await api.call(method, path, body, headers={"If-Match": if_match})
            assert response.code == status
            if status != 200:
                error_of(response)


@pytest.mark.gen_test
async def test_answers_carry_the_revision_as_etag():
    async with serve_admin() as api:
        created = await api.call("POST", f"{V1}/apikeys", CALLER)
        assert created.headers["ETag"] == '"1"'
        path = f"{V1}/apikeys/{json.loads(created.body)['id']}"
        replaced = await api.call("PUT", path, {"allowed_models": []})
        rotated = await api.call("POST", path + "/rotate", {"grace_seconds": 5})
        read = await api.call("GET", path)
        assert [answer.headers["ETag"] for answer in (replaced, rotated, read)] == [
            '"2"',
            '"3"',
            '"3"',
        ]
        assert "ETag" not in (await api.call("GET", f"{V1}/apikeys")).headers


@pytest.mark.gen_test
async def test_a_conflict_names_its_cause():
    async with serve_admin() as api:
        model = await api.control.create_model()
        response = await api.call("POST", f"{V1}/models", model["value"])
        assert response.code == 409
        said = 'name "gpt-4o-azure" already in use by another resource'
        assert error_of(response) == said
        key_id = model["value"]["provider_key_id"]
        response = await api.call("DELETE", f"{V1}/provider_keys/{key_id}")
        assert response.code == 409
        assert '"gpt-4o-azure"' in error_of(response)


# ── views and the frame ─────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_health_and_models_status_are_served():
    async with serve_admin() as api:
        model = await api.control.create_model()
        health = await api.json("GET", f"{V1}/health")
        assert health["status"] == "ok"
        assert health["models"] == [{"id": model["id"], "name": "gpt-4o-azure", "health": 0}]
        (status,) = await api.json("GET", f"{V1}/models/status")
        assert (status["kind"], status["status"]) == ("direct", "healthy")


@pytest.mark.gen_test
async def test_every_answer_has_an_id_and_may_not_be_kept():
    async with serve_admin() as api:
        sent = {"x-aisix-request-id": "from-the-caller"}
        for path in (f"{V1}/models", f"{V1}/models/none"):
            answer = await api.call("GET", path, headers=sent)
            assert answer.headers["x-aisix-request-id"] == "from-the-caller"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Server"].startswith("AISIX/")
        minted = (await api.call("GET", f"{V1}/models")).headers["x-aisix-request-id"]
        assert re.fullmatch(r"[0-9a-f-]{36}", minted)


@pytest.mark.gen_test
async def test_while_draining_connections_are_closed_after_the_answer():
    async with serve_admin() as api:
        api.state.draining = True
        for path in (f"{V1}/models", f"{V1}/models/none"):
            assert (await api.call("GET", path)).headers["Connection"] == "close"
        await api.state.wait_idle()


@pytest.mark.gen_test
async def test_a_request_that_is_cut_is_no_longer_in_flight():
    async with serve_admin() as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = f"POST {V1}/models HTTP/1.1\r\nHost: a\r\nx-api-key: {ADMIN_KEY}\r\n"
        writer.write(head.encode() + b"Content-Length: 10\r\n\r\n")
        async with asyncio.timeout(5):
            while not api.state.inflight:
                await asyncio.sleep(0)
            api.state.abort_all()
            assert await reader.read() == b""
            await api.state.wait_idle()
        writer.close()
        await writer.wait_closed()


@pytest.mark.logs("admin.failed")
@pytest.mark.gen_test
async def test_what_nobody_foresaw_is_a_500_that_names_only_the_request(caplog):
    class Broken(AdminService):
        async def list_all(self, kind):
            raise RuntimeError("inner detail")

    control = make_control()
    broken = Broken(
        control.store,
        control.sink,
        adapters={},
        health=control.health,
        tokens=control.tokens,
        verifier=control.verifier,  # type: ignore[arg-type]
        clock=control.clock,
    )
    control.service = broken
    async with serve_admin(control) as api:
        response = await api.call("GET", f"{V1}/models", headers={"x-aisix-request-id": "r-1"})
    assert response.code == 500
    assert error_of(response) == "internal error; the log has it under request id r-1"
    (record,) = [record for record in caplog.records if record.getMessage() == "admin.failed"]
    assert record.__dict__["request_id"] == "r-1"
    assert record.exc_info is not None


@pytest.mark.logs("admin.store_failed")
@pytest.mark.gen_test
async def test_a_failing_store_is_a_500_that_names_the_cause():
    async with serve_admin() as api:
        api.control.store.fail_with = "the disk is full"
        response = await api.call("POST", f"{V1}/apikeys", CALLER)
        assert (response.code, error_of(response)) == (500, "store error: the disk is full")


# ── workers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_write_names_how_many_workers_lag_and_only_then():
    async with serve_admin() as api:
        assert (
            "x-aisix-lagging-workers"
            not in (await api.call("POST", f"{V1}/apikeys", CALLER)).headers
        )
        api.control.sink.lagging = 1
        created = await api.call("POST", f"{V1}/provider_keys", AZURE_KEY)
        (entry,) = await api.json("GET", f"{V1}/apikeys")
        rotated = await api.call("POST", f"{V1}/apikeys/{entry['id']}/rotate")
        deleted = await api.call("DELETE", f"{V1}/apikeys/{entry['id']}")
        for answer in (created, rotated, deleted):
            assert answer.code == 200
            assert answer.headers["x-aisix-lagging-workers"] == "1"


# ── verification ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_verification_names_the_verdict_first_and_leaves_one_audit_line(caplog):
    caplog.set_level("INFO", "aisix.admin")
    async with serve_admin() as api:
        model = await api.control.create_model()
        api.control.verifier.finding = Finding("tls", "not trusted", "name it", said="curl 60")
        caplog.clear()
        response = await api.call("POST", f"{V1}/models/{model['id']}/verify")
        assert response.code == 200
        assert response.body.startswith(b'{\n  "ok": false,\n  "stage": "tls",\n')
        assert response.body.endswith(b"}\n")
        assert json.loads(response.body) == {
            "ok": False,
            "stage": "tls",
            "message": "not trusted",
            "fix": "name it",
            "request": None,
            "upstream_status": None,
            "upstream_message": "curl 60",
            "upstream_request_id": None,
            "latency_ms": 1,
        }
        (line,) = [record for record in caplog.records if record.name == "aisix.admin"]
        assert line.getMessage() == "admin.verify"
        told = {name: line.__dict__[name] for name in ("kind", "id", "ok", "stage")}
        assert told == {"kind": "models", "id": model["id"], "ok": False, "stage": "tls"}
        assert line.__dict__["admin"]


@pytest.mark.gen_test
async def test_a_provider_key_and_a_model_are_verified_where_they_lead():
    async with serve_admin() as api:
        model = await api.control.create_model(api_version="v1")
        key_id = model["value"]["provider_key_id"]
        found = await api.json("POST", f"{V1}/provider_keys/{key_id}/verify", b"ignored")
        assert (found["ok"], found["stage"], found["fix"]) == (True, None, None)
        await api.json("POST", f"{V1}/models/{model['id']}/verify/")
        key, deployment = api.control.verifier.asked
    assert (key.name, key.api_version) == ("", "2024-10-21")
    assert (deployment.name, deployment.api_version) == ("gpt4o-prod", "v1")
    assert key.credential == deployment.credential == ResourceKey(AZURE_KEY["secret"])
    assert key.api_base == deployment.api_base == AZURE_KEY["api_base"]


@pytest.mark.gen_test
async def test_a_verification_of_what_is_not_there_or_by_nobody_is_refused():
    async with serve_admin() as api:
        for kind in ("provider_keys", "models"):
            response = await api.call("POST", f"{V1}/{kind}/none/verify")
            assert (response.code, error_of(response)) == (404, "resource not found")
            response = await api.call("GET", f"{V1}/{kind}/none/verify")
            assert (response.code, response.headers["Allow"]) == (405, "POST")
            assert (await api.call("POST", f"{V1}/{kind}/none/verify", key="x")).code == 401
        assert (await api.call("POST", f"{V1}/apikeys/none/verify")).code == 404
        assert api.control.verifier.asked == []
