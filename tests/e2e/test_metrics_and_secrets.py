"""After traffic of every kind: the scrape shows the whole catalogue, and nothing tells a secret."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from aisix.telemetry.catalogue import CATALOGUE, Kind, MetricRow
from tests.support.operations import FORM, form
from tests.support.process import (
    Answer,
    GatewayProgram,
    SimulatorProgram,
    Stand,
    gateway,
    simulator,
)
from tests.support.wire import Wire, chat, head, post

RESOURCE_KEY = "planted-resource-key-xyzzy"
CLIENT_SECRET = "planted-client-secret-xyzzy"
CALLER = "sk-planted-caller-xyzzy"
UNKNOWN_CALLER = "sk-planted-unknown-xyzzy"
PROMPT = "planted prompt xyzzy"
UNKNOWN_MODEL = "planted-model-xyzzy"
NEVER_TOLD = ("xyzzy", "planted")  # neither occurs in ids or figures by chance
BODY_LIMIT_BYTES = 100_000
SAMPLE = re.compile(r"^([a-z0-9_]+)(\{.*\})? \S+$")
MESSAGES = [{"role": "user", "content": PROMPT}]


@dataclass(frozen=True)
class Traffic:
    """A gateway that has seen everything, what it refused, and its metrics."""

    gateway: GatewayProgram
    refusals: list[bytes]
    scrape: str


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    settings = {
        "AISIX_PROXY__REQUEST_BODY_LIMIT_BYTES": str(BODY_LIMIT_BYTES),
        "AISIX_OBSERVABILITY__LOG_LEVEL": "debug",
    }
    arguments = ("--api-key", RESOURCE_KEY, "--client-secret", CLIENT_SECRET)
    folder = tmp_path_factory.mktemp("traffic")
    with simulator(*arguments) as azure, gateway(folder, settings) as program:
        key_id = program.create_provider_key(azure.url, secret=RESOURCE_KEY)
        bench = Stand(azure, program, key_id)
        program.create_caller_key(
            CALLER, display_name="team one", allowed_resources=["files", "batches"]
        )
        program.create_caller_key(f"{CALLER}-slow", rate_limit={"rpm": 1})
        refusals = drive(bench, entra_alias(azure, program))
        yield Traffic(program, refusals, program.scrape())


def entra_alias(azure: SimulatorProgram, program: GatewayProgram) -> str:
    secret = {
        "tenant_id": "11111111-2222-3333-4444-555555555555",
        "client_id": "66666666-7777-8888-9999-000000000000",
        "client_secret": CLIENT_SECRET,
        "authority_host": azure.url,
    }
    for name, value in (("entra", CLIENT_SECRET), ("entra-bad", f"{CLIENT_SECRET}-wrong")):
        text = json.dumps({**secret, "client_secret": value})
        provider_key_id = program.create_provider_key(azure.url, secret=text)
        program.create_model(name, "gpt4o-prod", provider_key_id)
    return "entra"


def drive(bench: Stand, entra: str) -> list[bytes]:
    """Traffic of every kind; the bodies of all refusals."""
    program = bench.gateway
    good = bench.alias("gpt4o-prod")
    refusals: list[bytes] = []

    def ask(alias: str, status: int, key: str = CALLER, **fields: object) -> None:
        answer = program.chat(alias, key=key, **{"messages": MESSAGES, **fields})
        assert answer.status == status, answer.body
        if status != 200:
            refusals.append(answer.body)

    for alias in (good, entra):
        ask(alias, 200)
        ask(alias, 200, stream=True)
    assert (
        program.call("/v1/embeddings", {"model": good, "input": PROMPT}, key=CALLER).status == 200
    )
    assert (
        program.call("/v1/completions", {"model": good, "prompt": PROMPT}, key=CALLER).status == 200
    )
    assert program.call("/v1/models", key=CALLER).status == 200
    ask(bench.alias("gpt4o-nousage"), 200, stream=True)
    ask(good, 401, key=UNKNOWN_CALLER)
    ask(UNKNOWN_MODEL, 404)
    ask(good, 200, key=f"{CALLER}-slow")
    ask(good, 429, key=f"{CALLER}-slow")
    ask("entra-bad", 500)
    for script, status in (
        ("err429", 429), ("err500", 502), ("err401", 401), ("err-callstack", 400),
        ("err-content_filter", 400), ("drop", 502), ("garbage", 502), ("err-badjson", 502),
    ):  # fmt: skip
        ask(bench.alias(f"gpt4o-{script}"), status)
    for script in ("cut3-d20", "fail3-err-capacity-d20"):
        broken = program.chat(
            bench.alias(f"gpt4o-{script}"), key=CALLER, messages=MESSAGES, stream=True
        )
        refusals.append(broken.body.rpartition(b"event: error")[2])
    refusals += operations(bench, good)
    refusals += raw_refusals(bench, good)
    return refusals


def operations(bench: Stand, good: str) -> list[bytes]:
    """Responses, recordings, pictures, voices and files, well and badly."""
    program = bench.gateway
    refusals: list[bytes] = []

    def ask(path: str, status: int, body: object = None, *, alias: str = good) -> Answer:
        headers = {"Content_Type": FORM} if isinstance(body, bytes) else {}
        answer = program.call(path, body, key=CALLER, x_aisix_model=alias, **headers)
        assert answer.status == status, (path, answer.body)
        if status >= 400:
            # a caller's own words about its own file may be said to it again
            words = answer.body.replace(b"planted-xyzzy", b"").replace(b"planted xyzzy", b"")
            refusals.append(words)
        return answer

    def v1(deployment: str) -> str:
        return bench.alias(deployment, api_version="v1")

    def form_of(alias: str, name: str, filename: str) -> bytes:
        prompt = ("prompt", None, PROMPT.encode())
        return form(("model", None, alias.encode()), prompt, (name, filename, PROMPT.encode()))

    stateful = {"model": v1("gpt4o-prod"), "input": PROMPT}
    id = ask("/v1/responses", 200, stateful).json["id"]
    ask("/v1/responses", 200, {**stateful, "stream": True})
    ask(f"/v1/responses/{id}", 200)
    ask("/v1/responses", 404, {**stateful, "previous_response_id": UNKNOWN_MODEL})
    ask("/v1/responses", 429, {**stateful, "model": v1("gpt4o-throttled"), "stream": True})
    hearing = v1("whisper")
    ask("/v1/audio/transcriptions", 200, form_of(hearing, "file", "planted-xyzzy.wav"))
    ask("/v1/audio/transcriptions", 400, form_of(hearing, "file", "planted-xyzzy.exe"))
    ask("/v1/images/edits", 200, form_of(v1("gpt-image-1"), "image", "planted-xyzzy.png"))
    filtered = {"model": v1("gpt-image-1-filtered"), "prompt": PROMPT}
    ask("/v1/images/generations", 400, filtered)
    ask("/v1/audio/speech", 200, {"model": v1("tts"), "input": PROMPT, "voice": "alloy"})
    ask("/v1/files", 400, form(("purpose", None, b"planted xyzzy")))
    ask("/v1/files?after=planted-xyzzy", 400)
    ask("/v1/files?order=asc", 200)
    ask(f"/v1/files/{UNKNOWN_MODEL}", 404)
    ask("/v1/files", 404, alias=UNKNOWN_MODEL)
    ask("/v1/vector_stores", 403, {"name": PROMPT})
    return refusals


def raw_refusals(bench: Stand, good: str) -> list[bytes]:
    """What only a hand-made request can do: too large, malformed, and leaving."""
    credential = {"Authorization": f"Bearer {CALLER}"}
    bodies: list[bytes] = []
    with Wire(bench.gateway.proxy) as wire:
        for body in (b"x" * (BODY_LIMIT_BYTES + 1), b'{"model": "planted xyzzy'):
            wire.send(post("/v1/chat/completions", body, credential))
            bodies.append(wire.answer().body)
        wire.send(head("BREW", "/v1/models", credential))
        bodies.append(wire.answer().body)
    request_id = str(uuid.uuid4())
    with Wire(bench.gateway.proxy) as wire:
        alias = bench.alias("gpt4o-stall4")
        headers = {**credential, "x-aisix-request-id": request_id}
        wire.send(chat(alias, headers, stream=True, messages=MESSAGES))
        wire.read_until(b'"Hello"')
    assert bench.gateway.access_line(request_id)["status"] == 499
    assert bench.gateway.chat(good, key=CALLER).status == 200
    return bodies


def sample_names(scrape: str) -> set[str]:
    found = (SAMPLE.match(line) for line in scrape.splitlines() if not line.startswith("#"))
    return {match[1] for match in found if match}


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)
def test_each_metric_of_the_catalogue_has_a_sample(traffic: Traffic, row: MetricRow) -> None:
    endings = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}
    wanted = {row.name + ending for ending in endings.get(row.kind, ("",))}
    assert wanted <= sample_names(traffic.scrape)


def test_nothing_is_scraped_that_the_catalogue_does_not_name(traffic: Traffic) -> None:
    known = {row.name for row in CATALOGUE}
    own = {name for name in sample_names(traffic.scrape) if name.startswith("aisix_")}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in own if name not in known}
    assert stems <= known
    assert {"process_resident_memory_bytes", "process_open_fds"} <= sample_names(traffic.scrape)


def test_every_exchange_is_counted_once(traffic: Traffic) -> None:
    counted = sum(
        float(line.rpartition(" ")[2])
        for line in traffic.scrape.splitlines()
        if line.startswith("aisix_proxy_requests_total{")
    )
    lines = traffic.gateway.events("request.completed", count=int(counted) + 1)
    strangers = [line for line in lines if line["status"] == 401 and "api_key_id" not in line]
    assert len(strangers) == 1, "a 401 of ours counts in aisix_auth_decisions_total alone"
    assert len(lines) - len(strangers) == counted
    in_flight = [
        line for line in traffic.scrape.splitlines() if line.startswith("aisix_proxy_in_flight")
    ]
    assert in_flight
    assert all(line.endswith((" 0", " 0.0")) for line in in_flight)


def test_no_log_line_tells_a_secret_or_a_prompt(traffic: Traffic) -> None:
    lines = [line.replace(UNKNOWN_MODEL, "") for line in traffic.gateway.lines()]
    assert [line for line in lines if any(word in line for word in NEVER_TOLD)] == []
    assert not [line for line in traffic.gateway.lines() if "Bearer ey" in line]


def test_no_metric_tells_a_secret_a_prompt_or_what_a_caller_spelt(traffic: Traffic) -> None:
    assert [word for word in (*NEVER_TOLD, "BREW") if word in traffic.scrape] == []


def test_no_refusal_tells_a_secret_a_prompt_or_a_place(traffic: Traffic) -> None:
    assert len(traffic.refusals) > 15
    for body in traffic.refusals:
        text = body.decode().replace(UNKNOWN_MODEL, "")  # the caller's own word, sent back
        assert [word for word in (*NEVER_TOLD, "127.0.0.1", "gpt4o-prod") if word in text] == []


def test_every_log_line_is_json(traffic: Traffic) -> None:
    for line in traffic.gateway.lines():
        record = json.loads(line)
        assert {"time", "level", "logger"} <= set(record)


def test_the_scrape_is_served_in_its_own_content_type(traffic: Traffic) -> None:
    assert traffic.scrape.endswith("\n")
    assert "# TYPE aisix_requests_total counter" in traffic.scrape
