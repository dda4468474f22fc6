"""The simulator's ears and voice, through the official SDK and on the wire."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import openai
import pytest

from tests.support.azure import KEY, ask, azure
from tests.support.sdk import AZURE, KINDS, PLAIN, sdk_at

SOUND = b"RIFF" + bytes(range(256)) * 300
HEARD = f"Hello from Azure OpenAI! You said: a.wav, {len(SOUND)} bytes"
DATED = "/openai/deployments/{}/audio/transcriptions?api-version=2024-10-21"
SPEECH = "/openai/v1/audio/speech"
by_both = pytest.mark.parametrize("kind", KINDS)


def form(*parts: tuple[str, str | None, bytes], edge: str = "edge") -> bytes:
    """A multipart body of (name, filename, value)."""
    body = b""
    for name, filename, value in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        body += head.encode() + value + b"\r\n"
    return body + f"--{edge}--\r\n".encode()


FORM_TYPE = "multipart/form-data; boundary=edge"
FILE = ("file", "a.wav", SOUND)


# --- hearing ------------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_whisper_counts_seconds_and_the_file_arrives_whole(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.audio.transcriptions.create(
            model="whisper", file=("a.wav", SOUND), language="en", temperature=0.5
        )
        [record] = sim.requests
    assert answer.text == HEARD
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 3)
    assert (record.operation, record.deployment) == ("audio/transcriptions", "whisper")
    [file] = [part for part in record.form if part.filename]
    assert (file.name, file.filename, file.size) == ("file", "a.wav", len(SOUND))
    assert file.sha256 == hashlib.sha256(SOUND).hexdigest()
    assert record.render()["form"][0]["name"] == record.form[0].name


@by_both
@pytest.mark.gen_test
async def test_the_newer_family_counts_tokens_and_streams(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=("a.wav", SOUND), prompt="x", include=["logprobs"]
        )
        stream = await sdk.audio.transcriptions.create(
            model="gpt-4o-mini-transcribe", file=("a.wav", SOUND), stream=True
        )
        events = [event async for event in stream]
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.audio.transcriptions.create(
                model="gpt-4o-transcribe", file=("a.wav", SOUND), response_format="srt"
            )
    assert answer.usage.type == "tokens"
    assert answer.usage.input_token_details.text_tokens == 1
    assert "".join(entry.token for entry in answer.logprobs) == HEARD
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert "".join(event.delta for event in deltas) == done.text == HEARD
    assert done.usage.output_tokens == len(deltas)
    assert raised.value.param == "response_format"


@by_both
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # translations, by the SDK
@pytest.mark.gen_test
async def test_subtitles_texts_and_details(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:

        async def hear(**more: Any) -> Any:
            return await sdk.audio.transcriptions.create(
                model="whisper", file=("a.wav", SOUND), **more
            )

        text = await hear(response_format="text")
        srt = await hear(response_format="srt")
        vtt = await hear(response_format="vtt")
        verbose = await hear(
            response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        translated = await sdk.audio.translations.create(
            model="whisper", file=("a.wav", SOUND), response_format="verbose_json"
        )
    assert text == f"{HEARD}\n"
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,400\nHello")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert verbose.segments[0].text == HEARD == " ".join(word.word for word in verbose.words)
    assert verbose.duration == translated.duration == 2.4
    assert translated.text == HEARD


@pytest.mark.gen_test
async def test_a_dated_release_tells_no_usage_and_text_has_its_type() -> None:
    async with azure() as sim:
        answer = await ask(sim, DATED.format("whisper"), form(FILE), content_type=FORM_TYPE)
        text = await ask(
            sim,
            DATED.format("whisper"),
            form(FILE, ("response_format", None, b"vtt")),
            content_type=FORM_TYPE,
        )
    assert answer.json == {"text": HEARD}
    assert text.headers["content-type"].startswith("text/plain")
    assert text.body.startswith(b"WEBVTT")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (form(FILE), "application/json", 400, "multipart/form-data"),
        (form(FILE), "multipart/form-data", 400, "multipart form"),
        (form(FILE), "multipart/form-data; boundary=other", 400, "multipart form"),
        (form(FILE)[:-30], None, 400, "multipart form"),
        (form(), None, 400, "'file'"),
        (form(("file", None, SOUND)), None, 400, "filename"),
        (form(("file", "", SOUND)), None, 400, "filename"),
        (form(("file", "a.exe", SOUND)), None, 400, "file format"),
        (form(("file", "a.wav", b"")), None, 400, "too short"),
        (form(FILE, ("response_format", None, b"xml")), None, 400, "Supported values"),
        (form(FILE, ("temperature", None, b"hot")), None, 400, "temperature"),
        (form(FILE, ("timestamp_granularities[]", None, b"word")), None, 400, "verbose_json"),
        (form(("file", "a.wav", b"x" * 26214401)), None, 413, "(26214400) exceeded (26214401"),
    ],
)
async def test_a_bad_upload_is_refused_in_words(
    body: bytes, kind: str | None, status: int, words: str
) -> None:
    async with azure() as sim:
        answer = await ask(sim, DATED.format("whisper"), body, content_type=kind or FORM_TYPE)
    assert answer.status == status
    assert words in answer.json["error"]["message"]


@pytest.mark.gen_test
async def test_on_v1_the_form_names_the_deployment() -> None:
    path = "/openai/v1/audio/transcriptions"
    async with azure() as sim:
        named = await ask(
            sim, path, form(FILE, ("model", None, b"dep-err429-retry3")), content_type=FORM_TYPE
        )
        nameless = await ask(sim, path, form(FILE), content_type=FORM_TYPE)
        missing = await ask(
            sim, path, form(FILE, ("model", None, b"missing-one")), content_type=FORM_TYPE
        )
        [first, *_] = sim.requests
    assert (named.status, named.headers["retry-after"]) == (429, "3")
    assert first.deployment == "dep-err429-retry3"
    assert (nameless.status, "model" in nameless.json["error"]["message"]) == (400, True)
    assert missing.json["error"]["code"] == "DeploymentNotFound"


# --- uploads ------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_an_upload_can_be_held_until_released() -> None:
    block, blocks = b"x" * 65536, 512
    inner = form(("file", "a.wav", b"")).replace(b"\r\n--edge--\r\n", b"")
    tail = b"\r\n--edge--\r\n"
    length = len(inner) + len(block) * blocks + len(tail)
    async with azure(hold_body_bytes=100_000) as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        head = (
            f"POST {DATED.format('whisper')} HTTP/1.1\r\nhost: sim\r\napi-key: {KEY}\r\n"
            f"content-type: {FORM_TYPE}\r\ncontent-length: {length}\r\n\r\n"
        )
        writer.write(head.encode() + inner)

        async def upload() -> None:
            for _ in range(blocks):
                writer.write(block)
                await writer.drain()
            writer.write(tail)

        uploading = asyncio.ensure_future(upload())
        record = await sim.wait_for(lambda r: r.phase == "holding")
        assert 100_000 < record.body_bytes < 400_000
        assert not uploading.done()
        assert sim.release() == 1
        await uploading
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()
        await sim.wait_for(lambda r: r.outcome)
    assert status.startswith(b"HTTP/1.1 413")
    assert record.form[0].size == len(block) * blocks
    assert len(record.body) <= 65536


@pytest.mark.gen_test
async def test_a_held_upload_does_not_hold_up_the_end() -> None:
    async with azure(hold_body_bytes=0) as sim:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.write(b"POST /openai/v1/x HTTP/1.1\r\nhost: s\r\ncontent-length: 9\r\n\r\n1234")
        record = await sim.wait_for(lambda r: r.phase == "holding")
        await sim.stop()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert record.outcome


@pytest.mark.gen_test
async def test_json_has_a_limit() -> None:
    async with azure(max_json_bytes=1000) as sim:
        answer = await ask(sim, SPEECH, {"model": "tts", "voice": "alloy", "input": "x" * 2000})
        [record] = sim.requests
    assert answer.status == 413
    assert "(1000) exceeded" in answer.json["error"]["message"]
    assert record.body_bytes > 2000
    assert len(record.body) == 1000


# --- speaking -----------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_speech_is_bytes_in_pieces(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.audio.speech.create(
            model="tts-n10-size1000", voice="alloy", input="hello", response_format="wav"
        )
        usual = await sdk.audio.speech.create(model="tts", voice="alloy", input="two words")
    assert answer.content == bytes(n % 256 for n in range(10_000))
    assert answer.response.headers["content-type"] == "audio/wav"
    assert answer.response.headers["transfer-encoding"] == "chunked"
    assert len(usual.content) == 2 * 2048


@pytest.mark.gen_test
async def test_speech_can_be_events() -> None:
    body = {"model": "tts-n3-size10", "voice": "alloy", "input": "hello", "stream_format": "sse"}
    async with azure() as sim:
        answer = await ask(sim, SPEECH, body)
    *deltas, done = answer.events
    assert [event["type"] for event in deltas] == ["speech.audio.delta"] * 3
    assert done["type"] == "speech.audio.done"
    assert done["usage"] == {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"voice": None}, "voice"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "raw"}, "stream_format"),
        ({"speed": 9}, "speed"),
    ],
)
async def test_bad_speech_is_refused(change: dict[str, Any], param: str) -> None:
    async with azure() as sim:
        answer = await ask(sim, SPEECH, {"model": "tts", "voice": "a", "input": "b", **change})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


@pytest.mark.gen_test
async def test_binary_answers_can_end_badly_and_hold_back() -> None:
    async with azure(send_buffer_bytes=256 * 1024) as sim, sdk_at(sim, PLAIN) as sdk:
        cut = await ask(sim, SPEECH, {"model": "tts-cut100", "voice": "a", "input": "b"})
        said = {"voice": "alloy", "input": "b"}
        speech = sdk.audio.speech.with_streaming_response
        async with speech.create(model="tts-bulk16", **said) as answer:
            received = 0
            async for piece in answer.iter_bytes(65536):
                received += len(piece)
                if received == len(piece):
                    record = await sim.wait_for(lambda r: r.deployment == "tts-bulk16")
                    assert record.bytes_sent < 16 * 1024 * 1024
        assert received == 16 * 1024 * 1024
    assert len(cut.body) == 100
    assert not cut.raw.endswith(b"0\r\n\r\n")


@pytest.mark.gen_test
async def test_speech_is_not_in_the_release_of_2024() -> None:
    async with azure() as sim, sdk_at(sim, AZURE, api_version="2024-10-21") as sdk:
        with pytest.raises(openai.NotFoundError):
            await sdk.audio.speech.create(model="tts", voice="alloy", input="hello")
