"""Starting, serving and stopping leaves nothing behind: no descriptor, task or thread.

The whole life of the process (`lifecycle.serve`, signals included) runs inside the test's own, so
that what is left can be counted. The long forms are soak tests.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AzureOpenAI, OpenAI

from aisix.config import Config, load
from aisix.lifecycle import serve
from aisix.telemetry import logs
from tests.support.operations import FORM, PREVIEW, form
from tests.support.process import (
    ADMIN_KEY,
    CALLER_KEY,
    ROOT,
    SIMULATOR_KEY,
    SimulatorProgram,
    Stand,
    send,
    simulator,
)
from tests.support.wire import Wire, chat, head, post

ROUNDS = int(os.environ.get("AISIX_TEST_SOAK_ROUNDS", "50"))
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio's own pool may have."""

WARM_UP = 2
LARGE_BYTES = 3_000_000
"""More than is held of a form in memory."""

MESSAGES: list[Any] = [{"role": "user", "content": "ping"}]


@pytest.fixture(scope="module")
def azure() -> Iterator[SimulatorProgram]:
    with simulator() as program:
        yield program


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """`serve` sets logging up for its process, which here is the tests' own."""
    yield
    logs.reset()


class _Ready(logging.Handler):
    """Tells the addresses when the gateway says that it is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "gateway.ready":
            self.addresses.set_result(
                {n: getattr(record, n) for n in ("proxy", "admin", "metrics")}
            )


def make_config(folder: Path) -> Config:
    return load(
        str(ROOT / "config" / "config.yaml"),
        {
            "AISIX_PROXY__ADDR": "127.0.0.1:0",
            "AISIX_ADMIN__ADDR": "127.0.0.1:0",
            "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": "127.0.0.1:0",
            "AISIX_STORE__PATH": str(folder / "aisix.db"),
        },
    )


async def live(config: Config, azure: SimulatorProgram) -> None:
    """Start, serve, stop; nothing of it may still run in the loop afterwards."""
    ready = _Ready()
    lifecycle_log = logging.getLogger("aisix.lifecycle")
    lifecycle_log.addHandler(ready)
    gateway = asyncio.ensure_future(serve(config))
    try:
        addresses = await asyncio.wait_for(ready.addresses, 10)
        await asyncio.to_thread(converse, addresses, azure)
    finally:
        lifecycle_log.removeHandler(ready)
        signal.raise_signal(signal.SIGTERM)
        status = await asyncio.wait_for(gateway, 10)
    assert status == 0
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert left == set(), left


def converse(addresses: dict[str, str], azure: SimulatorProgram) -> None:
    """A little of everything: both credentials, both forms, a caller that leaves, a refusal."""

    def create(kind: str, **fields: Any) -> str:
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = send("POST", f"{addresses['admin']}/admin/v1/{kind}", fields, headers=admin)
        assert answer.status == 200, answer.body
        return str(answer.json["id"])

    entra = {
        "tenant_id": str(uuid.uuid4()),
        "client_id": str(uuid.uuid4()),
        "client_secret": "simulator-secret",
        "authority_host": azure.url,
    }
    key = f"sk-{uuid.uuid4().hex}"
    create("apikeys", key=key, allowed_models=["*"])
    for secret in (SIMULATOR_KEY, json.dumps(entra)):
        alias = uuid.uuid4().hex
        provider_key_id = create(
            "provider_keys",
            display_name=alias,
            provider="azure",
            secret=secret,
            api_base=azure.url,
        )
        create(
            "models",
            display_name=alias,
            provider="azure",
            model_name="gpt4o-prod",
            provider_key_id=provider_key_id,
        )
        caller = {"Authorization": f"Bearer {key}"}
        for request, status in (
            (chat(alias, caller), 200),
            (chat(alias, caller, stream=True), 200),
            (chat("nowhere", caller), 404),
        ):
            with Wire(addresses["proxy"]) as wire:
                wire.send(request)
                assert wire.answer().status == status
    create(
        "models",
        display_name=f"{alias}-stalls",
        provider="azure",
        model_name="gpt4o-stall4",
        provider_key_id=provider_key_id,
    )
    with Wire(addresses["proxy"]) as wire:
        wire.send(chat(f"{alias}-stalls", caller, stream=True))
        wire.read_until(b'"Hello"')
    for name in ("whisper", "tts-bulk8"):
        create(
            "models",
            display_name=f"{alias}-{name}",
            provider="azure",
            model_name=name,
            provider_key_id=provider_key_id,
            api_version="v1",
        )
    carry(addresses["proxy"], alias, caller)
    assert send("GET", f"{addresses['metrics']}/metrics").status == 200


def carry(proxy: str, alias: str, caller: dict[str, str]) -> None:
    """Forms held on disk, uploads and downloads: whole, refused, and given up in the middle."""
    model = ("model", None, f"{alias}-whisper".encode())
    recording = ("file", "a.wav", b"\0" * LARGE_BYTES)
    nobody = ("model", None, b"nobody")
    hear = "/v1/audio/transcriptions"
    headers = {**caller, "Content-Type": FORM}
    with Wire(proxy) as wire:
        for parts, status in (
            ((recording, model), 200),
            ((recording, nobody), 404),
            ((recording,), 400),
            ((model, recording), 200),
        ):
            wire.send(post(hear, form(*parts), headers))
            assert wire.answer().status == status
    for parts in ((recording, model), (model, recording)):
        body = form(*parts)
        with Wire(proxy) as wire:
            begun = {**headers, "Content-Length": str(len(body))}
            wire.send(head("POST", hear, begun) + body[: 9 * len(body) // 10])
            wire.reset()
    speech = {"model": f"{alias}-tts-bulk8", "input": "ping", "voice": "alloy"}
    with Wire(proxy) as wire:
        wire.send(post("/v1/audio/speech", speech, caller))
        assert wire.answer().status == 200
        wire.send(post("/v1/audio/speech", speech, caller))
        wire.answer_head()


def held() -> dict[str, int]:
    """Descriptors by what they are, and threads, Python's and libcurl's."""
    gc.collect()
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
        except FileNotFoundError:  # the one that listed the folder
            continue
    kinds["Python threads"] = threading.active_count()
    kinds["threads"] = len(os.listdir("/proc/self/task"))
    return dict(kinds)


def full_pool() -> ThreadPoolExecutor:
    """A pool all of whose threads are there: a lazy one grows when two calls happen to overlap."""
    pool = ThreadPoolExecutor(POOL_THREADS)
    together = threading.Barrier(POOL_THREADS)
    for waiting in [pool.submit(together.wait) for _ in range(POOL_THREADS)]:
        waiting.result()
    return pool


async def check_cycles(count: int, folder: Path, azure: SimulatorProgram) -> None:
    config = make_config(folder)
    with full_pool() as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        for _ in range(WARM_UP):
            await live(config, azure)
        before = held()
        for _ in range(count):
            await live(config, azure)
        assert held() == before


@pytest.mark.gen_test
@pytest.mark.usefixtures("quiet_logs")
async def test_a_few_starts_and_stops_leak_nothing(tmp_path: Path, azure: SimulatorProgram) -> None:
    await check_cycles(5, tmp_path, azure)


@pytest.mark.soak
@pytest.mark.gen_test(timeout=1200)
@pytest.mark.usefixtures("quiet_logs")
async def test_many_starts_and_stops_leak_nothing(tmp_path: Path, azure: SimulatorProgram) -> None:
    await check_cycles(max(50, ROUNDS), tmp_path, azure)


# --- a long life --------------------------------------------------------------------------------


def journey(bench: Stand, aliases: dict[str, str]) -> None:
    """What SDK users do, well and badly."""
    proxy = bench.gateway.proxy
    for sdk in (
        OpenAI(base_url=f"{proxy}/v1", api_key=CALLER_KEY, max_retries=0),
        AzureOpenAI(azure_endpoint=proxy, api_key=CALLER_KEY, api_version=PREVIEW, max_retries=0),
    ):
        with sdk:
            create = sdk.chat.completions.create
            assert create(model=aliases["good"], messages=MESSAGES).choices
            assert list(create(model=aliases["good"], messages=MESSAGES, stream=True))
            assert sdk.embeddings.create(model=aliases["good"], input="ping", dimensions=8).data
            with pytest.raises(openai.RateLimitError):
                create(model=aliases["throttled"], messages=MESSAGES)
            with pytest.raises(openai.APIError):
                list(create(model=aliases["cut"], messages=MESSAGES, stream=True))
            with create(model=aliases["stalled"], messages=MESSAGES, stream=True) as stream:
                next(iter(stream))
            made = sdk.responses.create(model=aliases["good"], input="ping")
            assert sdk.responses.retrieve(made.id).id == made.id
            hear = sdk.audio.transcriptions.create
            assert hear(model=aliases["good"], file=("a.wav", b"\0" * LARGE_BYTES)).text
            with pytest.raises(openai.BadRequestError):
                hear(model=aliases["good"], file=("a.exe", b"\0" * LARGE_BYTES))
            speak = sdk.audio.speech.with_streaming_response.create
            with speak(model=aliases["endless"], voice="alloy", input="ping") as voice:
                next(voice.iter_bytes())


@pytest.mark.soak
def test_many_journeys_leave_the_gateway_as_it_was(bench: Stand) -> None:
    scripts = {
        "good": "prod",
        "throttled": "err429",
        "cut": "cut3",
        "stalled": "stall4",
        "endless": "bulk100",
    }
    aliases = {
        name: bench.alias(f"gpt4o-{script}", api_version="v1") for name, script in scripts.items()
    }
    process = Path(f"/proc/{bench.gateway.process.pid}")

    def settled(journeys: int) -> tuple[int, int]:
        """Descriptors and threads, once every departure of a caller has been noticed."""
        bench.azure.requests(outcome="client_closed", wait=4 * journeys)
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    journey(bench, aliases)
    before = settled(1)
    for _ in range(ROUNDS):
        journey(bench, aliases)
    after = settled(1 + ROUNDS)
    assert after[0] <= before[0] + 2, "a connection may be on its way out"
    assert after[1] <= before[1] + POOL_THREADS, "asyncio's own pool may have grown to its size"
    (line,) = [
        line
        for line in bench.gateway.scrape().splitlines()
        if line.startswith("process_resident_memory_bytes ")
    ]
    assert float(line.split()[1]) < 150e6
    assert bench.gateway.stop().status == 0
