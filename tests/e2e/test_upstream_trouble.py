"""An upstream that cannot be reached or trusted, and callers that leave."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.process import Answer, Stand, gateway, simulator
from tests.support.tls import make_certificate
from tests.support.wire import Wire, chat, head

CLOSE_S = 2.0
"""How soon Azure must see that the caller has left; in fact it is milliseconds."""


def ask(bench: Stand, api_base: str) -> tuple[Answer, dict[str, object]]:
    """A chat completion at a resource of its own; the answer and its access line."""
    provider_key_id = bench.gateway.create_provider_key(api_base)
    alias = f"elsewhere.{uuid.uuid4().hex[:8]}"
    bench.gateway.create_model(alias, "gpt4o-prod", provider_key_id)
    request_id = str(uuid.uuid4())
    answer = bench.gateway.chat(alias, x_aisix_request_id=request_id)
    return answer, bench.gateway.access_line(request_id)


def check_unreachable(answer: Answer, line: dict[str, object], host: str) -> None:
    assert answer.status == 502
    assert answer.error["type"] == answer.error["code"] == "transport_error"
    assert host not in answer.body.decode()
    assert "gpt4o-prod" not in answer.body.decode()
    assert (line["status"], line["outcome"]) == (502, "upstream_error")
    assert line["error"]
    assert "prompt_tokens" not in line, "nothing may be charged"


def test_a_name_that_does_not_resolve_is_a_502_without_the_name(bench: Stand) -> None:
    answer, line = ask(bench, "https://no-such-resource.invalid")
    check_unreachable(answer, line, "no-such-resource")
    assert "resolve" in str(line["error"]).lower()


def test_a_refused_connection_is_a_502_without_the_address(bench: Stand) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = reserved.getsockname()[1]
        answer, line = ask(bench, f"http://127.0.0.1:{port}")
    check_unreachable(answer, line, "127.0.0.1")
    assert str(port) not in answer.body.decode()


@pytest.mark.parametrize("trouble", ["expired", "self-signed", "other name"])
def test_a_bad_certificate_is_refused_without_the_name(tmp_path: Path, trouble: str) -> None:
    host = "acme-west.openai.azure.com"
    past = datetime.now(UTC) - timedelta(days=1) if trouble == "expired" else None
    name = "other.example" if trouble == "other name" else host
    served = make_certificate(tmp_path, name, not_after=past)
    trusted = served.authority
    if trouble == "self-signed":
        trusted = make_certificate(tmp_path, host, label="other").authority
    with simulator(*served.arguments) as azure:
        settings = {
            "AISIX_UPSTREAM__CONNECT_TO": f"{host}:443:127.0.0.1:{azure.port}",
            "AISIX_UPSTREAM__TLS__CA_FILE": str(trusted),
        }
        with gateway(tmp_path, settings) as program:
            program.create_caller_key()
            answer, line = ask(Stand(azure, program, ""), f"https://{host}")
        check_unreachable(answer, line, "acme-west")
        assert "certificate" in str(line["error"]).lower()
        assert azure.requests() == [], "no key may be sent to a stranger"


# --- departures ---------------------------------------------------------------------------------


@contextmanager
def one_at_a_time(bench: Stand) -> Iterator[str]:
    """A caller key with one slot; afterwards the slot must be free."""
    key = f"sk-{uuid.uuid4().hex}"
    bench.gateway.create_caller_key(key, rate_limit={"concurrency": 1})
    good = bench.alias("gpt4o-prod")
    yield key
    assert bench.gateway.chat(good, key=key).status == 200


def check_departure(bench: Stand, deployment: str, request_id: str) -> dict[str, object]:
    (record,) = bench.azure.requests(deployment=deployment, outcome="client_closed", wait=1)
    line = bench.gateway.access_line(request_id)
    assert line["status"] == 499
    assert line["outcome"] == "client_cancelled"
    assert record["finished_at"] - record["received_at"] < CLOSE_S
    return line


@pytest.mark.parametrize("manner", ["close", "reset", "half-close"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_leaves_before_the_first_byte_ends_the_call(
    bench: Stand, manner: str, stream: bool
) -> None:
    deployment = f"gpt4o-hang-{uuid.uuid4().hex}"
    request_id = str(uuid.uuid4())
    with one_at_a_time(bench) as key, Wire(bench.gateway.proxy) as wire:
        headers = {"Authorization": f"Bearer {key}", "x-aisix-request-id": request_id}
        wire.send(chat(bench.alias(deployment), headers, stream=stream))
        bench.azure.requests(deployment=deployment, phase="hanging", wait=1)
        leave(wire, manner)
        line = check_departure(bench, deployment, request_id)
    assert line["usage_estimated"] is True


@pytest.mark.parametrize("manner", ["close", "reset", "half-close"])
def test_a_caller_that_leaves_in_mid_stream_ends_the_call(bench: Stand, manner: str) -> None:
    deployment = f"gpt4o-stall4-{uuid.uuid4().hex}"
    request_id = str(uuid.uuid4())
    with one_at_a_time(bench) as key, Wire(bench.gateway.proxy) as wire:
        headers = {"Authorization": f"Bearer {key}", "x-aisix-request-id": request_id}
        wire.send(chat(bench.alias(deployment), headers, stream=True))
        wire.read_until(b'"Hello"')
        leave(wire, manner)
        line = check_departure(bench, deployment, request_id)
    assert line["usage_estimated"] is True
    assert 1 <= int(str(line["completion_tokens"])) <= 4


def leave(wire: Wire, manner: str) -> None:
    if manner == "half-close":
        wire.send_eof()
    elif manner == "reset":
        wire.reset()
    else:
        wire.close()


def test_a_caller_that_leaves_in_the_middle_of_its_body_is_a_499(bench: Stand) -> None:
    request_id = str(uuid.uuid4())
    framing = {"Content-Length": "1000", "Content-Type": "application/json"}
    with Wire(bench.gateway.proxy) as wire:
        wire.send(
            head("POST", "/v1/chat/completions", {**framing, "x-aisix-request-id": request_id})
        )
        wire.send(b'{"model":')
        wire.close()
        line = bench.gateway.access_line(request_id)
    assert line["status"] == 499
    assert "upstream_status" not in line


def test_a_caller_that_does_not_read_slows_azure_down(bench: Stand) -> None:
    """Of 64 MiB only what sockets and our bounded buffers hold may have left Azure."""
    deployment = f"gpt4o-bulk64-{uuid.uuid4().hex}"
    with Wire(bench.gateway.proxy) as wire:
        wire.send(chat(bench.alias(deployment), stream=True))
        wire.read_until(b"data:")
        (record,) = bench.azure.requests(deployment=deployment, phase="sending", wait=1)
        sent = -1
        while sent != record["bytes_sent"]:  # until it stands still
            sent = record["bytes_sent"]
            assert bench.gateway.call("/v1/models").status == 200
            (record,) = bench.azure.requests(deployment=deployment)
        assert sent < 32 * 1024 * 1024
        wire.close()
        bench.azure.requests(deployment=deployment, outcome="client_closed", wait=1)
