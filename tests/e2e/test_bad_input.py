"""Bad input by hand, over raw sockets: each gets a clear answer, and the next request is served."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.process import Answer, Stand
from tests.support.wire import Wire, chat, head, post

CHAT = "/v1/chat/completions"
LIMIT_BYTES = 32 * 1024 * 1024
MESSAGES = [{"role": "user", "content": "ping"}]


@pytest.fixture(scope="module")
def alias(bench: Stand) -> str:
    return bench.alias("gpt4o-prod")


@pytest.fixture(autouse=True)
def still_serving(bench: Stand, alias: str) -> Iterator[None]:
    """Whatever a test sent, the gateway must go on, without a traceback."""
    yield
    assert bench.gateway.chat(alias).status == 200
    assert not [line for line in bench.gateway.lines() if '"exception"' in line]


def ask(bench: Stand, request: bytes) -> Answer:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(request)
        return wire.answer()


def check_refused(answer: Answer, status: int, code: str = "invalid_request_error") -> str:
    """The envelope, whole and right; the message."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.error["code"] == code
    assert answer.error["message"]
    return str(answer.error["message"])


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b'{"model":',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":NaN}]}',
        b'{"model":"m","messages":[{}],"temperature":Infinity}',
        b'{"model":"m","messages":[{}],"temperature":-Infinity}',
        b"{}",
        b'{"model":["x"],"messages":[{}]}',
        b'{"model":{"a":1},"messages":[{}]}',
        b'{"model":7,"messages":[{}]}',
        b'{"model":null,"messages":[{}]}',
        b'{"model":"","messages":[{}]}',
        b'{"model":"m"}',
        b'{"model":"m","messages":null}',
        b'{"model":"m","messages":[]}',
        b'{"model":"m","messages":"ping"}',
        b'{"model":"m","messages":[{}],"stream":"yes"}',
        b'{"model":"m","messages":[{}],"stream_options":[]}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_cannot_be_understood_is_a_400(bench: Stand, body: bytes) -> None:
    check_refused(ask(bench, post(CHAT, body)), 400)


def test_a_deeply_nested_part_of_a_good_body_is_answered(bench: Stand, alias: str) -> None:
    deep = "[" * 5000 + "]" * 5000
    text = json.dumps({"model": alias, "messages": MESSAGES, "metadata": 0})
    answer = ask(bench, post(CHAT, text.replace('"metadata": 0', f'"metadata": {deep}').encode()))
    assert answer.status in (200, 400)
    if answer.status == 400:
        check_refused(answer, 400)


@pytest.mark.parametrize("where", ["model", "content"])
def test_a_lone_surrogate_survives(bench: Stand, alias: str, where: str) -> None:
    body: Any = {"model": alias, "messages": [{"role": "user", "content": "half \ud83d"}]}
    if where == "model":
        body["model"] = "half-\ud83d"
    answer = ask(bench, post(CHAT, json.dumps(body).encode()))
    if where == "model":
        check_refused(answer, 404, "model_not_found")
    else:
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"].endswith("half \ud83d")


@pytest.mark.parametrize("name", ["a/b", "../x", " ", "\x00", "x" * 100_000, "é", "*"])
def test_a_strange_model_name_is_not_found(bench: Stand, name: str) -> None:
    message = check_refused(
        ask(bench, post(CHAT, {"model": name, "messages": MESSAGES})), 404, "model_not_found"
    )
    assert len(message) < 2_000


@pytest.mark.parametrize("name", ["a%2Fb", "%2e%2e", "%00", "%zz", "a%20b"])
def test_a_strange_alias_in_the_path_is_not_found(bench: Stand, name: str) -> None:
    for path in (f"/v1/models/{name}", f"/openai/v1/models/{name}"):
        answer = ask(bench, head("GET", path))
        check_refused(answer, 404, "model_not_found")
    path = f"/openai/deployments/{name}/chat/completions?api-version=1"
    check_refused(ask(bench, post(path, {"messages": MESSAGES})), 404, "model_not_found")


def test_a_path_that_is_not_utf8_is_a_400(bench: Stand) -> None:
    check_refused(ask(bench, head("GET", "/v1/models/%ff")), 400)


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_of_50_mb_gets_a_413_that_the_caller_can_read(bench: Stand, framing: str) -> None:
    """The answer must not be lost in a reset while the caller is still sending."""
    size = 50 * 1024 * 1024
    piece = b"x" * 65536
    headers = {"Content-Type": "application/json"}
    if framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Content-Length"] = str(size)
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("POST", CHAT, headers))
        for _ in range(size // len(piece)):
            wire.send(b"10000\r\n" + piece + b"\r\n" if framing == "chunked" else piece)
        if framing == "chunked":
            wire.send(b"0\r\n\r\n")
        answer = wire.answer()
    message = check_refused(answer, 413, "request_too_large")
    assert str(LIMIT_BYTES) in message


def test_a_body_of_the_largest_size_is_served(bench: Stand, alias: str) -> None:
    frame = len(json.dumps({"model": alias, "messages": MESSAGES, "user": ""}))
    body = {"model": alias, "messages": MESSAGES, "user": "x" * (LIMIT_BYTES - frame)}
    request = post(CHAT, body)
    assert ask(bench, request).status == 200


def test_a_body_that_stops_half_way_does_not_hold_others_up(bench: Stand, alias: str) -> None:
    request_id = str(uuid.uuid4())
    whole = chat(alias, {"x-aisix-request-id": request_id})
    with Wire(bench.gateway.proxy) as wire:
        wire.send(whole[:-10])
        assert bench.gateway.chat(alias).status == 200
        wire.send_eof()
        assert wire.rest() == b""
    assert bench.gateway.access_line(request_id)["status"] == 499


def test_a_body_in_single_bytes_is_served(bench: Stand, alias: str) -> None:
    with Wire(bench.gateway.proxy) as wire:
        for byte in chat(alias):
            wire.send(bytes([byte]))
        assert wire.answer().status == 200


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
def test_a_compressed_body_is_a_415_in_words(bench: Stand, alias: str, encoding: str) -> None:
    answer = ask(bench, chat(alias, {"Content-Encoding": encoding}))
    assert "compress" in check_refused(answer, 415, "unsupported_content_encoding")


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml"]
)
def test_another_content_type_is_a_400_in_words(bench: Stand, alias: str, kind: str) -> None:
    assert "application/json" in check_refused(ask(bench, chat(alias, {"Content-Type": kind})), 400)


@pytest.mark.parametrize("kind", ["", "application/json", "APPLICATION/JSON; charset=UTF-8"])
def test_usual_content_types_are_taken(bench: Stand, alias: str, kind: str) -> None:
    assert ask(bench, chat(alias, {"Content-Type": kind})).status == 200


def test_two_hundred_headers_do_not_reach_azure(bench: Stand, alias: str) -> None:
    headers = {f"x-custom-{n}": "v" * 20 for n in range(200)}
    assert ask(bench, chat(alias, headers)).status == 200
    newest = bench.azure.requests()[-1]["headers"]
    assert not [name for name in newest if name.startswith("x-custom")]


def test_a_head_without_end_is_refused(bench: Stand) -> None:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\nx: " + b"a" * 200_000)
        assert not wire.rest().startswith(b"HTTP/1.1 2")


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nx-api-key: sk-azure-caller\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: g\r\nx-api-key: sk-azure-caller\r\n"
MALFORMED = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "a bad length": POST + b"Content-Length: x\r\n\r\n{}",
    "a negative length": GET + b"Content-Length: -1\r\n\r\n",
    "a length in parts": POST + b"Content-Length: 1 2\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an odd coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a NUL in a header": GET + b"x-a: b\x00c\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "a space in a name": GET + b"x y: z\r\n\r\n",
    "a header that begins folded": b"GET /v1/models HTTP/1.1\r\n x: y\r\nHost: g\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_framing_is_refused_and_the_connection_closed(bench: Stand, name: str) -> None:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(MALFORMED[name])
        said = wire.rest()
    first = said.split(b"\r\n")[0]
    assert first in (b"", b"HTTP/1.1 400 Bad Request"), said
    assert said.count(b"HTTP/1.1 ") <= 1


@pytest.mark.parametrize(
    "credential", ["Bearer", "Bearer  ", "Basic eDp5", "bearer sk-azure-caller", "Bearer sk-\xff"]
)
def test_a_strange_credential_is_a_401(bench: Stand, alias: str, credential: str) -> None:
    answer = ask(bench, chat(alias, {"Authorization": credential}))
    check_refused(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("value", ["", "two words", "x" * 300, "tab\there", "\xe9"])
def test_an_unusable_request_id_is_replaced(bench: Stand, value: str) -> None:
    answer = ask(bench, head("GET", "/v1/models", {"x-aisix-request-id": value}))
    assert answer.status == 200
    uuid.UUID(answer.headers["x-aisix-request-id"])


# --- methods, routes, protocol ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_a_405_that_names_the_right_one(bench: Stand, method: str) -> None:
    answer = ask(bench, head(method, CHAT))
    check_refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_head_is_a_405_without_a_body(bench: Stand) -> None:
    with Wire(bench.gateway.proxy) as wire:
        wire.send(head("HEAD", CHAT, {"Connection": "close"}))
        status, headers = wire.answer_head()
        assert wire.rest() == b""
    assert status == 405
    assert headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND"])
def test_an_odd_method_is_refused_in_the_envelope(bench: Stand, method: str) -> None:
    check_refused(ask(bench, head(method, CHAT)), 405, "method_not_allowed")


def test_an_unknown_method_is_no_http(bench: Stand) -> None:
    check_refused(ask(bench, head("BREW", CHAT)), 400)


NOWHERE = """/ /v1 /v1/ /v2/chat/completions /v1/chat /openai /metrics /admin/v1/models
/v1/chat/completions/x /openai/deployments /openai/deployments/a /%2e%2e/etc/passwd"""


@pytest.mark.parametrize("path", NOWHERE.split())
def test_no_route_is_a_404_that_lists_what_there_is(bench: Stand, path: str) -> None:
    message = check_refused(ask(bench, head("GET", path)), 404, "not_found")
    assert "/v1/chat/completions" in message


@pytest.mark.parametrize(
    "path", ["//v1//chat/completions", "/v1/chat/completions/", "/v1/chat/completions?x=y"]
)
def test_pasted_paths_are_tolerated(bench: Stand, alias: str, path: str) -> None:
    assert ask(bench, post(path, {"model": alias, "messages": MESSAGES})).status == 200


def test_an_absolute_target_is_served(bench: Stand, alias: str) -> None:
    """Proxies are asked like this."""
    answer = ask(bench, head("GET", f"{bench.gateway.proxy}/v1/models"))
    assert answer.status in (200, 404)


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_is_served_and_closed(bench: Stand, alias: str, stream: bool) -> None:
    request = chat(alias, stream=stream).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    with Wire(bench.gateway.proxy) as wire:
        wire.send(request)
        said = wire.rest()
    top, _, body = said.partition(b"\r\n\r\n")
    assert top.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"transfer-encoding: chunked" not in top.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(body)["object"] == "chat.completion"


def test_expect_100_continue_is_answered(bench: Stand, alias: str) -> None:
    top, _, body = chat(alias, {"Expect": "100-continue"}).partition(b"\r\n\r\n")
    with Wire(bench.gateway.proxy) as wire:
        wire.send(top + b"\r\n\r\n")
        assert wire.answer_head()[0] == 100
        wire.send(body)
        assert wire.answer().status == 200


def test_pipelined_requests_are_answered_in_order(bench: Stand, alias: str) -> None:
    names = [uuid.uuid4().hex for _ in range(5)]
    with Wire(bench.gateway.proxy) as wire:
        wire.send(
            b"".join(
                chat(alias, {"x-aisix-request-id": name}, stream=bool(n % 2))
                for n, name in enumerate(names)
            )
        )
        answers = [wire.answer() for _ in names]
    assert [answer.headers["x-aisix-request-id"] for answer in answers] == names
    assert [answer.status for answer in answers] == [200] * 5
    assert answers[1].events[-1] == "[DONE]"


def test_a_refusal_keeps_the_connection_usable(bench: Stand, alias: str) -> None:
    with Wire(bench.gateway.proxy) as wire:
        for request, status in (
            (post("/nowhere", b"x" * 100_000), 404),
            (chat(alias, {"Authorization": "Bearer wrong"}), 401),
            (post(CHAT, b"not json"), 400),
            (chat("unknown"), 404),
            (chat(alias), 200),
        ):
            wire.send(request)
            assert wire.answer().status == status
