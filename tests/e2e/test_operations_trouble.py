"""An upstream that refuses in the middle of an upload or breaks off in the middle of a download, a
token that is revoked: what a caller sees of it, and that the next request is fine."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aisix.core.endpoints import FAMILIES
from tests.support.operations import (
    FORM,
    KINDS,
    V1,
    VERSIONS,
    chunk,
    form,
    line_of,
    part_head,
    sdk_to,
    unique,
)
from tests.support.process import Answer, Stand, send, stand
from tests.support.raw_server import RawConnection, raw_server
from tests.support.wire import Wire, head, post

SOUND = b"RIFF" + bytes(range(256)) * 30
MB = 1_000_000
KEEPER = "sk-keeper"
UPLOAD_BYTES = 20 * MB
ATTEMPTS = 5
"""Who closes with something unread resets the connection, and a reset may strike while libcurl
(8.23) is sending: then it does not look for the answer any more. That is rare."""

RESOURCE = {"Authorization": f"Bearer {KEEPER}"}
REFUSALS = {
    401: b'{"error":{"code":"401","message":"Access denied due to invalid subscription key"}}',
    413: b'{"error":{"code":"too_large","message":"Maximum content size limit exceeded"}}',
    429: b'{"error":{"code":"429","message":"Please retry after 7 seconds"}}',
    500: b"oops",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway with a key for everything."""
    with stand(tmp_path_factory.mktemp("stand")) as running:
        running.gateway.create_caller_key(KEEPER, allowed_resources=list(FAMILIES))
        yield running


async def alias_at(bench: Stand, url: str, **fields: Any) -> str:
    """A new alias at a resource."""

    def make() -> str:
        name = unique("alias")
        key_id = bench.gateway.create_provider_key(url, api_version=V1, **fields)
        bench.gateway.create_model(name, "whisper", key_id)
        return name

    return await asyncio.to_thread(make)


# --- refused in the middle of an upload ---------------------------------------------------------


def upload(bench: Stand, alias: str, target: str, framing: str) -> Answer:
    """Send all of a large form, whatever happens meanwhile, and only then read."""
    headers = {**RESOURCE, "x-aisix-model": alias, "Content-Type": FORM}
    begin = form(("model", None, alias.encode()))[: -len("--a-boundary--\r\n")]
    begin += part_head("file", "a.wav")
    end = b"\r\n--a-boundary--\r\n"
    with Wire(bench.gateway.proxy) as wire:
        if framing == "chunked":
            wire.send(head("POST", target, {**headers, "Transfer-Encoding": "chunked"}))
            wire.send(chunk(begin))
            for _ in range(UPLOAD_BYTES // MB):
                wire.send(chunk(b"\0" * MB))
            wire.send(chunk(end) + b"0\r\n\r\n")
        else:
            length = str(len(begin) + UPLOAD_BYTES + len(end))
            wire.send(head("POST", target, {**headers, "Content-Length": length}) + begin)
            for _ in range(UPLOAD_BYTES // MB):
                wire.send(b"\0" * MB)
            wire.send(end)
        return wire.answer()


@pytest.mark.parametrize("ending", ["closes", "resets", "stays"])
@pytest.mark.parametrize("status", [401, 413, 429, 500])
@pytest.mark.parametrize(
    ("target", "framing"),
    [
        ("/v1/audio/transcriptions", "length"),
        ("/v1/files", "length"),
        ("/v1/files", "chunked"),
    ],
)
@pytest.mark.gen_test(timeout=30)
async def test_an_upload_refused_in_the_middle_gets_that_answer(
    bench: Stand, target: str, framing: str, status: int, ending: str
) -> None:
    body = REFUSALS[status]

    async def serve(connection: RawConnection) -> None:
        if await connection.head() is None:
            return
        await connection._reader.read(65_536)  # it has begun, and is not read on
        answer = (
            f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        await connection.send(answer.encode() + body)
        if ending == "resets":
            connection.reset()
        elif ending == "stays":
            await connection.until_gone()

    async with raw_server(serve) as server:
        alias = await alias_at(bench, server.url(""))
        for _ in range(1 if ending == "stays" else ATTEMPTS):
            answer = await asyncio.to_thread(upload, bench, alias, target, framing)
            line = line_of(bench, answer.headers)
            if "upstream_status" in line:
                break
            assert answer.status == 502
            assert "without an answer" in answer.error["message"]
    assert answer.status == (502 if status == 500 else status), answer.body
    if status == 413:
        assert answer.error["message"] == "Maximum content size limit exceeded"
    assert line["upstream_status"] == status


# --- a revoked token ----------------------------------------------------------------------------


def entra(bench: Stand) -> str:
    """A secret of a tenant of its own, so of a token of its own."""
    return json.dumps(
        {
            "tenant_id": str(uuid.uuid4()),
            "client_id": str(uuid.uuid4()),
            "client_secret": "simulator-secret",
            "authority_host": bench.azure.url,
        }
    )


def revoked(bench: Stand, deployment: str, version: str = V1) -> str:
    """An alias whose gateway believes in a token that Azure does not take any more."""
    name = unique("alias")
    key_id = bench.gateway.create_provider_key(
        bench.azure.url, secret=entra(bench), api_version=version
    )
    bench.gateway.create_model(name, deployment, key_id)
    assert bench.gateway.call("/v1/files", key=KEEPER, x_aisix_model=name).status == 200
    bench.azure.control("POST", "revoke_tokens")
    return name


@pytest.mark.parametrize("stream", [False, True])
def test_behind_json_the_token_is_renewed_unseen(bench: Stand, stream: bool) -> None:
    alias = revoked(bench, unique("gpt4o"))
    assert bench.gateway.chat(alias, stream=stream).status == 200


def test_behind_json_that_passes_the_token_is_renewed_unseen(bench: Stand) -> None:
    alias = revoked(bench, unique("gpt4o"))
    answer = bench.gateway.call(
        "/v1/vector_stores", {"name": "pets"}, key=KEEPER, x_aisix_model=alias
    )
    assert (answer.status, answer.json["name"]) == (200, "pets")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_behind_a_small_form_the_token_is_renewed_unseen(
    bench: Stand, kind: str, version: str
) -> None:
    deployment = unique("whisper")
    alias = revoked(bench, deployment, version)
    with sdk_to(bench.gateway, kind, key=KEEPER) as sdk:
        heard = sdk.audio.transcriptions.create(model=alias, file=("a.wav", SOUND))
        assert str(len(SOUND)) in heard.text
    first, second = bench.azure.requests(deployment=deployment)
    assert (first["status"], second["status"]) == (401, 200)
    assert first["body_sha256"] == second["body_sha256"]


@pytest.mark.parametrize("target", ["/v1/audio/transcriptions", "/v1/files"])
def test_behind_a_large_upload_the_caller_is_told_to_try_again(bench: Stand, target: str) -> None:
    alias = revoked(bench, unique("whisper"))
    answer = upload(bench, alias, target, "length")
    assert (answer.status, answer.headers["x-should-retry"]) == (401, "true")
    again = upload(bench, alias, target, "length")
    assert again.status in (200, 400), "the token is fresh; what is lacking is a purpose"


@pytest.mark.parametrize("kind", KINDS)
def test_the_sdk_tries_again_by_itself(bench: Stand, kind: str) -> None:
    alias = revoked(bench, unique("whisper"))
    with sdk_to(bench.gateway, kind, key=KEEPER, max_retries=1) as sdk:
        heard = sdk.audio.transcriptions.create(model=alias, file=("a.wav", b"\0" * 5 * MB))
    assert str(5 * MB) in heard.text


# --- the end of the gateway ---------------------------------------------------------------------


def test_an_upload_and_a_download_under_way_are_finished_before_the_end(tmp_path: Path) -> None:
    with stand(tmp_path) as bench:
        name = unique("alias")
        key_id = bench.gateway.create_provider_key(bench.azure.url, api_version=V1)
        bench.gateway.create_model(name, "tts-bulk64", key_id)
        body = form(("model", None, name.encode()), ("file", "a.wav", b"\0" * MB))
        speech = {"model": name, "voice": "alloy", "input": "hello"}
        told = {"Content-Type": FORM, "Content-Length": str(len(body))}
        with Wire(bench.gateway.proxy) as up, Wire(bench.gateway.proxy) as down:
            down.send(post("/v1/audio/speech", speech))
            down.read_until(b"\r\n\r\n")
            up.send(head("POST", "/v1/audio/transcriptions", told) + body[: MB // 2])
            bench.azure.requests(phase="receiving", wait=1)
            bench.gateway.send_signal(signal.SIGTERM)
            bench.gateway.events("gateway.draining")
            up.send(body[MB // 2 :])
            assert up.answer().status == 200
            assert down.rest().endswith(b"\r\n0\r\n\r\n")
        assert bench.gateway.wait().status == 0


# --- broken off in the middle of a download -----------------------------------------------------


def download(bench: Stand, alias: str, version: str = "1.1") -> tuple[int, dict[str, str], bytes]:
    """All that comes until the connection ends."""
    headers = {**RESOURCE, "x-aisix-model": alias, "Connection": "close"}
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("GET", "/v1/files/file-1/content", headers, version=version))
        status, named = wire.answer_head()
        return status, named, wire.rest()


CONTENT = bytes(range(256)) * 4000


@pytest.mark.parametrize("ending", ["closes", "resets"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.gen_test(timeout=20)
async def test_a_download_that_is_cut_is_cut_for_the_caller(
    bench: Stand, framing: str, ending: str
) -> None:
    async def serve(connection: RawConnection) -> None:
        if await connection.request() is None:
            return
        framed = f"Content-Length: {len(CONTENT)}" if framing == "length" else (
            "Transfer-Encoding: chunked"
        )  # fmt: skip
        half = CONTENT[: len(CONTENT) // 2]
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{framed}\r\n\r\n"
        await connection.send(answer.encode() + (half if framing == "length" else chunk(half)))
        if ending == "resets":
            connection.reset()

    async with raw_server(serve) as server:
        alias = await alias_at(bench, server.url(""))
        status, named, rest = await asyncio.to_thread(download, bench, alias)
        assert status == 200
        if framing == "length":
            assert int(named["content-length"]) == len(CONTENT) > len(rest)
        else:
            assert not rest.endswith(b"0\r\n\r\n")
        line = line_of(bench, named)
        assert (line["status"], line["outcome"]) == (200, "upstream_error")

        url = f"{bench.gateway.proxy}/v1/files/file-1/content"
        headers = {**RESOURCE, "x-aisix-model": alias}
        with pytest.raises(http.client.IncompleteRead):
            await asyncio.to_thread(send, "GET", url, headers=headers)


@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
@pytest.mark.gen_test(timeout=20)
async def test_a_caller_of_http_1_0_downloads_to_the_end(bench: Stand, framing: str) -> None:
    async def serve(connection: RawConnection) -> None:
        if await connection.request() is None:
            return
        framed, body = {
            "length": (f"Content-Length: {len(CONTENT)}\r\n", CONTENT),
            "chunked": ("Transfer-Encoding: chunked\r\n", chunk(CONTENT) + b"0\r\n\r\n"),
            "none": ("Connection: close\r\n", CONTENT),
        }[framing]
        await connection.send(f"HTTP/1.1 200 OK\r\n{framed}\r\n".encode() + body)

    async with raw_server(serve) as server:
        alias = await alias_at(bench, server.url(""))
        status, named, rest = await asyncio.to_thread(download, bench, alias, "1.0")
    assert (status, rest) == (200, CONTENT)
    assert "transfer-encoding" not in named
    assert named.get("content-length") == (str(len(CONTENT)) if framing == "length" else None)


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.gen_test(timeout=20)
async def test_an_answer_without_a_body_leaves_the_connection_usable(
    bench: Stand, status: int
) -> None:
    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            length = "Content-Length: 0\r\n" if status == 200 else ""
            await connection.send(f"HTTP/1.1 {status} Fine\r\n{length}\r\n".encode())

    def converse(alias: str) -> list[int]:
        headers = {**RESOURCE, "x-aisix-model": alias}
        statuses = []
        with Wire(bench.gateway.proxy) as wire:
            for method in ("DELETE", "GET", "DELETE"):
                wire.send(head(method, "/v1/files/file-1", headers))
                got, named = wire.answer_head()
                assert named.get("content-length") == ("0" if status == 200 else None)
                assert "transfer-encoding" not in named
                statuses.append(got)
            wire.send(post("/v1/chat/completions", {"model": "nobody", "messages": [{}]}))
            statuses.append(wire.answer().status)
        return statuses

    async with raw_server(serve) as server:
        alias = await alias_at(bench, server.url(""))
        assert await asyncio.to_thread(converse, alias) == [status, status, status, 404]
