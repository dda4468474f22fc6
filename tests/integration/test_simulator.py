"""The simulator on real sockets: what its scripts do to the wire, and what its journal says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from aisix.simulator.server import Simulator
from tests.support.azure import API_VERSION, KEY, ask, azure, chat_path

PING = {"messages": [{"role": "user", "content": "ping"}]}
STREAM = {**PING, "stream": True}
TOKEN_FORM = (
    b"grant_type=client_credentials&client_id=app&client_secret=simulator-secret"
    b"&scope=https://cognitiveservices.azure.com/.default"
)


@contextlib.asynccontextmanager
async def caller(
    sim: Simulator, deployment: str, body: Any = STREAM
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has sent one chat request and reads as the test likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port, limit=2**16)
    writer.write(request(deployment, body))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request(deployment: str, body: Any = PING, *, extra: str = "") -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST {chat_path(deployment)} HTTP/1.1\r\nhost: sim\r\napi-key: {KEY}\r\n"
        f"content-length: {len(payload)}\r\n{extra}\r\n"
    )
    return head.encode() + payload


@pytest.mark.gen_test
async def test_an_answer_and_its_record() -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path("gpt4o-prod"), PING)
        record = await sim.wait_for(lambda r: r.outcome == "completed")
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"].endswith("You said: ping")
    assert answer.headers["connection"] == "close"
    assert (record.operation, record.deployment) == ("chat/completions", "gpt4o-prod")
    assert record.query == {"api-version": API_VERSION}
    assert record.json == PING
    assert record.headers["api-key"] == KEY
    assert ("api-key", KEY) in record.header_list
    assert record.bytes_sent == len(answer.body)
    assert record.status == 200


@pytest.mark.gen_test
async def test_a_stream_is_one_chunk_per_event() -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path("echo-n5"), STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(answer.chunks) == len(answer.events) == 1 + 1 + 5 + 1 + 1
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert answer.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.gen_test
@pytest.mark.parametrize("script", ["split1", "split7-crlf", "burst", "comments-crlf"])
async def test_the_form_of_a_stream_does_not_change_what_it_says(script: str) -> None:
    async with azure() as sim:
        usual = await ask(sim, chat_path("echo"), STREAM)
        other = await ask(sim, chat_path(script), STREAM)

    def words(events: list[Any]) -> str:
        return "".join(c["delta"].get("content") or "" for e in events[:-1] for c in e["choices"])

    assert words(other.events) == words(usual.events)
    assert other.events[-1] == "[DONE]"
    if script.startswith("split"):
        size = int(script.removeprefix("split").split("-")[0])
        assert {len(chunk) for chunk in other.chunks[:-1]} == {size}
    if "crlf" in script:
        assert b"\n" not in other.body.replace(b"\r\n", b"")
    if script == "burst":
        assert len(other.chunks) == 1
    if "comments" in script:
        assert other.body.count(b": keep-alive\r\n\r\n") == len(other.events)


@pytest.mark.gen_test
async def test_json_can_be_split_and_chunked() -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path("chunked-split100"), PING)
    assert len(answer.chunks) > 5
    assert answer.json["object"] == "chat.completion"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("script", "whole_events", "ended", "was_reset"),
    [
        ("cut3", 3, False, False),
        ("cut0", 0, False, False),
        ("end3", 3, True, False),
        ("reset3", 3, False, True),
        ("half3", 3, False, False),
        ("fail3", 4, True, False),
        ("nodone", 10, True, False),
    ],
)
async def test_a_stream_can_end_badly(
    script: str, whole_events: int, ended: bool, was_reset: bool
) -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path(script), STREAM)
        record = await sim.wait_for(lambda r: r.outcome)
    assert answer.status == 200
    assert answer.raw.endswith(b"0\r\n\r\n") is ended
    assert answer.was_reset is was_reset
    assert answer.body.count(b"\n\n") == whole_events
    assert b"[DONE]" not in answer.body
    assert record.outcome == ("completed" if ended else "cut")
    if script == "half3":
        assert not answer.body.endswith(b"\n\n")
    if script == "fail3":
        assert "error" in answer.events[-1]


@pytest.mark.gen_test
@pytest.mark.parametrize("script", ["cut40", "half40", "reset40", "end40"])
async def test_a_json_body_can_end_badly_at_any_byte(script: str) -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path(script), PING)
    assert answer.status == 200
    if script == "cut40":
        assert len(answer.body) == 40 < int(answer.headers["content-length"])
    if script == "half40":
        assert 40 < len(answer.body) < int(answer.headers["content-length"])
    if script == "end40":
        assert len(answer.body) == 40
        assert answer.raw.endswith(b"0\r\n\r\n")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("script", "raw"),
    [("drop", b""), ("rst", b""), ("garbage", b"\x15\x03"), ("halfhead", b"HTTP/1.1 200")],
)
async def test_an_answer_may_never_become_one(script: str, raw: bytes) -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path(script), PING)
        record = await sim.wait_for(lambda r: r.outcome)
    assert answer.raw.startswith(raw)
    assert b"\r\n\r\n{" not in answer.raw
    assert answer.was_reset is (script == "rst")
    assert record.outcome == "cut"


@pytest.mark.gen_test
async def test_early_hints_come_before_the_answer() -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path("hints"), PING)
    assert answer.raw.startswith(b"HTTP/1.1 103 ")
    assert answer.status == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("script", ["hang", "stall3", "slow60000", "gap60000", "n9-d60000"])
async def test_the_journal_notices_at_once_that_the_caller_left(script: str) -> None:
    async with azure() as sim:
        async with caller(sim, script):
            await sim.wait_for(
                lambda r: r.phase in ("hanging", "stalled", "delayed") or r.events_sent
            )
        record = await sim.wait_for(lambda r: r.outcome == "client_closed")
        assert sim.stats()["inflight"] == sim.stats()["waiting"] == 0
    assert record.phase == "done"


@pytest.mark.gen_test
async def test_a_stalled_stream_goes_on_when_released() -> None:
    async with azure() as sim:
        async with caller(sim, "stall3") as (reader, _):
            record = await sim.wait_for(lambda r: r.phase == "stalled")
            assert record.events_sent == 3
            assert sim.stats()["waiting"] == 1
            assert sim.release() == 1
            received = await reader.readuntil(b"0\r\n\r\n")
        assert received.count(b"data: ") == 11
        assert record.outcome == "completed"
        assert sim.release() == 0


@pytest.mark.gen_test
async def test_a_hanging_answer_comes_when_released() -> None:
    async with azure() as sim, caller(sim, "hang", PING) as (reader, _):
        await sim.wait_for(lambda r: r.phase == "hanging")
        sim.release()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.gen_test
async def test_delays_are_kept() -> None:
    async with azure() as sim:
        started = time.monotonic()
        await ask(sim, chat_path("slow60-gap40-n2-d20"), STREAM)
        assert time.monotonic() - started >= 0.06 + 0.04 + 5 * 0.02


@pytest.mark.gen_test
async def test_a_request_that_stops_half_way_is_recorded() -> None:
    async with azure() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.write(request("echo")[:-5])
        await sim.wait_for(lambda r: r.body_bytes > 0)
        writer.close()
        await writer.wait_closed()
        record = await sim.wait_for(lambda r: r.outcome == "client_closed")
        assert not reader.at_eof() or record.status == 0
    assert record.body_bytes == len(record.body) == len(json.dumps(PING)) - 5


@pytest.mark.gen_test
async def test_a_reader_that_stops_holds_the_simulator_back() -> None:
    async with azure(send_buffer_bytes=256 * 1024) as sim:
        async with caller(sim, "bulk16") as (reader, _):
            record = await sim.wait_for(lambda r: r.bytes_sent > 0)
            await reader.readexactly(100_000)
            assert record.bytes_sent < 16 * 1024 * 1024
            received = 100_000
            while chunk := await reader.read(2**20):
                received += len(chunk)
                if record.outcome:
                    break
        assert record.outcome == "completed"
        assert record.bytes_sent > 16 * 1024 * 1024


@pytest.mark.gen_test
async def test_a_connection_is_kept_and_reused_unless_scripted_otherwise() -> None:
    async with azure() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        for _ in range(3):
            writer.write(request("echo"))
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
        writer.write(request("closeafter"))
        last = await reader.read()
        assert b"connection: close" not in last
        writer.write(request("echo"))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert sim.stats()["connections_opened"] == 1
        assert {record.connection for record in sim.requests} == {1}
        assert "connection: close" in (await ask(sim, chat_path("close"), PING, close=False)).head


@pytest.mark.gen_test
async def test_old_http_gets_no_chunks() -> None:
    async with azure() as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.write(request("echo", STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert b"transfer-encoding" not in received
    assert received.endswith(b"data: [DONE]\n\n")


@pytest.mark.gen_test
async def test_the_header_and_the_queue_script_a_request() -> None:
    async with azure() as sim:
        sim.script("dep", "err503", times=2)
        by_queue = [(await ask(sim, chat_path("dep"), PING)).status for _ in range(3)]
        by_header = await ask(sim, chat_path("dep"), PING, x_sim_script="err429 retry7")
        wrong = await ask(sim, chat_path("dep"), PING, x_sim_script="nonsense")
    assert by_queue == [503, 503, 200]
    assert (by_header.status, by_header.headers["retry-after"]) == (429, "7")
    assert wrong.status == 400
    assert "nonsense" in wrong.json["error"]["message"]


@pytest.mark.gen_test
async def test_a_token_opens_the_resource_until_revoked() -> None:
    async with azure() as sim:
        answer = await ask(sim, "/tid/oauth2/v2.0/token", TOKEN_FORM)
        bearer = f"Bearer {answer.json['access_token']}"
        assert (await ask(sim, chat_path(), PING, authorization=bearer)).status == 200
        sim.revoke_tokens()
        refused = await ask(sim, chat_path(), PING, authorization=bearer)
        assert len(sim.token_requests) == 1
        assert len(sim.azure_requests) == 2
    assert refused.status == 401
    assert "error" not in refused.json


@pytest.mark.gen_test
async def test_the_token_endpoint_is_scripted_under_its_own_name() -> None:
    async with azure() as sim:
        sim.script("@entra", "err429 retry3")
        sim.script("@entra", "drop")
        throttled = await ask(sim, "/tid/oauth2/v2.0/token", TOKEN_FORM)
        dropped = await ask(sim, "/tid/oauth2/v2.0/token", TOKEN_FORM)
        wrong = await ask(sim, "/tid/oauth2/v2.0/token", TOKEN_FORM, x_sim_script="oops")
        document = await ask(sim, "/tid/v2.0/.well-known/openid-configuration")
    assert (throttled.status, throttled.headers["retry-after"]) == (429, "3")
    assert dropped.raw == b""
    assert wrong.status == 400
    assert document.json["token_endpoint"] == f"{sim.url}/tid/oauth2/v2.0/token"


@pytest.mark.gen_test
async def test_without_entra_the_token_path_is_unknown() -> None:
    async with azure(entra=False) as sim:
        assert (await ask(sim, "/tid/oauth2/v2.0/token", TOKEN_FORM)).status == 404


@pytest.mark.gen_test
@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b'{"messages": NaN}', b"\xff", b""])
async def test_a_body_that_is_not_json_is_told_so(body: bytes) -> None:
    async with azure() as sim:
        answer = await ask(sim, chat_path(), body)
    assert answer.status == 400
    assert "could not parse" in answer.json["error"]["message"]


@pytest.mark.gen_test
async def test_the_control_endpoint_scripts_lists_and_releases() -> None:
    async with azure() as sim:
        queued = await ask(sim, "/_sim/script", {"deployment": "dep", "script": "stall1"})
        assert queued.json == {"deployment": "dep", "script": "stall1", "times": 1}
        async with caller(sim, "dep") as (reader, _):
            found = await ask(sim, "/_sim/requests?wait=1&phase=stalled&timeout_ms=5000")
            assert found.json["requests"][0]["deployment"] == "dep"
            assert (await ask(sim, "/_sim/release", {})).json == {"released": 1}
            await reader.readuntil(b"[DONE]")
        assert (await ask(sim, "/_sim/stats")).json["outcomes"] == {"completed": 1}
        late = await ask(sim, "/_sim/requests?wait=1&outcome=cut&timeout_ms=1")
        assert (late.status, late.json["count"]) == (408, 0)
        assert (await ask(sim, "/_sim/health")).json == {"status": "ok"}
        assert "err-<NAME>" in (await ask(sim, "/_sim/vocabulary")).json["tokens"]
        assert (await ask(sim, "/_sim/revoke_tokens", {})).json == {"revoked": True}
        assert len(sim.requests) == 1


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/_sim/script", {"script": "nonsense"}, 400),
        ("/_sim/script", {"deployment": "dep"}, 400),
        ("/_sim/script", b"{", 400),
        ("/_sim/script", {"script": "drop", "times": 0}, 400),
        ("/_sim/script", {"script": "drop", "times": "2"}, 400),
        ("/_sim/requests?wait=x", None, 400),
        ("/_sim/elsewhere", None, 404),
    ],
)
async def test_the_control_endpoint_says_what_is_wrong(path: str, body: Any, status: int) -> None:
    async with azure() as sim:
        answer = await ask(sim, path, body)
    assert answer.status == status
    assert answer.json["error"]


@pytest.mark.gen_test
async def test_records_and_scripts_can_be_cleared_over_http() -> None:
    async with azure() as sim:
        await ask(sim, chat_path(), PING)
        sim.script("dep", "err500")
        for path in ("/_sim/requests", "/_sim/script"):
            reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
            writer.write(f"DELETE {path} HTTP/1.1\r\nconnection: close\r\nhost: s\r\n\r\n".encode())
            assert b"200 OK" in await reader.read()
            writer.close()
            await writer.wait_closed()
        assert sim.requests == []
        assert (await ask(sim, chat_path("dep"), PING)).status == 200


@pytest.mark.gen_test
async def test_waiting_in_vain_says_what_there_is_instead() -> None:
    async with azure() as sim:
        await ask(sim, chat_path("dep"), PING)
        with pytest.raises(TimeoutError, match="deployments/dep"):
            await sim.wait_for(lambda r: r.outcome == "cut", timeout_s=0.01)


@pytest.mark.gen_test
async def test_https_is_served(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    pair = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    async with azure(tls=pair) as sim:
        assert sim.url.startswith("https://")
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port, ssl=context)
        writer.write(request("reset2", STREAM))
        received = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                received += data
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        record = await sim.wait_for(lambda r: r.outcome == "cut")
    assert received.startswith(b"HTTP/1.1 200")
    assert record.events_sent == 2


@pytest.mark.gen_test
async def test_stopping_ends_everything_and_leaks_nothing() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with azure() as sim:
        await ask(sim, chat_path(), PING)
    before = descriptors()
    for _ in range(5):
        async with azure() as sim:
            reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
            writer.write(request("stall1", STREAM))
            record = await sim.wait_for(lambda r: r.phase == "stalled")
            await sim.stop()
            assert record.outcome == "stopped"
            assert not sim.tasks
            await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await sim.stop()
    await asyncio.sleep(0)
    assert descriptors() <= before


@pytest.mark.gen_test
async def test_the_journal_keeps_the_newest_and_counts_all() -> None:
    async with azure(keep_requests=2, keep_body_bytes=4) as sim:
        for name in ("a", "b", "c"):
            await ask(sim, chat_path(name), PING)
        assert [record.deployment for record in sim.requests] == ["b", "c"]
        assert sim.stats()["requests"] == 3
        assert sim.requests[0].body == b'{"me'
        assert sim.requests[0].body_bytes > 4
