"""Files, batches, fine-tuning, vector stores and evals through a whole gateway, byte for byte."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from aisix.core.endpoints import FAMILIES
from tests.support.operations import (
    KINDS,
    PREVIEW,
    V1,
    VERSIONS,
    alias_of,
    async_sdk_to,
    line_of,
    sdk_to,
    unique,
)
from tests.support.process import Answer, Stand, send
from tests.support.workers import crowd

MIB = 1024 * 1024
SEVERAL = "sk-several-models"
NOTHING = "sk-no-resources"
FILES_ONLY = "sk-files-only"
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
GRADER = {"type": "string_check", "name": "g", "input": "a", "operation": "eq", "reference": "a"}

by_both = pytest.mark.parametrize("kind", KINDS)
by_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(3, marks=pytest.mark.soak)],
    ids=["one worker", "three workers"],
)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """A gateway in front of a simulator, for a whole module."""
    with crowd(tmp_path_factory.mktemp("stand"), request.param) as running:
        program = running.gateway
        for key, families in ((SEVERAL, FAMILIES), (NOTHING, ()), (FILES_ONLY, ("files",))):
            program.create_caller_key(key, allowed_resources=list(families))
        alias_of(running, unique("gpt4o"))  # so that there are several
        alias_of(running, unique("gpt4o"))
        yield running


def only(bench: Stand, version: str = V1) -> tuple[str, str]:
    """A caller key that may use one alias and every family; both."""
    alias, key = alias_of(bench, unique("gpt4o"), version), f"sk-{uuid.uuid4().hex}"
    bench.gateway.create_caller_key(key, allowed_models=[alias], allowed_resources=list(FAMILIES))
    return key, alias


def ask(
    bench: Stand, method: str, path: str, body: Any = None, *, key: str = SEVERAL, **headers: str
) -> Answer:
    """One request; `_` in header names is `-`."""
    sent = {"Authorization": f"Bearer {key}"}
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    return send(method, bench.gateway.proxy + path, body, headers=sent)


def last_request(bench: Stand, operation: str) -> dict[str, Any]:
    return bench.azure.requests(operation=operation, wait=1)[-1]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# --- what SDKs do -------------------------------------------------------------------------------


@by_both
@by_version
def test_a_file_lives_its_life(bench: Stand, kind: str, version: str) -> None:
    key, _ = only(bench, version)
    data = noise(700_000)
    with sdk_to(bench.gateway, kind, key=key) as sdk:
        file = sdk.files.create(file=("a.jsonl", data), purpose="batch")
        other = sdk.files.create(file=("b.txt", b"text"), purpose="assistants")
        assert sdk.files.retrieve(file.id) == file
        content = sdk.files.content(file.id)
        assert content.content == data
        headers = content.response.headers
        assert headers["content-length"] == str(len(data))
        assert headers["content-disposition"] == 'attachment; filename="a.jsonl"'
        bench.azure.clear()
        assert [each.id for each in sdk.files.list(limit=1)][:2] == [other.id, file.id]
        asked = bench.azure.requests(operation="files")
        assert {record["query"]["limit"] for record in asked} == {"1"}
        assert asked[1]["query"]["after"] == other.id
        assert sdk.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="No such File") as raised:
            sdk.files.content(file.id)
        assert file.id in str(raised.value)
        sdk.files.delete(other.id)


@by_both
@by_version
def test_a_batch_runs(bench: Stand, kind: str, version: str) -> None:
    key, alias = only(bench, version)
    request = {"model": alias, "messages": [{"role": "user", "content": "ping"}]}
    line = {"custom_id": "r1", "method": "POST", "url": "/chat/completions", "body": request}
    with sdk_to(bench.gateway, kind, key=key) as sdk:
        data = json.dumps(line).encode() + b"\n"
        file = sdk.files.create(file=("in.jsonl", data), purpose="batch")
        batch = sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        states = [sdk.batches.retrieve(batch.id) for _ in range(2)]
        assert [state.status for state in states] == ["in_progress", "completed"]
        output = sdk.files.content(states[-1].output_file_id).text
        assert json.loads(output)["custom_id"] == "r1"
        assert batch.id in [each.id for each in sdk.batches.list()]
        assert sdk.batches.cancel(batch.id).status == "completed"


@by_both
@by_version
def test_a_fine_tuning_job_runs(bench: Stand, kind: str, version: str) -> None:
    key, _ = only(bench, version)
    with sdk_to(bench.gateway, kind, key=key) as sdk:
        file = sdk.files.create(file=("t.jsonl", b"{}\n"), purpose="fine-tune")
        job = sdk.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id, suffix="mine")
        assert job.model == "gpt-4o-mini", "a base model of Azure's, no alias"
        states = [sdk.fine_tuning.jobs.retrieve(job.id).status for _ in range(2)]
        assert states == ["running", "succeeded"]
        assert list(sdk.fine_tuning.jobs.list_events(job.id))
        assert list(sdk.fine_tuning.jobs.checkpoints.list(job.id))
        other = sdk.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
        assert sdk.fine_tuning.jobs.cancel(other.id).status == "cancelled"


@by_both
def test_a_vector_store_is_filled_and_searched(bench: Stand, kind: str) -> None:
    key, _ = only(bench)
    with sdk_to(bench.gateway, kind, key=key) as sdk:
        cats = sdk.files.create(file=("c.txt", b"cats purr"), purpose="assistants")
        dogs = sdk.files.create(file=("d.txt", b"dogs bark"), purpose="assistants")
        store = sdk.vector_stores.create(name="pets", file_ids=[cats.id])
        sdk.vector_stores.files.create(store.id, file_id=dogs.id)
        found = sdk.vector_stores.search(store.id, query="do dogs bark")
        assert [result.filename for result in found.data] == ["d.txt", "c.txt"]
        assert sdk.vector_stores.files.content(dogs.id, vector_store_id=store.id).data
        assert sdk.vector_stores.files.delete(dogs.id, vector_store_id=store.id).deleted
        assert sdk.vector_stores.delete(store.id).deleted


@by_both
@by_version
def test_an_eval_is_run(bench: Stand, kind: str, version: str) -> None:
    key, _ = only(bench, version)
    content = {"type": "file_content", "content": [{"item": {"q": "1"}}]}
    source = {"type": "jsonl", "source": content}
    with sdk_to(bench.gateway, kind, key=key) as sdk:
        made = sdk.evals.create(
            name="mine",
            data_source_config={"type": "custom", "item_schema": SCHEMA},
            testing_criteria=[GRADER],
        )
        run = sdk.evals.runs.create(made.id, data_source=source)
        states = [sdk.evals.runs.retrieve(run.id, eval_id=made.id).status for _ in range(2)]
        assert states == ["in_progress", "completed"]
        assert list(sdk.evals.runs.output_items.list(run.id, eval_id=made.id))
        assert sdk.evals.delete(made.id).deleted


@by_both
@pytest.mark.gen_test(timeout=20)
async def test_the_asynchronous_sdk_keeps_files(bench: Stand, kind: str) -> None:
    key, _ = only(bench)
    async with async_sdk_to(bench.gateway, kind) as made:
        sdk = made.with_options(api_key=key)
        file = await sdk.files.create(file=("a.txt", b"text"), purpose="assistants")
        assert (await sdk.files.content(file.id)).content == b"text"
        assert (await sdk.files.delete(file.id)).deleted


# --- whose, and where ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_without_the_family_is_refused(bench: Stand, family: str) -> None:
    refused = ask(bench, "GET", f"/v1/{family}", key=NOTHING)
    assert (refused.status, refused.error["code"]) == (403, "permission_denied")
    assert family in refused.error["message"]
    assert "allowed_resources" in refused.error["message"]
    if family != "files":
        assert ask(bench, "GET", f"/v1/{family}", key=FILES_ONLY).status == 403


@pytest.mark.parametrize("family", FAMILIES)
def test_which_of_several_models_is_meant_must_be_said(bench: Stand, family: str) -> None:
    refused = ask(bench, "GET", f"/v1/{family}")
    assert (refused.status, refused.error["param"]) == (400, "x-aisix-model")
    assert "x-aisix-model" in refused.error["message"]


def test_the_header_names_the_model_and_the_resource(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o"))
    answer = ask(bench, "GET", "/v1/files?limit=3&order=asc", x_aisix_model=alias)
    assert answer.status == 200, answer.body
    assert line_of(bench, answer.headers)["model"] == alias
    missing = ask(bench, "GET", "/v1/files", x_aisix_model="nobody")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    key, _ = only(bench)
    assert ask(bench, "GET", "/v1/files", key=key, x_aisix_model=alias).status == 403


@pytest.mark.parametrize("operation", ["batches", "files"])
def test_the_path_may_name_the_model_as_openai_js_does(bench: Stand, operation: str) -> None:
    alias = alias_of(bench, unique("gpt4o"))
    for prefix in ("/openai", "/v1", "/openai/v1"):
        path = f"{prefix}/deployments/{alias}/{operation}?api-version={PREVIEW}&limit=5"
        answer = ask(bench, "GET", path)
        assert answer.status == 200, answer.body
        assert line_of(bench, answer.headers)["model"] == alias
        asked = last_request(bench, operation)
        assert asked["path"] == f"/openai/v1/{operation}"


@by_version
def test_ids_and_queries_pass_unchanged_and_the_version_is_ours(bench: Stand, version: str) -> None:
    alias = alias_of(bench, unique("gpt4o"), version)
    query = "after=file-x%2By&limit=7&order=asc&api-version=1999-01-01&model=m&deployment=d"
    ask(bench, "GET", f"/v1/files?{query}", x_aisix_model=alias)
    asked = last_request(bench, "files")
    ours = {} if version == V1 else {"api-version": version}
    assert asked["query"] == {"after": "file-x+y", "limit": "7", "order": "asc", **ours}
    assert asked["path"] == ("/openai/v1/files" if version == V1 else "/openai/files")


def test_what_azure_says_of_an_object_reaches_the_caller(bench: Stand) -> None:
    key, _ = only(bench)
    missing = ask(bench, "GET", "/v1/files/file-none", key=key)
    assert missing.status == 404
    assert "file-none" in missing.error["message"]
    bench.azure.script("*", "err-conflict")
    conflict = ask(bench, "DELETE", "/v1/files/file-none", key=key)
    assert conflict.status == 409
    assert conflict.error["message"] not in ("", "upstream conflict")


def test_reads_cost_no_tokens_and_count_as_requests(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o"), rate_limit={"tpd": 1000, "rpd": 1000})
    left = [
        ask(bench, "GET", "/v1/files", x_aisix_model=alias).headers["x-ratelimit-remaining-tokens"]
        for _ in range(3)
    ]
    assert set(left) == {left[0]}


# --- bytes --------------------------------------------------------------------------------------


def part(name: str, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: text/plain'
    disposition = f'Content-Disposition: form-data; name="{name}"{named}'
    return f"--edge\r\n{disposition}\r\n\r\n".encode()


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_large_upload_arrives_byte_for_byte(bench: Stand, framing: str) -> None:
    key, _ = only(bench)
    begin = part("purpose") + b"user_data\r\n" + part("file", "big.bin")
    block, blocks, end = noise(MIB), 48, b"\r\n--edge--\r\n"
    bench.azure.clear()
    whole = hashlib.sha256(begin)
    place = urlsplit(bench.gateway.proxy)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: multipart/form-data; boundary=edge\r\nConnection: close\r\n"
    )
    length = len(begin) + blocks * len(block) + len(end)
    head += f"Content-Length: {length}\r\n\r\n" if framing != "chunked" else (
        "Transfer-Encoding: chunked\r\n\r\n"
    )  # fmt: skip

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data

    with socket.create_connection((place.hostname, place.port), 20) as caller:
        caller.sendall(head.encode() + framed(begin))
        for _ in range(blocks):
            whole.update(block)
            caller.sendall(framed(block))
        whole.update(end)
        caller.sendall(framed(end) + (b"0\r\n\r\n" if framing == "chunked" else b""))
        answer = b"".join(iter(lambda: caller.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    (record,) = bench.azure.requests(operation="files", method="POST")
    assert record["body_sha256"] == whole.hexdigest()
    named = {name.lower(): value for name, value in record["header_list"]}
    assert ("content-length" in named) == (framing == "content-length")
    assert named["content-type"] == "multipart/form-data; boundary=edge"
    # of what was uploaded the simulator keeps the first MiB, the rest it makes up
    expected = hashlib.sha256(block + bytes(range(256)) * (47 * MIB // 256))
    digest, received = hashlib.sha256(), 0
    with sdk_to(bench.gateway, key=key) as sdk:
        with sdk.files.with_streaming_response.content(document["id"]) as download:
            assert download.headers["content-length"] == str(48 * MIB)
            for piece in download.iter_bytes(65_536):
                digest.update(piece)
                received += len(piece)
        sdk.files.delete(document["id"])
    assert received == 48 * MIB
    assert digest.hexdigest() == expected.hexdigest()


def test_a_download_of_nothing_has_its_length(bench: Stand) -> None:
    key, _ = only(bench)
    with sdk_to(bench.gateway, key=key) as sdk:
        file = sdk.files.create(file=("empty.bin", b""), purpose="user_data")
        content = sdk.files.content(file.id)
    assert content.content == b""
    assert content.response.headers["content-length"] == "0"
