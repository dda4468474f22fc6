"""openai-python, 1.x, 2.x and 3.x: both classes, both surfaces, blocking and async. I/O.

Each operation is written once: what a blocking client returns and what an async one lets be awaited
is the same thing to it.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.clients.programs.refusals import check_401, check_404, check_429, check_broken
from tests.clients.programs.reporting import (
    ALIASES,
    DATED,
    GATEWAY,
    KEY,
    SAID,
    WEATHER,
    entered,
    failure,
    gathered,
    got,
    holds,
    run,
    same,
)

MESSAGES = [{"role": "user", "content": "ping"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
SOUND = ("a.wav", b"RIFF" + bytes(4096))
PICTURE = ("cat.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "image/png")
HEARD = f"Hello from Azure OpenAI! You said: a.wav, {len(SOUND[1])} bytes"
SUFFIXES = {"/v1": "", "/openai/v1": "/"}
"""The two surfaces, without and with the slash at the end that some write."""


@dataclass(frozen=True)
class Caller:
    """One way to set the client up."""

    way: str
    make: Callable[..., Any]
    """Takes alias, key, and options of the client."""
    kept: dict[Any, Any] = field(default_factory=dict)

    def sdk(self, alias: str, *, key: str = KEY, retries: int = 0, **options: Any) -> Any:
        """A client for an alias. Retries are off: an error is to be seen."""
        named = alias if "azure_deployment" in self.way else ""
        kind = (named, key, retries, json.dumps(options))
        if kind not in self.kept:
            self.kept[kind] = self.make(alias, key, max_retries=retries, **options)
        return self.kept[kind]

    def storage(self) -> Any:
        """A client for what belongs to a resource: the header says to which."""
        return self.sdk(ALIASES["chat"], default_headers={"x-aisix-model": ALIASES["chat"]})


def callers() -> list[Caller]:
    """Every way: class, surface and credential, blocking and async."""
    made = []
    for suffix, plain, azure in (
        (", blocking", openai.OpenAI, openai.AzureOpenAI),
        (", async", openai.AsyncOpenAI, openai.AsyncAzureOpenAI),
    ):
        made += [
            Caller(f"OpenAI on {surface}{suffix}", functools.partial(_plain, plain, surface))
            for surface in SUFFIXES
        ]
        made += [
            Caller(f"AzureOpenAI{suffix}", functools.partial(_azure, azure, "api_key")),
            Caller(
                f"AzureOpenAI with a token{suffix}",
                functools.partial(_azure, azure, "azure_ad_token"),
            ),
            Caller(f"AzureOpenAI with azure_deployment{suffix}", functools.partial(_bound, azure)),
        ]
    return made


def _socket(path: str) -> str:
    return GATEWAY.replace("http", "ws", 1) + path


def _plain(kind: Any, surface: str, _alias: str, key: str, **options: Any) -> Any:
    return kind(
        base_url=GATEWAY + surface + SUFFIXES[surface],
        websocket_base_url=_socket(surface),
        api_key=key,
        **options,
    )


def _azure(kind: Any, credential: str, _alias: str, key: str, **options: Any) -> Any:
    return kind(
        azure_endpoint=GATEWAY,
        websocket_base_url=_socket("/openai"),
        api_version=DATED,
        **{credential: key},
        **options,
    )


def _bound(kind: Any, alias: str, key: str, **options: Any) -> Any:
    return _azure(kind, "api_key", alias, key, azure_deployment=alias, **options)


# --- chat, completions, embeddings ----------------------------------------------------------------


async def _ask(caller: Caller, role: str = "chat", **more: Any) -> Any:
    alias = ALIASES[role]
    chat = caller.sdk(alias).chat.completions
    return await got(chat.create(model=alias, messages=MESSAGES, **more))


def _text(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def chat(caller: Caller) -> None:
    answer = await _ask(caller)
    same(answer.choices[0].message.content, SAID)
    same((answer.model, answer.usage.completion_tokens), (ALIASES["chat"], 7))
    holds(answer._request_id, answer)


async def chat_stream(caller: Caller) -> None:
    chunks = await gathered(_ask(caller, stream=True))
    same(_text(chunks), SAID)
    same({chunk.model for chunk in chunks}, {ALIASES["chat"]})
    same([chunk.usage for chunk in chunks if chunk.usage], [])


async def chat_stream_usage(caller: Caller) -> None:
    chunks = await gathered(_ask(caller, stream=True, stream_options={"include_usage": True}))
    same(_text(chunks), SAID)
    same((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], 7))


async def chat_tools(caller: Caller) -> None:
    answer = await _ask(caller, tools=[TOOL], tool_choice="required")
    [call] = answer.choices[0].message.tool_calls
    same((call.function.name, call.function.arguments), ("weather", '{"city": "text"}'))


async def chat_tools_stream(caller: Caller) -> None:
    chunks = await gathered(_ask(caller, tools=[TOOL], tool_choice="required", stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
    same("".join(call.name or "" for call in calls), "weather")
    same(json.loads("".join(call.arguments or "" for call in calls)), {"city": "text"})


async def chat_stream_raw(caller: Caller) -> None:
    alias = ALIASES["chat"]
    chat = caller.sdk(alias).chat.completions.with_streaming_response
    opened = chat.create(model=alias, messages=MESSAGES, stream=True)
    async with entered(opened) as response:
        lines = [line for line in await gathered(response.iter_lines()) if line]
        same(response.headers["x-request-id"], response.headers["x-aisix-request-id"])
    same(lines[-1], "data: [DONE]")


async def completions(caller: Caller) -> None:
    alias = ALIASES["chat"]
    answer = await got(caller.sdk(alias).completions.create(model=alias, prompt="ping"))
    same((answer.choices[0].text, answer.model), (SAID, alias))


async def completions_stream(caller: Caller) -> None:
    alias = ALIASES["chat"]
    made = caller.sdk(alias).completions.create(model=alias, prompt="ping", stream=True)
    chunks = await gathered(made)
    same("".join(choice.text for chunk in chunks for choice in chunk.choices), SAID)


async def _embed(caller: Caller, given: Any, **more: Any) -> Any:
    alias = ALIASES["embeddings"]
    sdk = caller.sdk(alias)
    answer = await got(sdk.embeddings.create(model=alias, input=given, dimensions=8, **more))
    same(answer.model, alias)
    return answer


async def embeddings(caller: Caller) -> None:
    answer = await _embed(caller, ["one", "two"])
    same([len(entry.embedding) for entry in answer.data], [8, 8])
    plain = await _embed(caller, "one", encoding_format="float")
    same(len(plain.data[0].embedding), 8)


async def embeddings_tokens(caller: Caller) -> None:
    answer = await _embed(caller, [[1, 2, 3], [4]])
    same([len(entry.embedding) for entry in answer.data], [8, 8])
    same(answer.usage.prompt_tokens, 4)


async def embeddings_base64(caller: Caller) -> None:
    answer = await _embed(caller, "one", encoding_format="base64")
    vector = answer.data[0].embedding
    same(len(struct.unpack("<8f", base64.b64decode(vector))), 8)


# --- responses ------------------------------------------------------------------------------------


async def _respond(caller: Caller, **more: Any) -> tuple[Any, Any]:
    alias = ALIASES["chat"]
    sdk = caller.sdk(alias)
    return sdk.responses, await got(sdk.responses.create(model=alias, input="ping", **more))


async def responses(caller: Caller) -> None:
    _, answer = await _respond(caller)
    same((answer.output_text, answer.model), (SAID, ALIASES["chat"]))
    same(answer.usage.output_tokens, 7)


async def responses_stream(caller: Caller) -> None:
    _, stream = await _respond(caller, stream=True)
    events = await gathered(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    same("".join(deltas), SAID)
    same(events[-1].type, "response.completed")


async def responses_retrieve(caller: Caller) -> None:
    there, answer = await _respond(caller)
    again = await got(there.retrieve(answer.id))
    same((again.id, again.output_text), (answer.id, SAID))


async def responses_continue(caller: Caller) -> None:
    _, first = await _respond(caller)
    _, second = await _respond(caller, previous_response_id=first.id)
    same(second.previous_response_id, first.id)
    holds(second.usage.input_tokens > first.usage.input_tokens, second.usage)


async def responses_input_items(caller: Caller) -> None:
    there, answer = await _respond(caller)
    items = await gathered(there.input_items.list(answer.id))
    same([item.content[0].text for item in items], ["ping"])


async def responses_delete(caller: Caller) -> None:
    there, answer = await _respond(caller)
    await got(there.delete(answer.id))
    error = await failure(lambda: there.retrieve(answer.id))
    holds(isinstance(error, openai.NotFoundError), error)


async def responses_cancel(caller: Caller) -> None:
    there, answer = await _respond(caller, background=True)
    holds(answer.status in ("queued", "in_progress"), answer.status)
    cancelled = await got(there.cancel(answer.id))
    same((cancelled.id, cancelled.status), (answer.id, "cancelled"))


# --- images and audio -----------------------------------------------------------------------------


async def images_generate(caller: Caller) -> None:
    for role in ("dall_e", "gpt_image"):
        alias = ALIASES[role]
        answer = await got(caller.sdk(alias).images.generate(model=alias, prompt="a cat"))
        holds(answer.data[0].url or answer.data[0].b64_json, answer)


async def images_generate_stream(caller: Caller) -> None:
    alias = ALIASES["gpt_image"]
    images = caller.sdk(alias).images
    events = await gathered(
        images.generate(model=alias, prompt="a cat", stream=True, partial_images=1)
    )
    same(
        [event.type for event in events],
        ["image_generation.partial_image", "image_generation.completed"],
    )


async def images_edit(caller: Caller) -> None:
    alias = ALIASES["gpt_image"]
    images = caller.sdk(alias).images
    answer = await got(images.edit(model=alias, image=[PICTURE, PICTURE], prompt="both"))
    holds(answer.data[0].b64_json, answer)


async def _hear(caller: Caller, role: str, **more: Any) -> Any:
    alias = ALIASES[role]
    heard = caller.sdk(alias).audio.transcriptions
    return await got(heard.create(model=alias, file=SOUND, **more))


async def transcribe(caller: Caller) -> None:
    same((await _hear(caller, "whisper")).text, HEARD)
    same((await _hear(caller, "transcribe")).text, HEARD)


async def transcribe_text(caller: Caller) -> None:
    same((await _hear(caller, "whisper", response_format="text")).strip(), HEARD)


async def transcribe_srt(caller: Caller) -> None:
    subtitles = await _hear(caller, "whisper", response_format="srt")
    holds(subtitles.startswith("1\n00:00:00,000 --> "), subtitles)


async def transcribe_stream(caller: Caller) -> None:
    events = await gathered(_hear(caller, "transcribe", stream=True))
    same("".join(event.delta for event in events[:-1]), HEARD)
    same((events[-1].type, events[-1].text), ("transcript.text.done", HEARD))


async def translate(caller: Caller) -> None:
    alias = ALIASES["whisper"]
    translations = caller.sdk(alias).audio.translations
    same((await got(translations.create(model=alias, file=SOUND))).text, HEARD)


SPEECH = {"voice": "alloy", "input": "two words"}


async def speech(caller: Caller) -> None:
    alias = ALIASES["speech"]
    answer = await got(caller.sdk(alias).audio.speech.create(model=alias, **SPEECH))
    same(answer.response.headers["content-type"], "audio/mpeg")
    holds(len(answer.content) > 1000, len(answer.content))


async def speech_stream(caller: Caller) -> None:
    alias = ALIASES["speech"]
    opened = caller.sdk(alias).audio.speech.with_streaming_response.create(model=alias, **SPEECH)
    async with entered(opened) as answer:
        pieces = await gathered(answer.iter_bytes(1024))
    holds(sum(map(len, pieces)) > 1000, len(pieces))


# --- models, files, batches -----------------------------------------------------------------------


async def models_list(caller: Caller) -> None:
    listed = await gathered(caller.sdk(ALIASES["chat"]).models.list())
    holds(ALIASES["chat"] in [model.id for model in listed], listed)


async def models_retrieve(caller: Caller) -> None:
    found = await got(caller.sdk(ALIASES["chat"]).models.retrieve(ALIASES["chat"]))
    same((found.id, found.object), (ALIASES["chat"], "model"))


def _lines() -> bytes:
    body = {"model": "gpt4o", "messages": MESSAGES}
    line = {"custom_id": "r1", "method": "POST", "url": "/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


async def _upload(caller: Caller) -> tuple[Any, Any]:
    sdk = caller.storage()
    return sdk, await got(sdk.files.create(file=("in.jsonl", _lines()), purpose="batch"))


async def files_upload(caller: Caller) -> None:
    _, file = await _upload(caller)
    same((file.filename, file.bytes, file.purpose), ("in.jsonl", len(_lines()), "batch"))


async def files_content(caller: Caller) -> None:
    sdk, file = await _upload(caller)
    same((await got(sdk.files.content(file.id))).content, _lines())


async def files_list(caller: Caller) -> None:
    sdk, file = await _upload(caller)
    holds(file.id in [each.id for each in await gathered(sdk.files.list())], file.id)


async def files_delete(caller: Caller) -> None:
    sdk, file = await _upload(caller)
    holds((await got(sdk.files.delete(file.id))).deleted, file.id)
    error = await failure(lambda: sdk.files.retrieve(file.id))
    holds(isinstance(error, openai.NotFoundError), error)


async def _batch(caller: Caller) -> tuple[Any, Any]:
    sdk, file = await _upload(caller)
    given = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return sdk, await got(sdk.batches.create(input_file_id=file.id, **given))


async def batches_create(caller: Caller) -> None:
    sdk, batch = await _batch(caller)
    same((await got(sdk.batches.retrieve(batch.id))).id, batch.id)


async def batches_list(caller: Caller) -> None:
    sdk, batch = await _batch(caller)
    holds(batch.id in [each.id for each in await gathered(sdk.batches.list())], batch.id)


# --- errors ---------------------------------------------------------------------------------------


async def _refused(caller: Caller, alias: str, key: str) -> Any:
    chat = caller.sdk(alias, key=key).chat.completions
    return await failure(lambda: chat.create(model=alias, messages=MESSAGES))


async def error_401(caller: Caller) -> None:
    await check_401(functools.partial(_refused, caller))


async def error_404(caller: Caller) -> None:
    await check_404(functools.partial(_refused, caller))


async def error_429(caller: Caller) -> None:
    await check_429(functools.partial(_refused, caller))


async def error_stream(caller: Caller) -> None:
    error = await failure(lambda: gathered(_ask(caller, "broken", stream=True)))
    check_broken(error)


async def retry_429(caller: Caller) -> None:
    alias = ALIASES["every_other_throttled"]
    chat = caller.sdk(alias, retries=1).chat.completions
    for _ in range(2):  # one of two requests in a row is refused the first time
        answer = await got(chat.create(model=alias, messages=MESSAGES))
        same(answer.choices[0].message.content, SAID)


# --- realtime -------------------------------------------------------------------------------------


async def realtime(caller: Caller) -> None:
    sdk, alias = caller.sdk(ALIASES["realtime"]), ALIASES["realtime"]
    beta = openai.__version__.startswith("1.")
    there = sdk.beta.realtime if beta else sdk.realtime
    async with entered(there.connect(model=alias)) as connection:
        created = await got(connection.recv())
        same((created.type, created.session.model), ("session.created", alias))
        await got(connection.response.create())
        kinds = []
        while "response.done" not in kinds:
            kinds.append((await got(connection.recv())).type)
    holds(any(kind.endswith("delta") for kind in kinds), kinds)


Operation = Callable[[Caller], Awaitable[None]]

OPERATIONS: tuple[Operation, ...] = (
    chat,
    chat_stream,
    chat_stream_usage,
    chat_stream_raw,
    chat_tools,
    chat_tools_stream,
    completions,
    completions_stream,
    embeddings,
    embeddings_tokens,
    embeddings_base64,
    responses,
    responses_stream,
    responses_retrieve,
    responses_continue,
    responses_input_items,
    responses_delete,
    responses_cancel,
    images_generate,
    images_generate_stream,
    images_edit,
    transcribe,
    transcribe_text,
    transcribe_srt,
    transcribe_stream,
    translate,
    speech,
    speech_stream,
    realtime,
    models_list,
    models_retrieve,
    files_upload,
    files_content,
    files_list,
    files_delete,
    batches_create,
    batches_list,
    error_401,
    error_404,
    error_429,
    error_stream,
    retry_429,
)

if __name__ == "__main__":
    run(
        {
            (caller.way, operation.__name__): functools.partial(operation, caller)
            for caller in callers()
            for operation in OPERATIONS
        }
    )
