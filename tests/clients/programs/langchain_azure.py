"""langchain-openai: its classes for Azure, and those for OpenAI. I/O."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
from langchain_core.messages import AIMessage
from langchain_openai import (
    AzureChatOpenAI,
    AzureOpenAI,
    AzureOpenAIEmbeddings,
    ChatOpenAI,
    OpenAI,
    OpenAIEmbeddings,
)
from pydantic import SecretStr

from tests.clients.programs.refusals import check_broken
from tests.clients.programs.reporting import (
    ALIASES,
    BARRED_KEY,
    DATED,
    GATEWAY,
    KEY,
    SAID,
    UNKNOWN_ALIAS,
    UNKNOWN_KEY,
    WEATHER,
    failure,
    gathered,
    got,
    holds,
    run,
    same,
)

TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}

Options = Callable[[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Caller:
    """One way to set the classes up, and whether their methods are the async ones."""

    azure: bool
    options: Options
    """From alias and key."""
    pace: str

    def chat(self, alias: str, *, key: str = KEY, **more: Any) -> Any:
        """A chat model. Retries are off: an error is to be seen."""
        kind = AzureChatOpenAI if self.azure else ChatOpenAI
        return kind(**{"max_retries": 0, **self.options(alias, key), **more})

    def text(self, alias: str) -> Any:
        """A model of completions."""
        return (AzureOpenAI if self.azure else OpenAI)(**self.options(alias, KEY))

    def embedder(self, alias: str) -> Any:
        """A model of embeddings that sends texts: to send tokens it would fetch a vocabulary."""
        kind = AzureOpenAIEmbeddings if self.azure else OpenAIEmbeddings
        options = self.options(alias, KEY)
        return kind(**options, dimensions=8, check_embedding_ctx_length=False)

    async def call(self, model: Any, method: str, *arguments: Any, **more: Any) -> Any:
        """Call the method, or the async one beside it."""
        name = method if self.pace == "blocking" else f"a{method}"
        return await got(getattr(model, name)(*arguments, **more))


def _endpoint(alias: str, key: str) -> dict[str, Any]:
    return {
        "azure_endpoint": GATEWAY,
        "api_version": DATED,
        "api_key": SecretStr(key),
        "model": alias,
    }


def _deployment(alias: str, key: str) -> dict[str, Any]:
    options = _endpoint(alias, key)
    del options["model"]
    return {**options, "azure_deployment": alias}


def _token(alias: str, key: str) -> dict[str, Any]:
    options = _deployment(alias, key)
    del options["api_key"]
    return {**options, "azure_ad_token": SecretStr(key)}


def _plain(alias: str, key: str) -> dict[str, Any]:
    return {"base_url": f"{GATEWAY}/v1", "api_key": SecretStr(key), "model": alias}


SETUPS: dict[str, tuple[bool, Options]] = {
    "Azure… with model": (True, _endpoint),
    "Azure… with azure_deployment": (True, _deployment),
    "Azure… with a token": (True, _token),
    "…OpenAI on /v1": (False, _plain),
}


async def chat(caller: Caller) -> None:
    answer = await caller.call(caller.chat(ALIASES["chat"]), "invoke", "ping")
    same((answer.content, answer.usage_metadata["output_tokens"]), (SAID, 7))
    same(answer.response_metadata["model_name"], ALIASES["chat"])


async def _streamed(caller: Caller, model: Any) -> list[Any]:
    stream = model.stream("ping") if caller.pace == "blocking" else model.astream("ping")
    return await gathered(stream)


async def chat_stream(caller: Caller) -> None:
    chunks = await _streamed(caller, caller.chat(ALIASES["chat"], stream_usage=False))
    same("".join(chunk.content for chunk in chunks), SAID)
    same([chunk.usage_metadata for chunk in chunks if chunk.usage_metadata], [])


async def chat_stream_usage(caller: Caller) -> None:
    chunks = await _streamed(caller, caller.chat(ALIASES["chat"], stream_usage=True))
    whole = functools.reduce(lambda one, other: one + other, chunks)
    same((whole.content, whole.usage_metadata["output_tokens"]), (SAID, 7))


def _equipped(caller: Caller) -> Any:
    return caller.chat(ALIASES["chat"]).bind_tools([TOOL], tool_choice="required")


async def chat_tools(caller: Caller) -> None:
    [call] = (await caller.call(_equipped(caller), "invoke", "ping")).tool_calls
    same((call["name"], call["args"]), ("weather", {"city": "text"}))


async def chat_tools_stream(caller: Caller) -> None:
    chunks = await _streamed(caller, _equipped(caller))
    [call] = functools.reduce(lambda one, other: one + other, chunks).tool_calls
    same((call["name"], call["args"]), ("weather", {"city": "text"}))


async def completions(caller: Caller) -> None:
    same(await caller.call(caller.text(ALIASES["chat"]), "invoke", "ping"), SAID)


async def completions_stream(caller: Caller) -> None:
    same("".join(await _streamed(caller, caller.text(ALIASES["chat"]))), SAID)


async def embeddings(caller: Caller) -> None:
    model = caller.embedder(ALIASES["embeddings"])
    vectors = await caller.call(model, "embed_documents", ["one", "two"])
    same([len(vector) for vector in vectors], [8, 8])
    same(len(await caller.call(model, "embed_query", "one")), 8)


def _responder(caller: Caller, **more: Any) -> Any:
    return caller.chat(ALIASES["chat"], use_responses_api=True, **more)


async def responses(caller: Caller) -> None:
    answer = await caller.call(_responder(caller), "invoke", "ping")
    same((answer.text, answer.usage_metadata["output_tokens"]), (SAID, 7))


async def responses_stream(caller: Caller) -> None:
    chunks = await _streamed(caller, _responder(caller))
    same("".join(chunk.text for chunk in chunks), SAID)


async def responses_continue(caller: Caller) -> None:
    model = _responder(caller, use_previous_response_id=True)
    first = await caller.call(model, "invoke", "ping")
    holds(isinstance(first, AIMessage), first)
    second = await caller.call(model, "invoke", [("user", "ping"), first, ("user", "ping")])
    first_tokens = first.usage_metadata["input_tokens"]
    holds(second.usage_metadata["input_tokens"] > first_tokens, second.usage_metadata)


async def _refused(caller: Caller, alias: str, key: str = KEY) -> Any:
    return await failure(lambda: caller.call(caller.chat(alias, key=key), "invoke", "ping"))


async def error_401(caller: Caller) -> None:
    error = await _refused(caller, ALIASES["chat"], UNKNOWN_KEY)
    holds(isinstance(error, openai.AuthenticationError), error)
    same(error.code, "invalid_api_key")


async def error_404(caller: Caller) -> None:
    error = await _refused(caller, UNKNOWN_ALIAS)
    holds(isinstance(error, openai.NotFoundError), error)
    same(error.code, "model_not_found")


async def error_429(caller: Caller) -> None:
    error = await _refused(caller, ALIASES["chat"], BARRED_KEY)
    holds(isinstance(error, openai.RateLimitError), error)
    same(error.code, "rate_limit_exceeded")
    error = await _refused(caller, ALIASES["throttled"])
    holds(isinstance(error, openai.RateLimitError), error)


async def error_stream(caller: Caller) -> None:
    error = await failure(lambda: _streamed(caller, caller.chat(ALIASES["broken"])))
    check_broken(error)


async def retry_429(caller: Caller) -> None:
    model = caller.chat(ALIASES["every_other_throttled"], max_retries=1)
    for _ in range(2):  # one of two requests in a row is refused the first time
        same((await caller.call(model, "invoke", "ping")).content, SAID)


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
    error_401,
    error_404,
    error_429,
    error_stream,
    retry_429,
)

if __name__ == "__main__":
    run(
        {
            (f"{setup}, {pace}", operation.__name__): functools.partial(
                operation, Caller(azure, options, pace)
            )
            for setup, (azure, options) in SETUPS.items()
            for pace in ("blocking", "async")
            for operation in OPERATIONS
        }
    )
