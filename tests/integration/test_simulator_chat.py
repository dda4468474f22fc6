"""The simulator's chat, embeddings and models through the official SDK, both classes."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest

from tests.support.azure import azure
from tests.support.sdk import KINDS, PLAIN, sdk_at

ASKED: list[Any] = [{"role": "user", "content": "ping"}]
SAID = "Hello from Azure OpenAI! You said: ping"
AUDIO: dict[str, Any] = {"modalities": ["text", "audio"], "messages": ASKED}
by_both = pytest.mark.parametrize("kind", KINDS)


@by_both
@pytest.mark.gen_test
async def test_chat_in_choices_with_logprobs_whole_and_streamed(kind: str) -> None:
    more = {"n": 2, "logprobs": True, "top_logprobs": 2, "messages": ASKED}
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        whole = await sdk.chat.completions.create(model="gpt4o-prod", **more)
        stream = await sdk.chat.completions.create(model="gpt4o-prod", stream=True, **more)
        chunks = [chunk async for chunk in stream]
        models = [model.id async for model in sdk.models.list()]
    assert [choice.message.content for choice in whole.choices] == [SAID, f"{SAID} (2)"]
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [SAID, f"{SAID} (2)"]
    assert "gpt-4o-2024-08-06" in models


@by_both
@pytest.mark.gen_test
async def test_a_spoken_answer_has_sound_and_transcript(kind: str) -> None:
    recording = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "ping"}, recording]}]
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        whole = await sdk.chat.completions.create(
            model="gpt-4o-audio",
            modalities=["text", "audio"],
            messages=messages,
            audio={"voice": "alloy", "format": "wav"},
        )
        stream = await sdk.chat.completions.create(
            model="gpt-4o-audio", stream=True, audio={"voice": "alloy", "format": "pcm16"}, **AUDIO
        )
        chunks = [chunk async for chunk in stream]
    message, usage = whole.choices[0].message, whole.usage
    assert (message.content, message.audio.transcript) == (None, SAID)
    assert usage.prompt_tokens_details.audio_tokens == 100
    assert usage.completion_tokens == 7 + usage.completion_tokens_details.audio_tokens
    deltas = [choice.delta.audio for chunk in chunks for choice in chunk.choices]
    parts = [delta for delta in deltas if delta is not None]
    assert "".join(part.transcript or "" for part in parts) == SAID
    heard = b"".join(base64.b64decode(part.data or "") for part in parts)
    assert len(heard) == len(base64.b64decode(message.audio.data)) > 0
    assert parts[0].id.startswith("audio_")


@pytest.mark.gen_test
async def test_a_spoken_answer_needs_a_voice_and_a_format_that_streams() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(model="gpt-4o-audio", **AUDIO)
        assert raised.value.param == "audio"
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(
                model="a", stream=True, audio={"voice": "alloy", "format": "mp3"}, **AUDIO
            )
        assert raised.value.param == "audio.format"


@by_both
@pytest.mark.gen_test
async def test_embeddings_of_texts_and_of_tokens(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:

        async def embed(given: Any, **more: Any) -> Any:
            return await sdk.embeddings.create(model="embed", input=given, **more)

        packed = await embed(["a", "b"], dimensions=8)
        plain = await embed("a", dimensions=8, encoding_format="float")
        tokens = await embed([[1, 2, 3], [4]])
        most = await embed(["x"] * 2048, dimensions=1)
        with pytest.raises(openai.BadRequestError, match="2048"):
            await embed(["x"] * 2049)
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert (len(packed.data), len(packed.data[0].embedding)) == (2, 8)
    assert (tokens.usage.total_tokens, len(tokens.data[0].embedding)) == (4, 1536)
    assert len(most.data) == 2048
