"""Bad forms, bad paths, bad timing: each gets a clear answer, and the next request is served."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, FAMILIES
from tests.support.operations import (
    BOUNDARY,
    FORM,
    PREVIEW,
    VERSIONS,
    alias_of,
    chunk,
    form,
    part_head,
    unique,
)
from tests.support.process import CALLER_KEY, Answer, Stand, stand
from tests.support.wire import Wire, head, post
from tests.support.workers import eventually

HEAR = "/v1/audio/transcriptions"
SOUND = b"RIFF" + bytes(range(256)) * 300
FILE = ("file", "a.wav", SOUND)
MB = 1_000_000
LIMIT_BYTES = 8 * MB
BODY_TIMEOUT_S = 1
KEEPER = "sk-keeper"
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway with small limits and little patience."""
    settings = {
        "AISIX_PROXY__UPLOAD_LIMIT_BYTES": str(LIMIT_BYTES),
        "AISIX_DOWNSTREAM__BODY_TIMEOUT_SECS": str(BODY_TIMEOUT_S),
    }
    with stand(tmp_path_factory.mktemp("stand"), settings) as running:
        running.gateway.create_caller_key(KEEPER, allowed_resources=list(FAMILIES))
        yield running


@pytest.fixture(scope="module")
def deployment() -> str:
    return unique("whisper")


@pytest.fixture(scope="module")
def alias(bench: Stand, deployment: str) -> str:
    return alias_of(bench, deployment)


@pytest.fixture(autouse=True)
def still_serving(bench: Stand, alias: str) -> Iterator[None]:
    """Whatever a test sent, the gateway must go on, hold nothing open, and show no traceback."""
    yield
    good = ask(bench, posted(form(("model", None, alias.encode()), FILE)))
    assert good.status == 200, good.body
    assert not [line for line in bench.gateway.lines() if '"exception"' in line]
    eventually(lambda: temporary_files(bench) == 0)


def temporary_files(bench: Stand) -> int:
    """Files without a name that the gateway holds open."""
    count = 0
    for link in Path(f"/proc/{bench.gateway.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "(deleted)" in str(link.readlink())
    return count


def posted(
    body: bytes, target: str = HEAR, headers: dict[str, str] | None = None, **more: str
) -> bytes:
    """A whole POST of a form, unless `headers` say otherwise."""
    return post(target, body, {"Content-Type": FORM, **(headers or {}), **more})


def ask(bench: Stand, request: bytes) -> Answer:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(request)
        return wire.answer()


def check_refused(answer: Answer, status: int, words: str) -> None:
    assert answer.status == status, answer.body
    assert words in answer.error["message"]
    assert answer.headers["x-request-id"]


def chunked(target: str, **headers: str) -> bytes:
    return head("POST", target, {"Transfer-Encoding": "chunked", "Content-Type": FORM, **headers})


# --- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3 * MB], ids=["small", "large"])
@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("multipart/form-data; boundary=another", "boundary"),
        ("multipart/form-data", "names no boundary"),
        ("multipart/form-data; boundary=", "names no boundary"),
        ("multipart/mixed; boundary=a-boundary", "multipart/form-data"),
        ("application/json", "multipart/form-data"),
        ("", "multipart/form-data"),
    ],
)
@pytest.mark.parametrize("by_path", [False, True], ids=["plain", "alias in path"])
def test_a_form_that_cannot_be_read_is_a_400(
    bench: Stand, alias: str, content_type: str, words: str, size: int, by_path: bool
) -> None:
    body = form(("model", None, alias.encode()), ("file", "a.wav", b"\0" * size))
    target = f"/openai/deployments/{alias}/audio/transcriptions" if by_path else HEAR
    check_refused(ask(bench, posted(body, target, {"Content-Type": content_type})), 400, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "does not begin"),
        (b"{}", "does not begin"),
        (form(FILE), "model is required"),
        (form(("model", None, b""), FILE), "must not be empty"),
        (form(("file", "a.wav", b"x" * 5 * MB)), "model is required"),
        (form(FILE)[:-8], "not complete"),
        (form(*[(f"p{n}", None, b"x") for n in range(300)]), "malformed"),
        (form(FILE, ("x" * 10_000, None, b"x")), "malformed"),
        (part_head("a\0b") + END, "malformed"),
    ],
    ids=["empty", "json", "no model", "blank", "large", "open", "parts", "header", "control"],
)
def test_a_form_that_is_wrong_is_told_why(bench: Stand, body: bytes, words: str) -> None:
    check_refused(ask(bench, posted(body)), 400, words)


def test_an_unknown_model_in_a_form_is_a_404(bench: Stand) -> None:
    answer = ask(bench, posted(form(("model", None, b"nobody"), FILE)))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_model_behind_5_mb_is_found(bench: Stand, version: str, framing: str) -> None:
    deployment = unique("whisper")
    alias = alias_of(bench, deployment, version)
    body = form(("file", "a.wav", b"\1" * 5 * MB), ("model", None, alias.encode()))
    request = posted(body)
    if framing == "chunked":
        pieces = [chunk(body[at : at + 70_000]) for at in range(0, len(body), 70_000)]
        request = chunked(HEAR) + b"".join([*pieces, b"0\r\n\r\n"])
    assert ask(bench, request).status == 200
    (record,) = bench.azure.requests(deployment=deployment)
    assert [part["size"] for part in record["form"]] == [5 * MB, len(deployment)]


@pytest.mark.parametrize("second", ["another", "gpt4o-secret"])
@pytest.mark.parametrize("version", VERSIONS)
def test_of_two_models_the_first_is_served_and_no_other_arrives(
    bench: Stand, second: str, version: str
) -> None:
    deployment = unique("whisper")
    alias = alias_of(bench, deployment, version)
    body = form(
        ("model", None, alias.encode()),
        FILE,
        ("model", None, second.encode()),
        ("Model", None, second.encode()),
    )
    assert ask(bench, posted(body)).status == 200
    (record,) = bench.azure.requests(deployment=deployment)
    values = [part["value"] for part in record["form"] if part["name"].lower() == "model"]
    assert set(values) == {deployment}


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate, gzip"])
@pytest.mark.parametrize("target", [HEAR, "/v1/images/edits", "/v1/files", "/v1/batches"])
def test_a_compressed_body_is_a_415(bench: Stand, alias: str, encoding: str, target: str) -> None:
    headers = {
        "Content-Encoding": encoding,
        "Authorization": f"Bearer {KEEPER}",
        "x-aisix-model": alias,
    }
    check_refused(ask(bench, posted(b"\x1f\x8b" * 100, target, headers)), 415, "uncompressed")


# --- sizes and times ----------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("target", [HEAR, "/v1/files", "path"])
def test_an_upload_over_the_limit_is_a_413_that_can_be_read(
    bench: Stand, alias: str, target: str, framing: str
) -> None:
    """The caller goes on sending and reads only then."""
    if target == "path":
        target = f"/openai/deployments/{alias}/audio/transcriptions?api-version={PREVIEW}"
    headers = {"Authorization": f"Bearer {KEEPER}", "x-aisix-model": alias, "Content-Type": FORM}
    begin = part_head("file", "a.wav")
    blocks = 3 * LIMIT_BYTES // MB
    with Wire(bench.gateway.proxy) as wire:
        if framing == "chunked":
            wire.send(chunked(target, **headers) + chunk(begin))
            for _ in range(blocks):
                wire.send(chunk(b"\0" * MB))
            wire.send(chunk(END) + b"0\r\n\r\n")
        else:
            length = len(begin) + blocks * MB + len(END)
            wire.send(head("POST", target, {**headers, "Content-Length": str(length)}) + begin)
            for _ in range(blocks):
                wire.send(b"\0" * MB)
            wire.send(END)
        answer = wire.answer()
        check_refused(answer, 413, f"{LIMIT_BYTES}-byte limit")


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a file", "all but the end"])
@pytest.mark.parametrize("by_path", [False, True], ids=["plain", "alias in path"])
def test_a_form_that_never_ends_is_a_408(
    bench: Stand, alias: str, sent: str, by_path: bool
) -> None:
    pieces = {
        "nothing": b"",
        "half a head": f"--{BOUNDARY}\r\nContent-Dispo".encode(),
        "half a file": part_head("file", "a.wav") + b"\0" * 100_000,
        "all but the end": form(("model", None, alias.encode()), FILE)[:-4],
    }
    target = f"/openai/deployments/{alias}/audio/transcriptions" if by_path else HEAR
    request = head("POST", target, {"Content-Type": FORM, "Content-Length": str(MB)})
    answer = ask(bench, request + pieces[sent])
    assert answer.status == 408, answer.body
    assert "took too long" in answer.error["message"]
    eventually(lambda: bench.azure.control("GET", "stats")["inflight"] == 0)


@pytest.mark.parametrize("where", ["before the model", "behind the model", "in a file"])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_caller_that_leaves_in_mid_upload_is_a_499_and_upstream_sees_the_end(
    bench: Stand, alias: str, where: str, how: str
) -> None:
    request_id = str(uuid.uuid4())
    deployment = unique("whisper")
    own = alias_of(bench, deployment)
    sent = {
        "before the model": (HEAR, part_head("file", "a.wav") + b"\0" * 3 * MB),
        "behind the model": (
            HEAR,
            form(("model", None, own.encode()))[: -len(END) + 2]
            + part_head("file", "a.wav")
            + b"\0" * MB,
        ),
        "in a file": ("/v1/files", part_head("file", "a.wav") + b"\0" * MB),
    }
    target, body = sent[where]
    headers = {
        "Authorization": f"Bearer {KEEPER}",
        "x-aisix-model": own,
        "x-aisix-request-id": request_id,
        "Content-Type": FORM,
        "Content-Length": str(7 * MB),
    }
    bench.azure.clear()
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("POST", target, headers) + body)
        if where != "before the model":
            (record,) = bench.azure.requests(phase="receiving", wait=1)
            assert record["outcome"] == ""
        if how == "reset":
            wire.reset()
    line = bench.gateway.access_line(request_id)
    assert (line["status"], line["outcome"]) == (499, "client_cancelled")
    eventually(lambda: bench.azure.control("GET", "stats")["inflight"] == 0)
    seen = bench.azure.requests()
    assert [record["outcome"] for record in seen] == (
        [] if where == "before the model" else ["client_closed"]
    )


@pytest.mark.parametrize("target", [HEAR, "/v1/files"])
def test_a_caller_that_waits_for_it_is_told_to_go_on(bench: Stand, alias: str, target: str) -> None:
    """As curl does before a large body."""
    fields = [("model", None, alias.encode()), ("purpose", None, b"user_data")]
    body = form(*(fields[1:] if target == "/v1/files" else fields[:1]), FILE)
    headers = {
        "Authorization": f"Bearer {KEEPER}",
        "x-aisix-model": alias,
        "Content-Type": FORM,
        "Content-Length": str(len(body)),
        "Expect": "100-continue",
    }
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("POST", target, headers))
        assert wire.answer_head()[0] == 100
        wire.send(body)
        assert wire.answer().status == 200
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("POST", "/v1/files", {**headers, "Authorization": f"Bearer {CALLER_KEY}"}))
        assert wire.answer_head()[0] == 403, "and is not told so in vain"


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..",
        "/v1/files/../models",
        "/v1/files/%2e%2e/models",
        "/v1/files/%2E%2E%2Fmodels",
        "/v1/files/a%2Fb",
        "/v1/files/a%5Cb",
        "/v1/files/a%00",
        "/v1/files/a%0d%0aX:1",
        "/v1/files/a%3Fb=c",
        "/v1/files/a%23b",
        "/v1/files/%252e%252e/models",
        "/v1/files/.hidden",
        "/v1/responses/..%2f..%2fmodels",
        "/v1/responses/%2e%2e",
        "/v1/responses/%2e%2e/input_items",
        "/v1/vector_stores/vs_1/files/../../../models",
        "/openai/deployments/%2e%2e/files/%2e%2e/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_no_path_leads_elsewhere(bench: Stand, alias: str, path: str, method: str) -> None:
    bench.azure.clear()
    headers = {"Authorization": f"Bearer {KEEPER}", "x-aisix-model": alias}
    answer = ask(bench, head(method, path, headers))
    assert answer.status in (400, 404, 405), answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert bench.azure.requests() == []


@pytest.mark.parametrize("path", ["/v1/whatever", "/v1", "/openai/v1/files2", "/v1/audio", "/"])
def test_an_unknown_path_is_a_404_with_the_list(bench: Stand, path: str) -> None:
    for method in ("GET", "POST"):
        answer = ask(bench, head(method, path, {"Content-Length": "0"}))
        check_refused(answer, 404, "this gateway serves")
        for spec in ENDPOINTS:
            assert spec.template in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", HEAR, "POST"),
        ("DELETE", "/v1/responses", "POST"),
        ("PUT", "/v1/responses/resp_1", "DELETE, GET"),
        ("POST", "/v1/responses/resp_1/input_items", "GET"),
        ("PUT", "/v1/files/file-1", "DELETE, GET, POST"),
        ("PATCH", "/v1/vector_stores/vs_1", "DELETE, GET, POST"),
        ("HEAD", "/v1/files/file-1/content", "DELETE, GET, POST"),
        ("PUT", "/openai/deployments/x/audio/speech", "POST"),
    ],
)
def test_a_wrong_method_is_a_405_that_says_which(
    bench: Stand, method: str, path: str, allowed: str
) -> None:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head(method, path, {"Content-Length": "0", "Connection": "close"}))
        status, headers = wire.answer_head()
    assert (status, headers["allow"]) == (405, allowed)


def test_azure_s_400_of_too_many_inputs_passes(bench: Stand) -> None:
    own = alias_of(bench, unique("embed"))
    answer = ask(bench, post("/v1/embeddings", {"model": own, "input": ["x"] * 2049}))
    assert answer.status == 400
    assert "2048" in answer.error["message"]


def test_a_header_that_names_no_model_is_refused_in_words(bench: Stand) -> None:
    for value in ("nobody", "a/../b", "x" * 5000, "é", "*"):
        headers = {"Authorization": f"Bearer {KEEPER}", "x-aisix-model": value}
        answer = ask(bench, head("GET", "/v1/files", headers))
        assert answer.status == 404, answer.body
        assert len(answer.body) < 2000


def test_nothing_of_a_caller_s_request_but_its_content_reaches_azure(
    bench: Stand, alias: str
) -> None:
    bench.azure.clear()
    forged = {
        "Authorization": f"Bearer {KEEPER}",
        "x-aisix-model": alias,
        "Cookie": "a=b",
        "x-sim-script": "err500",
        "Forwarded": "for=1.2.3.4",
        "X-Forwarded-Host": "evil",
        "Accept-Encoding": "gzip",
        "Range": "bytes=0-1",
        "api-key": KEEPER,
    }
    answer = ask(bench, posted(json.dumps({"a": 1}).encode(), "/v1/batches", forged))
    assert answer.status == 400
    (record,) = bench.azure.requests()
    named: dict[str, Any] = {name.lower(): value for name, value in record["header_list"]}
    allowed = {"host", "api-key", "accept", "accept-encoding", "user-agent", "content-type",
               "content-length", "x-aisix-request-id"}  # fmt: skip
    assert set(named) <= allowed
    assert KEEPER not in json.dumps(record)
    assert CALLER_KEY not in json.dumps(record)
