"""The proxy API over TLS, with a certificate of the operator's own: one worker, and two."""

from __future__ import annotations

import http.client
import json
import signal
import ssl
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIConnectionError, DefaultHttpxClient, OpenAI

from tests.support.process import CALLER_KEY, WAIT_S, Stand
from tests.support.tls import Certificate, make_certificate
from tests.support.workers import crowd

MESSAGES: list[Any] = [{"role": "user", "content": "ping"}]
SAID = "Hello from Azure OpenAI! You said: ping"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@contextmanager
def listening(folder: Path, workers: int, certificate: Certificate) -> Iterator[Stand]:
    """A gateway whose proxy API is served with `certificate`."""
    settings = {
        "AISIX_PROXY__TLS__CERT_FILE": str(certificate.chain),
        "AISIX_PROXY__TLS__KEY_FILE": str(certificate.key),
    }
    with crowd(folder, workers, settings) as running:
        yield running


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture(scope="module")
def bench(
    workers: int, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    with listening(tmp_path_factory.mktemp("stand"), workers, certificate) as running:
        yield running


@pytest.fixture
def trusting(certificate: Certificate) -> ssl.SSLContext:
    """A caller's context: it trusts that authority alone, and checks the name."""
    return ssl.create_default_context(cafile=str(certificate.authority))


@contextmanager
def sdk_of(bench: Stand, context: ssl.SSLContext) -> Iterator[OpenAI]:
    """The official SDK. Retries are off: an error is to be seen."""
    with (
        DefaultHttpxClient(verify=context) as client,
        OpenAI(
            base_url=f"{bench.gateway.proxy}/v1",
            api_key=CALLER_KEY,
            max_retries=0,
            http_client=client,
        ) as made,
    ):
        yield made


@pytest.fixture
def sdk(bench: Stand, trusting: ssl.SSLContext) -> Iterator[OpenAI]:
    with sdk_of(bench, trusting) as made:
        yield made


def test_a_chat_completion_is_answered_over_tls(bench: Stand, sdk: OpenAI) -> None:
    assert bench.gateway.proxy.startswith("https://127.0.0.1:")
    answer = sdk.chat.completions.create(model=bench.alias("gpt4o-prod"), messages=MESSAGES)
    assert answer.choices[0].message.content == SAID


def test_a_stream_comes_over_tls_while_the_upstream_still_writes(bench: Stand, sdk: OpenAI) -> None:
    """The upstream holds the rest back until the beginning has been read."""
    alias = bench.alias("gpt4o-stall4")
    with sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True) as stream:
        said = ""
        for chunk in stream:
            for choice in chunk.choices:
                if not said and choice.delta.content:
                    bench.azure.release()
                said += choice.delta.content or ""
    assert said == SAID


def test_one_connection_carries_answers_and_streams_in_turn(
    bench: Stand, trusting: ssl.SSLContext
) -> None:
    alias = bench.alias("gpt4o-prod")
    place = urlsplit(bench.gateway.proxy)
    with closing(
        http.client.HTTPSConnection("127.0.0.1", place.port, timeout=WAIT_S, context=trusting)
    ) as connection:
        connection.connect()
        connection.auto_open = 0  # a second connection is an error
        for stream in (False, True) * 5:
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps({"model": alias, "messages": MESSAGES, "stream": stream}),
                {"Authorization": f"Bearer {CALLER_KEY}", "Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200
            assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)["choices"]


def test_a_long_prompt_comes_in_over_tls(bench: Stand, sdk: OpenAI) -> None:
    prompt: list[Any] = [{"role": "user", "content": "0123456789" * 40_000}]
    bench.azure.clear()
    answer = sdk.chat.completions.create(model=bench.alias("gpt4o-prod"), messages=prompt)
    assert answer.choices[0].finish_reason == "stop"
    (record,) = bench.azure.requests()
    assert json.loads(record["body"])["messages"] == prompt


def test_every_worker_speaks_tls(bench: Stand, workers: int) -> None:
    """The kernel spreads connections by address and port: 40 never miss one of two."""
    alias = bench.alias("gpt4o-prod")

    def worker_of_a_new_connection(_: int) -> object:
        name = str(uuid.uuid4())
        assert bench.gateway.chat(alias, x_aisix_request_id=name).status == 200
        return bench.gateway.access_line(name).get("worker")

    with ThreadPoolExecutor(8) as callers:
        served = set(callers.map(worker_of_a_new_connection, range(40)))
    assert len(served) == workers


def test_a_caller_that_breaks_the_handshake_off_disturbs_nobody(
    bench: Stand, trusting: ssl.SSLContext
) -> None:
    alias = bench.alias("gpt4o-prod")
    with sdk_of(bench, ssl.create_default_context()) as stranger:
        with pytest.raises(APIConnectionError) as caught:
            stranger.chat.completions.create(model=alias, messages=MESSAGES)
        assert "CERTIFICATE_VERIFY_FAILED" in repr(caught.value.__cause__)
    with sdk_of(bench, trusting) as sdk:
        assert sdk.chat.completions.create(model=alias, messages=MESSAGES).choices


@pytest.mark.parametrize("count", [1, 2], ids=["one worker", "two workers"])
def test_a_stop_lets_streams_over_tls_end(
    tmp_path: Path, certificate: Certificate, trusting: ssl.SSLContext, count: int
) -> None:
    with listening(tmp_path, count, certificate) as bench, sdk_of(bench, trusting) as sdk:
        alias = bench.alias("gpt4o-stall4")
        stream = sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True)
        said = next(
            choice.delta.content
            for chunk in stream
            for choice in chunk.choices
            if choice.delta.content
        )
        bench.gateway.send_signal(signal.SIGTERM)
        bench.gateway.events("gateway.draining")
        bench.azure.release()
        for chunk in stream:
            said += "".join(choice.delta.content or "" for choice in chunk.choices)
        ended = bench.gateway.wait()
    assert said == SAID
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.stderr
