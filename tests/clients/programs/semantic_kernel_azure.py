"""semantic-kernel: its Azure services, which are async and take https addresses only. I/O."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantic_kernel import Kernel
from semantic_kernel.agents import AzureResponsesAgent
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    AzureAudioToText,
    AzureChatCompletion,
    AzureTextCompletion,
    AzureTextEmbedding,
    AzureTextToAudio,
    AzureTextToImage,
    OpenAIChatPromptExecutionSettings,
    OpenAIEmbeddingPromptExecutionSettings,
    OpenAITextPromptExecutionSettings,
    OpenAITextToAudioExecutionSettings,
)
from semantic_kernel.contents import AudioContent, ChatHistory
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function

from tests.clients.programs.refusals import check_401, check_404, check_429, check_broken
from tests.clients.programs.reporting import (
    ALIASES,
    DATED,
    GATEWAY,
    KEY,
    SAID,
    failure,
    gathered,
    holds,
    run,
    same,
)

SOUND = b"RIFF" + bytes(4096)
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(64)

Options = Callable[[str, str], dict[str, Any]]


def _endpoint(alias: str, key: str) -> dict[str, Any]:
    return {"endpoint": GATEWAY, "deployment_name": alias, "api_key": key, "api_version": DATED}


def _base_url(alias: str, key: str) -> dict[str, Any]:
    options = _endpoint(alias, key)
    del options["endpoint"]
    return {**options, "base_url": f"{GATEWAY}/openai/deployments/{alias}/"}


def _token(alias: str, key: str) -> dict[str, Any]:
    options = _endpoint(alias, key)
    del options["api_key"]
    return {**options, "ad_token": key}


SETUPS: dict[str, Options] = {
    "Azure… with endpoint": _endpoint,
    "Azure… with base_url": _base_url,
    "Azure… with ad_token": _token,
}


class Sky:
    """A plugin with one function."""

    @kernel_function(name="weather", description="The weather of a city.")
    def weather(self, city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"


@dataclass(frozen=True)
class Caller:
    """One way to set the services up."""

    options: Options
    """From alias and key."""

    def service(self, kind: Any, role: str) -> Any:
        """A service for the alias of a role."""
        return kind(**self.options(ALIASES[role], KEY))

    def chat(self, alias: str, *, key: str = KEY, retries: int = 0) -> Any:
        """A chat service. Retries are off: an error is to be seen."""
        service = AzureChatCompletion(**self.options(alias, key))
        service.client.max_retries = retries
        return service


def _history() -> ChatHistory:
    history = ChatHistory()
    history.add_user_message("ping")
    return history


async def _ask(service: Any) -> Any:
    [message] = await service.get_chat_message_contents(
        _history(), OpenAIChatPromptExecutionSettings()
    )
    return message


async def _streamed(service: Any, settings: Any = None, **more: Any) -> list[Any]:
    wanted = settings or OpenAIChatPromptExecutionSettings()
    parts = await gathered(service.get_streaming_chat_message_contents(_history(), wanted, **more))
    return [message for messages in parts for message in messages]


async def chat(caller: Caller) -> None:
    message = await _ask(caller.chat(ALIASES["chat"]))
    same((message.content, message.inner_content.model), (SAID, ALIASES["chat"]))
    same(message.metadata["usage"].completion_tokens, 7)


async def chat_stream(caller: Caller) -> None:
    messages = await _streamed(caller.chat(ALIASES["chat"]))
    same("".join(message.content for message in messages), SAID)


async def chat_stream_usage(caller: Caller) -> None:
    messages = await _streamed(caller.chat(ALIASES["chat"]))
    usages = [message.metadata["usage"] for message in messages]
    same([usage.completion_tokens for usage in usages if usage][-1], 7)


def _tooled() -> tuple[Kernel, OpenAIChatPromptExecutionSettings]:
    kernel = Kernel()
    kernel.add_plugin(Sky(), plugin_name="sky")
    choice = FunctionChoiceBehavior.Required(auto_invoke=False)
    return kernel, OpenAIChatPromptExecutionSettings(function_choice_behavior=choice)


async def chat_tools(caller: Caller) -> None:
    kernel, settings = _tooled()
    service = caller.chat(ALIASES["chat"])
    [message] = await service.get_chat_message_contents(_history(), settings, kernel=kernel)
    [call] = message.items
    same((call.name, call.parse_arguments()), ("sky-weather", {"city": "text"}))


async def chat_tools_stream(caller: Caller) -> None:
    kernel, settings = _tooled()
    messages = await _streamed(caller.chat(ALIASES["chat"]), settings, kernel=kernel)
    [call] = functools.reduce(lambda one, other: one + other, messages).items
    same((call.name, call.parse_arguments()), ("sky-weather", {"city": "text"}))


async def completions(caller: Caller) -> None:
    service = caller.service(AzureTextCompletion, "chat")
    [text] = await service.get_text_contents("ping", OpenAITextPromptExecutionSettings())
    same(text.text, SAID)


async def completions_stream(caller: Caller) -> None:
    service = caller.service(AzureTextCompletion, "chat")
    settings = OpenAITextPromptExecutionSettings()
    parts = await gathered(service.get_streaming_text_contents("ping", settings))
    same("".join(text.text for texts in parts for text in texts), SAID)


async def embeddings(caller: Caller) -> None:
    service = caller.service(AzureTextEmbedding, "embeddings")
    settings = OpenAIEmbeddingPromptExecutionSettings(dimensions=8)
    vectors = await service.generate_embeddings(["one", "two"], settings)
    same([len(vector) for vector in vectors], [8, 8])


def _agent(caller: Caller) -> Any:
    options = caller.options(ALIASES["chat"], KEY)
    client = AzureResponsesAgent.create_client(max_retries=0, **options)
    return AzureResponsesAgent(ai_model_id=ALIASES["chat"], client=client, name="echo")


async def responses(caller: Caller) -> None:
    same((await _agent(caller).get_response("ping")).message.content, SAID)


async def responses_stream(caller: Caller) -> None:
    parts = await gathered(_agent(caller).invoke_stream("ping"))
    same("".join(part.message.content for part in parts), SAID)


async def responses_continue(caller: Caller) -> None:
    agent = _agent(caller)
    first = await agent.get_response("ping")
    second = await agent.get_response("ping", thread=first.thread)
    tokens = [answer.message.metadata["usage"]["input_tokens"] for answer in (first, second)]
    holds(tokens[1] > tokens[0], tokens)


async def images_generate(caller: Caller) -> None:
    for role in ("dall_e", "gpt_image"):
        [image] = await caller.service(AzureTextToImage, role).generate_images("a cat")
        holds(image, image)


async def images_edit(caller: Caller) -> None:
    service = caller.service(AzureTextToImage, "gpt_image")
    picture = io.BytesIO(PICTURE)
    picture.name = "cat.png"
    [image] = await service.edit_image("a hat", image_files=[picture])
    holds(image, image)


async def transcribe(caller: Caller) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        path.write_bytes(SOUND)
        for role in ("whisper", "transcribe"):
            service = caller.service(AzureAudioToText, role)
            [text] = await service.get_text_contents(AudioContent(uri=str(path)))
            same(text.text, f"Hello from Azure OpenAI! You said: a.wav, {len(SOUND)} bytes")


async def speech(caller: Caller) -> None:
    service = caller.service(AzureTextToAudio, "speech")
    settings = OpenAITextToAudioExecutionSettings(voice="alloy")
    [audio] = await service.get_audio_contents("two words", settings)
    holds(len(audio.data) > 1000, len(audio.data))


async def _refused(caller: Caller, alias: str, key: str) -> Any:
    """What is behind the client's own exception: the SDK's."""
    error = await failure(lambda: _ask(caller.chat(alias, key=key)))
    same(type(error), ServiceResponseException)
    return error.__cause__


async def error_401(caller: Caller) -> None:
    await check_401(functools.partial(_refused, caller))


async def error_404(caller: Caller) -> None:
    await check_404(functools.partial(_refused, caller))


async def error_429(caller: Caller) -> None:
    await check_429(functools.partial(_refused, caller))


async def error_stream(caller: Caller) -> None:
    error = await failure(lambda: _streamed(caller.chat(ALIASES["broken"])))
    check_broken(error, ServiceResponseException)


async def retry_429(caller: Caller) -> None:
    service = caller.chat(ALIASES["every_other_throttled"], retries=1)
    for _ in range(2):  # one of two requests in a row is refused the first time
        same((await _ask(service)).content, SAID)


OPERATIONS = (
    chat,
    chat_stream,
    chat_stream_usage,
    chat_tools,
    chat_tools_stream,
    completions,
    completions_stream,
    embeddings,
    responses,
    responses_stream,
    responses_continue,
    images_generate,
    images_edit,
    transcribe,
    speech,
    error_401,
    error_404,
    error_429,
    error_stream,
    retry_429,
)

if __name__ == "__main__":
    run(
        {
            (f"{setup}, async", operation.__name__): functools.partial(operation, Caller(options))
            for setup, options in SETUPS.items()
            for operation in OPERATIONS
        }
    )
