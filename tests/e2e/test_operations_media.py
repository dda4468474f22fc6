"""Pictures, recordings and voices through a whole gateway: forms in, any kind of answer out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.operations import (
    AZURE,
    FORM,
    KINDS,
    PREVIEW,
    VERSIONS,
    alias_of,
    async_sdk_to,
    form,
    line_of,
    sample,
    sdk_to,
    unique,
)
from tests.support.process import CALLER_KEY, Answer, Stand, send
from tests.support.wire import Wire, post
from tests.support.workers import crowd

PNG = b"\x89PNG\r\n\x1a\n"
CAT, MASK = PNG + b"cat" * 1000, PNG + b"mask"
SOUND = b"RIFF" + bytes(range(256)) * 300
HEARD = f"Hello from Azure OpenAI! You said: a.wav, {len(SOUND)} bytes"
FILE = ("file", "a.wav", SOUND)
MIB = 1024 * 1024
SAID: dict[str, Any] = {"voice": "alloy", "input": "hello"}

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
        yield running


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def arrived(bench: Stand, deployment: str) -> dict[str, Any]:
    """The only request to a deployment, as it came in."""
    (record,) = bench.azure.requests(deployment=deployment, wait=1)
    return record


def fields_of(record: dict[str, Any]) -> dict[str, str]:
    return {part["name"]: part["value"] for part in record["form"] if part["filename"] is None}


def files_of(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (part["name"], part["filename"], part["sha256"])
        for part in record["form"]
        if part["filename"] is not None
    ]


# --- pictures -----------------------------------------------------------------------------------


@by_both
@by_version
def test_pictures_are_made_under_the_alias(bench: Stand, kind: str, version: str) -> None:
    deployment = unique("gpt-image")
    alias = alias_of(bench, deployment, version)
    with sdk_to(bench.gateway, kind) as sdk:
        raw = sdk.images.with_raw_response.generate(model=alias, prompt="a cat", n=2)
        answer = raw.parse()
    assert len(answer.data) == 2
    assert base64.b64decode(answer.data[0].b64_json).startswith(PNG)
    assert deployment.encode() not in raw.content
    line = line_of(bench, raw.headers)
    assert line["total_tokens"] == answer.usage.total_tokens > 0
    assert not line["usage_estimated"]
    assert line["endpoint"] == "/v1/images/generations"


@by_both
@by_version
def test_dalle_s_pictures_lose_azure_s_extensions(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("dalle"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        answer = sdk.images.generate(model=alias, prompt="a cat", size="1792x1024")
        kept = sdk.images.generate(
            model=alias, prompt="a cat", extra_headers={"x-aisix-azure-extensions": "keep"}
        )
    assert answer.data[0].url.startswith("https://")
    assert not answer.data[0].model_extra
    assert "hate" in kept.data[0].model_extra["content_filter_results"]


@by_both
@by_version
def test_pictures_are_streamed_made_and_edited(bench: Stand, kind: str, version: str) -> None:
    deployment = unique("gpt-image")
    alias = alias_of(bench, deployment, version)
    with sdk_to(bench.gateway, kind) as sdk:
        events = list(
            sdk.images.generate(model=alias, prompt="a cat", stream=True, partial_images=2)
        )
        edit = list(
            sdk.images.edit(
                model=alias, image=("c.png", CAT), prompt="x", stream=True, partial_images=1
            )
        )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.type for event in edit] == ["image_edit.partial_image", "image_edit.completed"]
    lines = bench.gateway.wait_for(lambda text: alias in text and "request.completed" in text,
                                   count=2)  # fmt: skip
    for line, last in zip(map(json.loads, lines), (events[-1], edit[-1]), strict=True):
        assert line["total_tokens"] == last.usage.total_tokens
        assert line["stream"] is True


@by_both
@by_version
def test_an_edit_arrives_byte_for_byte(bench: Stand, kind: str, version: str) -> None:
    deployment = unique("gpt-image")
    with sdk_to(bench.gateway, kind) as sdk:
        answer = sdk.images.edit(
            model=alias_of(bench, deployment, version),
            image=[("cat.png", CAT, "image/png"), ("dög.png", PNG, "image/png")],
            mask=("mask.png", MASK, "image/png"),
            prompt="swap them",
            n=2,
        )
    assert len(answer.data) == 2
    record = arrived(bench, deployment)
    assert files_of(record) == [
        ("image[]", "cat.png", sha256(CAT)),
        ("image[]", "dög.png", sha256(PNG)),
        ("mask", "mask.png", sha256(MASK)),
    ]
    assert fields_of(record) == {"prompt": "swap them", "model": deployment, "n": "2"}


@by_both
@by_version
@pytest.mark.parametrize("script", ["filtered", "err-content_policy"])
def test_a_refused_picture_is_a_policy_violation(
    bench: Stand, kind: str, version: str, script: str
) -> None:
    alias = alias_of(bench, unique("gpt-image", script), version)
    with sdk_to(bench.gateway, kind) as sdk:
        for attempt in (
            lambda: sdk.images.generate(model=alias, prompt="x"),
            lambda: sdk.images.edit(model=alias, image=("c.png", CAT), prompt="x"),
        ):
            with pytest.raises(openai.BadRequestError) as raised:
                attempt()
            assert raised.value.code == "content_policy_violation"
            said: Any = raised.value.body
            assert said["inner_error"]["content_filter_results"]["violence"]["filtered"]


# --- hearing ------------------------------------------------------------------------------------


@by_both
@by_version
def test_a_recording_is_heard_in_every_format(bench: Stand, kind: str, version: str) -> None:
    deployment = unique("whisper")
    alias = alias_of(bench, deployment, version)
    with sdk_to(bench.gateway, kind) as sdk:

        def hear(**more: Any) -> Any:
            return sdk.audio.transcriptions.create(model=alias, file=("a.wav", SOUND), **more)

        assert hear().text == HEARD
        assert hear(response_format="text") == f"{HEARD}\n"
        assert hear(response_format="srt").startswith("1\n00:00:00,000 --> 00:00:02,400\nHello")
        assert hear(response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> ")
        verbose = hear(response_format="verbose_json", timestamp_granularities=["word"])
        assert (verbose.text, verbose.duration) == (HEARD, 2.4)
    for record in bench.azure.requests(deployment=deployment, wait=5):
        assert files_of(record) == [("file", "a.wav", sha256(SOUND))]
        assert fields_of(record)["model"] == deployment


@by_both
@by_version
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # translations, by the SDK
def test_a_recording_is_translated(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("whisper"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        create = sdk.audio.translations.create
        assert create(model=alias, file=("a.wav", SOUND)).text == HEARD
        told = create(model=alias, file=("a.wav", SOUND), response_format="text")
        assert told == f"{HEARD}\n"
        assert create(model=alias, file=("a.wav", SOUND), response_format="verbose_json").duration


@by_both
@pytest.mark.gen_test(timeout=20)
async def test_the_asynchronous_sdk_hears_speaks_and_draws(bench: Stand, kind: str) -> None:
    async with async_sdk_to(bench.gateway, kind) as sdk:
        heard = await sdk.audio.transcriptions.create(
            model=alias_of(bench, unique("gpt-4o-transcribe")), file=("a.wav", SOUND), stream=True
        )
        events = [event async for event in heard]
        assert events[-1].text == HEARD
        spoken = await sdk.audio.speech.create(model=alias_of(bench, unique("tts")), **SAID)
        assert len(spoken.content) == 2048
        drawn = await sdk.images.generate(
            model=alias_of(bench, unique("gpt-image")), prompt="x", stream=True
        )
        assert [event.type async for event in drawn][-1] == "image_generation.completed"


@by_both
@by_version
def test_a_transcript_is_streamed_and_counted(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("gpt-4o-transcribe"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        raw = sdk.audio.transcriptions.with_raw_response.create(
            model=alias, file=("a.wav", SOUND), stream=True
        )
        *deltas, done = list(raw.parse())
    assert "".join(event.delta for event in deltas) == done.text == HEARD
    line = line_of(bench, raw.headers)
    assert (line["stream"], line["total_tokens"]) == (True, done.usage.total_tokens)


def hear(bench: Stand, *parts: tuple[str, str | None, bytes], alias: str = "") -> Answer:
    """A hand-made form, to the plain path or to that of an alias."""
    path = (
        f"/openai/deployments/{alias}/audio/transcriptions?api-version={PREVIEW}"
        if alias
        else "/v1/audio/transcriptions"
    )
    headers = {"Authorization": f"Bearer {CALLER_KEY}", "Content-Type": FORM}
    return send("POST", bench.gateway.proxy + path, form(*parts), headers=headers)


@by_version
@pytest.mark.parametrize("place", ["before", "after", "path", "path over part"])
def test_the_model_may_stand_anywhere(bench: Stand, version: str, place: str) -> None:
    deployment = unique("whisper")
    alias = alias_of(bench, deployment, version)
    model = ("model", None, alias.encode())
    parts: dict[str, list[Any]] = {
        "before": [model, FILE],
        "after": [FILE, model],
        "path": [FILE],
        "path over part": [("model", None, b"another"), FILE],
    }
    answer = hear(bench, *parts[place], alias=alias if place.startswith("path") else "")
    assert answer.status == 200, answer.body
    record = arrived(bench, deployment)
    assert files_of(record) == [("file", "a.wav", sha256(SOUND))]
    assert fields_of(record) == {"model": deployment}


def test_seconds_are_in_the_access_line_and_the_metrics(bench: Stand) -> None:
    alias = alias_of(bench, unique("whisper"))
    for format, seconds in (("json", 3), ("verbose_json", 3)):
        answer = hear(
            bench, ("model", None, alias.encode()), FILE, ("response_format", None, format.encode())
        )
        assert answer.json["usage"] == {"type": "duration", "seconds": seconds}
        line = line_of(bench, answer.headers)
        assert (line["audio_seconds"], line["total_tokens"]) == (seconds, 0)
    counted = sample(bench.gateway.scrape(), "aisix_llm_audio_seconds_total", model=alias)
    assert counted == 6


def test_what_azure_says_of_a_recording_reaches_the_caller(bench: Stand) -> None:
    alias = alias_of(bench, unique("whisper"))
    model = ("model", None, alias.encode())
    wrong = hear(bench, model, ("file", "a.exe", SOUND))
    assert (wrong.status, wrong.error["param"]) == (400, "file")
    assert "Supported formats" in wrong.error["message"]
    large = hear(bench, model, ("file", "a.wav", b"x" * 26_214_401))
    assert large.status == 413
    assert "26214400" in large.error["message"]


# --- speaking -----------------------------------------------------------------------------------


@by_both
@by_version
def test_a_voice_is_bytes_of_its_own_type(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("tts", "n10", "size1000"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        answer = sdk.audio.speech.create(model=alias, response_format="wav", **SAID)
    assert answer.content == bytes(n % 256 for n in range(10_000))
    assert answer.response.headers["content-type"] == "audio/wav"
    assert answer.response.headers["transfer-encoding"] == "chunked"
    line = line_of(bench, answer.response.headers)
    assert (line["status"], line["stream"], line["usage_estimated"]) == (200, False, True)
    assert line["prompt_tokens"] > 0


@by_version
def test_a_voice_may_be_events(bench: Stand, version: str) -> None:
    alias = alias_of(bench, unique("tts", "n3", "size10"), version)
    answer = bench.gateway.call(
        "/v1/audio/speech", {"model": alias, "stream_format": "sse", **SAID}
    )
    *deltas, done = answer.events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done["type"] == "speech.audio.done"
    line = line_of(bench, answer.headers)
    assert (line["stream"], line["total_tokens"]) == (True, done["usage"]["total_tokens"])
    assert not line["usage_estimated"]


@by_both
def test_a_slow_listener_holds_the_voice_back(bench: Stand, kind: str) -> None:
    deployment = unique("tts", "bulk64")
    alias = alias_of(bench, deployment)
    with sdk_to(bench.gateway, kind) as sdk:
        speech = sdk.audio.speech.with_streaming_response
        digest, received = hashlib.sha256(), 0
        with speech.create(model=alias, **SAID) as answer:
            for piece in answer.iter_bytes(65_536):
                if not received:
                    (record,) = bench.azure.requests(deployment=deployment, phase="sending", wait=1)
                    assert record["bytes_sent"] < 32 * MIB
                digest.update(piece)
                received += len(piece)
    assert received == 64 * MIB
    assert digest.hexdigest() == sha256(bytes(range(256)) * (64 * MIB // 256))


@pytest.mark.parametrize("stream", [False, True])
def test_a_voice_that_breaks_off_is_a_cut_connection(bench: Stand, stream: bool) -> None:
    alias = alias_of(bench, unique("tts", "n10", "size1000", "cut5000"))
    with Wire(bench.gateway.proxy) as wire:
        wire.send(post("/v1/audio/speech", {"model": alias, "stream": stream, **SAID}))
        status, headers = wire.answer_head()
        rest = wire.rest()
    assert status == 200
    assert not rest.endswith(b"0\r\n\r\n")
    assert b"event: error" not in rest
    line = line_of(bench, headers)
    assert (line["status"], line["outcome"]) == (200, "upstream_error")


def test_an_azure_sdk_of_an_old_release_speaks_too(bench: Stand) -> None:
    """The version that a caller names says nothing: the deployment's own is used."""
    alias = alias_of(bench, unique("tts"))
    with sdk_to(bench.gateway, AZURE) as sdk:
        old = sdk.with_options(default_query={"api-version": "2024-10-21"})
        assert old.audio.speech.create(model=alias, **SAID).content
