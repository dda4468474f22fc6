"""Realtime sessions with the official openai SDK, through processes: OpenAI's class and Azure's,
blocking and async, one worker and two, plain and over TLS; and how they end with the process."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.process import CALLER_KEY, ROOT, Stand, stand
from tests.support.tls import make_certificate
from tests.support.workers import crowd

DATED = "2025-04-01-preview"


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def crew(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    with crowd(tmp_path_factory.mktemp("crew"), request.param) as running:
        yield running


def ws(bench: Stand, path: str) -> str:
    return bench.gateway.proxy.replace("http", "ws", 1) + path


def openai_of(bench: Stand, key: str = CALLER_KEY) -> OpenAI:
    proxy = bench.gateway.proxy
    return OpenAI(base_url=f"{proxy}/v1", websocket_base_url=ws(bench, "/v1"), api_key=key)


def azure_of(bench: Stand) -> AzureOpenAI:
    return AzureOpenAI(
        azure_endpoint=bench.gateway.proxy,
        websocket_base_url=ws(bench, "/openai"),
        api_key=CALLER_KEY,
        api_version="2024-10-01-preview",
    )


def converse(connection: Any, alias: str) -> str:
    """Configure a session, ask, and read the answer; the text of it."""
    created = connection.recv()
    assert (created.type, created.session.model) == ("session.created", alias)
    connection.session.update(session={"type": "realtime", "model": alias, "modalities": ["text"]})
    assert connection.recv().session.model == alias
    item = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Say hello."}],
    }
    connection.conversation.item.create(item=item)
    connection.response.create()
    said = ""
    for event in connection:
        if event.type.endswith("text.delta"):
            said += event.delta
        elif event.type == "response.done":
            assert event.response.usage.output_tokens == 3
            return said
    raise AssertionError("the session ended before its response")


@pytest.mark.parametrize("version", [DATED, "v1"])
def test_the_blocking_sdk_converses(crew: Stand, version: str) -> None:
    alias = crew.alias("rt", api_version=version)
    with openai_of(crew) as client, client.realtime.connect(model=alias) as connection:
        assert converse(connection, alias) == "a" * 12
    with azure_of(crew) as azure_client, azure_client.realtime.connect(model=alias) as connection:
        assert converse(connection, alias) == "a" * 12


@pytest.mark.parametrize("kind", ["OpenAI", "AzureOpenAI"])
def test_the_async_sdk_converses(crew: Stand, kind: str) -> None:
    alias = crew.alias("rt-n2", api_version="v1")

    async def talk() -> None:
        client: AsyncOpenAI
        if kind == "OpenAI":
            client = AsyncOpenAI(
                base_url=f"{crew.gateway.proxy}/v1",
                websocket_base_url=ws(crew, "/openai/v1"),
                api_key=CALLER_KEY,
            )
        else:
            client = AsyncAzureOpenAI(
                azure_endpoint=crew.gateway.proxy,
                websocket_base_url=ws(crew, "/openai"),
                api_key=CALLER_KEY,
                api_version=DATED,
            )
        async with client, client.realtime.connect(model=alias) as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.response.create()
            kinds = []
            async for event in connection:
                kinds.append(event.type)
                if event.type == "response.done":
                    break
            assert kinds.count("response.output_audio.delta") == 2

    asyncio.run(talk())


def in_a_browser(bench: Stand, key: str, alias: str) -> dict[str, Any]:
    """What a browser's WebSocket has seen."""
    done = subprocess.run(
        [
            *("node", "--no-warnings", "--experimental-websocket", "tests/data/js/browser.mjs"),
            *(ws(bench, f"/v1/realtime?model={alias}"), key),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.service("node")
def test_a_browser_converses_with_its_key_as_a_subprotocol(crew: Stand) -> None:
    alias = crew.alias("rt-n1", api_version=DATED)
    seen = in_a_browser(crew, CALLER_KEY, alias)
    assert (seen["protocol"], seen["extensions"], seen["model"]) == ("realtime", "", alias)
    assert "response.audio.delta" in seen["events"]
    assert (seen["code"], seen["wasClean"]) == (4321, True)
    assert in_a_browser(crew, "sk-wrong", alias)["failed"]
    record = crew.azure.requests(operation="realtime", deployment="rt-n1")[-1]
    assert record["close_code"] == 4321
    assert CALLER_KEY not in json.dumps(record)


def test_a_session_is_counted_and_logged_once(tmp_path: Path) -> None:
    with stand(tmp_path) as bench:
        alias = bench.alias("rt-cached2", api_version=DATED)
        with openai_of(bench) as client, client.realtime.connect(model=alias) as connection:
            connection.response.create()
            connection.response.create()
            dones = 0
            while dones < 2:
                dones += connection.recv().type == "response.done"
        line = bench.gateway.events("request.completed")[0]
        scrape = bench.gateway.scrape()
        with pytest.raises(InvalidStatus):
            openai_of(bench, "sk-wrong").realtime.connect(model=alias).enter()
        refused = bench.gateway.events("request.completed", count=2)[1]
        record = bench.azure.requests(operation="realtime")[0]
    assert (line["method"], line["path"], line["endpoint"]) == (
        "GET",
        "/v1/realtime",
        "/v1/realtime",
    )
    assert (line["status"], line["outcome"], line["model"]) == (101, "success", alias)
    assert (line["closed_by"], line["close_code"]) == ("caller", 1000)
    assert line["stream"] is True
    assert line["completion_tokens"] == 6
    assert line["total_tokens"] == line["prompt_tokens"] + 6
    assert line["ttft_ms"] > 0
    assert line["finish_reason"] == "completed"
    assert record["close_code"] == 1000
    assert refused["status"] == 401
    assert CALLER_KEY not in str(line)
    total = re.findall(r"^aisix_llm_requests_total\{(.*realtime.*)\} 1.0$", scrape, re.MULTILINE)
    assert len(total) == 1
    assert 'status="101"' in total[0]
    assert 'outcome="success"' in total[0]
    output = r'^aisix_llm_output_tokens_total\{.*endpoint="/v1/realtime".*\} 6.0$'
    assert re.search(output, scrape, re.MULTILINE)
    assert re.search(r"^aisix_proxy_in_flight_requests\{.*realtime.*\} 0.0$", scrape, re.MULTILINE)


def test_a_session_crosses_tls_on_both_sides(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    settings = {
        "AISIX_PROXY__TLS__CERT_FILE": str(certificate.chain),
        "AISIX_PROXY__TLS__KEY_FILE": str(certificate.key),
        "AISIX_UPSTREAM__TLS__CA_FILE": str(certificate.authority),
    }
    trusting = ssl.create_default_context(cafile=str(certificate.authority))
    with stand(tmp_path, settings, certificate.arguments) as bench:
        alias = bench.alias("rt-size20000-n20", api_version="v1")
        client = openai_of(bench)
        options: Any = {"ssl": trusting}
        with (
            client,
            client.realtime.connect(
                model=alias, websocket_connection_options=options
            ) as connection,
        ):
            quiet: Any = {"type": "realtime", "modalities": ["text"]}
            connection.session.update(session=quiet)
            connection.input_audio_buffer.append(audio="A" * 300_000)
            connection.response.create()
            said = 0
            while (event := connection.recv()).type != "response.done":
                said += len(getattr(event, "delta", ""))
            assert said == 20 * 20_000


@pytest.mark.parametrize("workers", [1, 2])
def test_sessions_are_awaited_and_then_closed_with_a_code(tmp_path: Path, workers: int) -> None:
    settings = {"AISIX_SHUTDOWN__MAX_DRAIN_SECS": "1"}
    with crowd(tmp_path, workers, settings) as bench:
        alias = bench.alias("rt", api_version=DATED)
        with closing(openai_of(bench)) as client:
            connection = client.realtime.connect(model=alias).enter()
            connection.recv()
            bench.gateway.send_signal(15)
            bench.gateway.events("gateway.draining")
            connection.response.create()
            while connection.recv().type != "response.done":
                pass  # still served
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
            connection.close()
        ended = bench.gateway.wait()
        record = bench.azure.requests(operation="realtime")[0]
    assert ended.status == 1
    assert record["close_code"] == 1012
