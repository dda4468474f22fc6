"""LlamaIndex: its AzureOpenAI, AzureOpenAIResponses and AzureOpenAIEmbedding. I/O.

A model's own name is given beside the alias, because the class looks its context window up by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.azure_openai import AzureOpenAIEmbedding
from llama_index.llms.azure_openai import AzureOpenAI, AzureOpenAIResponses

from tests.clients.programs.refusals import check_401, check_404, check_429, check_broken
from tests.clients.programs.reporting import (
    ALIASES,
    DATED,
    GATEWAY,
    KEY,
    SAID,
    failure,
    gathered,
    got,
    run,
    same,
)

MESSAGES = [ChatMessage(role="user", content="ping")]
NAMES = {"chat": "gpt-4o", "completions": "gpt-3.5-turbo-instruct"}

Options = Callable[[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Caller:
    """One way to set the classes up, and whether their methods are the async ones."""

    options: Options
    """From alias and key."""
    pace: str

    def model(self, alias: str, *, key: str = KEY, kind: str = "chat", retries: int = 0) -> Any:
        """A model. Retries are off: an error is to be seen."""
        options = self.options(alias, key)
        return AzureOpenAI(model=NAMES[kind], max_retries=retries, max_tokens=64, **options)

    def responder(self, **more: Any) -> Any:
        """A model behind the Responses API."""
        options = self.options(ALIASES["chat"], KEY)
        return AzureOpenAIResponses(model=NAMES["chat"], max_retries=0, **options, **more)

    def embedder(self, alias: str) -> Any:
        """A model of embeddings."""
        options = self.options(alias, KEY)
        options["azure_deployment"] = options.pop("engine", alias)
        name = "text-embedding-3-small"
        return AzureOpenAIEmbedding(model=name, dimensions=8, max_retries=0, **options)

    async def call(self, model: Any, method: str, *arguments: Any, **more: Any) -> Any:
        """Call the method, or the async one beside it."""
        name = method if self.pace == "blocking" else f"a{method}"
        return await got(getattr(model, name)(*arguments, **more))


def _engine(alias: str, key: str) -> dict[str, Any]:
    return {"azure_endpoint": GATEWAY, "api_version": DATED, "api_key": key, "engine": alias}


def _deployment(alias: str, key: str) -> dict[str, Any]:
    options = _engine(alias, key)
    del options["engine"]
    return {**options, "azure_deployment": alias}


def _token(alias: str, key: str) -> dict[str, Any]:
    options = _engine(alias, key)
    del options["api_key"]
    return {**options, "use_azure_ad": True, "azure_ad_token_provider": lambda: key}


SETUPS: dict[str, Options] = {
    "AzureOpenAI with engine": _engine,
    "AzureOpenAI with azure_deployment": _deployment,
    "AzureOpenAI with use_azure_ad": _token,
}


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


TOOL = FunctionTool.from_defaults(fn=weather)


async def chat(caller: Caller) -> None:
    answer = await caller.call(caller.model(ALIASES["chat"]), "chat", MESSAGES)
    same(answer.message.content, SAID)
    same((answer.raw.model, answer.raw.usage.completion_tokens), (ALIASES["chat"], 7))


async def chat_stream(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"])
    parts = await gathered(caller.call(model, "stream_chat", MESSAGES))
    same("".join(part.delta or "" for part in parts), SAID)


async def chat_stream_usage(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"])
    more = {"stream_options": {"include_usage": True}}
    parts = await gathered(caller.call(model, "stream_chat", MESSAGES, **more))
    same(parts[-1].raw.usage.completion_tokens, 7)


async def chat_tools(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"])
    more = {"user_msg": "ping", "tool_required": True}
    answer = await caller.call(model, "chat_with_tools", [TOOL], **more)
    [call] = model.get_tool_calls_from_response(answer)
    same((call.tool_name, call.tool_kwargs), ("weather", {"city": "text"}))


async def chat_tools_stream(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"])
    more = {"user_msg": "ping", "tool_required": True}
    parts = await gathered(caller.call(model, "stream_chat_with_tools", [TOOL], **more))
    [call] = model.get_tool_calls_from_response(parts[-1])
    same((call.tool_name, call.tool_kwargs), ("weather", {"city": "text"}))


async def completions(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"], kind="completions")
    answer = await caller.call(model, "complete", "ping")
    same((answer.text, answer.raw.object), (SAID, "text_completion"))


async def completions_stream(caller: Caller) -> None:
    model = caller.model(ALIASES["chat"], kind="completions")
    parts = await gathered(caller.call(model, "stream_complete", "ping"))
    same((parts[-1].text, parts[-1].raw.object), (SAID, "text_completion"))


async def embeddings(caller: Caller) -> None:
    model = caller.embedder(ALIASES["embeddings"])
    if caller.pace == "blocking":
        vectors = model.get_text_embedding_batch(["one", "two"])
    else:
        vectors = await model.aget_text_embedding_batch(["one", "two"])
    same([len(vector) for vector in vectors], [8, 8])


async def responses(caller: Caller) -> None:
    answer = await caller.call(caller.responder(), "chat", MESSAGES)
    same((answer.message.content, answer.raw.model), (SAID, ALIASES["chat"]))


async def responses_stream(caller: Caller) -> None:
    parts = await gathered(caller.call(caller.responder(), "stream_chat", MESSAGES))
    same("".join(part.delta or "" for part in parts), SAID)


async def responses_continue(caller: Caller) -> None:
    model = caller.responder(track_previous_responses=True, store=True)
    first, second = [await caller.call(model, "chat", MESSAGES) for _ in range(2)]
    same(second.raw.previous_response_id, first.raw.id)


async def _refused(caller: Caller, alias: str, key: str) -> Any:
    model = caller.model(alias, key=key)
    return await failure(lambda: caller.call(model, "chat", MESSAGES))


async def error_401(caller: Caller) -> None:
    await check_401(functools.partial(_refused, caller))


async def error_404(caller: Caller) -> None:
    await check_404(functools.partial(_refused, caller))


async def error_429(caller: Caller) -> None:
    await check_429(functools.partial(_refused, caller))


async def error_stream(caller: Caller) -> None:
    model = caller.model(ALIASES["broken"])
    error = await failure(lambda: gathered(caller.call(model, "stream_chat", MESSAGES)))
    check_broken(error)


async def retry_429(caller: Caller) -> None:
    model = caller.model(ALIASES["every_other_throttled"], retries=1)
    for _ in range(2):  # one of two requests in a row is refused the first time
        answer = await caller.call(model, "chat", MESSAGES)
        same(answer.message.content, SAID)


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
                operation, Caller(options, pace)
            )
            for setup, options in SETUPS.items()
            for pace in ("blocking", "async")
            for operation in OPERATIONS
        }
    )
