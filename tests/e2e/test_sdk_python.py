"""The official openai SDK as the client: both classes, blocking and async, whole and streamed."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam

from tests.support.process import ADMIN_KEY, CALLER_KEY, Stand, send

MESSAGES: list[Any] = [{"role": "user", "content": "ping"}]
SAID = "Hello from Azure OpenAI! You said: ping"
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

Sdk = OpenAI | AzureOpenAI


@contextmanager
def sdk_of(kind: str, bench: Stand, key: str = CALLER_KEY) -> Iterator[Any]:
    """One client, closed at the end. Retries are off: an error is to be seen."""
    proxy = bench.gateway.proxy
    made: Any
    if kind == "OpenAI":
        made = OpenAI(base_url=f"{proxy}/v1", api_key=key, max_retries=0)
    elif kind == "OpenAI on /openai/v1":
        made = OpenAI(base_url=f"{proxy}/openai/v1", api_key=key, max_retries=0)
    else:
        made = AzureOpenAI(
            azure_endpoint=proxy, api_key=key, api_version="2024-10-21", max_retries=0
        )
    with made:
        yield made


@pytest.fixture(params=["OpenAI", "OpenAI on /openai/v1", "AzureOpenAI"])
def sdk(request: pytest.FixtureRequest, bench: Stand) -> Iterator[Sdk]:
    with sdk_of(request.param, bench) as made:
        yield made


@pytest.fixture(scope="module")
def alias(bench: Stand) -> str:
    return bench.alias("gpt4o-prod")


def text_of(stream: Any) -> str:
    return "".join(
        choice.delta.content or "" for chunk in stream for choice in chunk.choices if choice.delta
    )


# --- answers ------------------------------------------------------------------------------------


def test_a_chat_completion_is_answered_under_the_alias(sdk: Sdk, alias: str) -> None:
    answer = sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == alias
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert answer._request_id


def test_a_streamed_chat_completion_arrives_in_pieces(sdk: Sdk, alias: str) -> None:
    with sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert text_of(chunks) == SAID
    assert {chunk.model for chunk in chunks} == {alias}
    assert len(chunks) >= 8
    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_usage_chunk_comes_last_when_it_is_asked_for(sdk: Sdk, alias: str) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model=alias, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert text_of(chunks) == SAID
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


def test_the_chat_stream_helper_gathers_the_answer(sdk: Sdk, alias: str) -> None:
    with sdk.chat.completions.stream(model=alias, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == SAID


@pytest.mark.parametrize("stream", [False, True])
def test_completions_answer(sdk: Sdk, alias: str, stream: bool) -> None:
    answer: Any = sdk.completions.create(model=alias, prompt="ping", stream=stream)
    pieces = list(answer) if stream else [answer]
    text = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert text == SAID
    assert {piece.model for piece in pieces} == {alias}


@pytest.mark.parametrize(
    "options", [{}, {"encoding_format": "float"}], ids=["base64 by default", "float"]
)
def test_embeddings_are_vectors(sdk: Sdk, alias: str, options: dict[str, Any]) -> None:
    answer = sdk.embeddings.create(model=alias, input=["one", "two"], dimensions=8, **options)
    assert [len(entry.embedding) for entry in answer.data] == [8, 8]
    assert all(math.isclose(math.hypot(*e.embedding), 1.0, rel_tol=1e-4) for e in answer.data)
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.model == alias
    assert answer.usage.prompt_tokens == 2


def test_models_are_listed_and_read(sdk: Sdk, alias: str) -> None:
    assert alias in [model.id for model in sdk.models.list()]
    found = sdk.models.retrieve(alias)
    assert (found.id, found.object, found.owned_by) == (alias, "model", "azure")
    assert found.created > 1_700_000_000


def test_several_choices_all_arrive(sdk: Sdk, alias: str) -> None:
    answer = sdk.chat.completions.create(model=alias, messages=MESSAGES, n=2)
    assert [choice.message.content for choice in answer.choices] == [SAID, f"{SAID} (2)"]
    chunks = list(sdk.chat.completions.create(model=alias, messages=MESSAGES, n=2, stream=True))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_arrive(sdk: Sdk, alias: str, stream: bool) -> None:
    answer: Any = sdk.chat.completions.create(
        model=alias, messages=MESSAGES, tools=[TOOL], tool_choice="required", stream=stream
    )
    if stream:
        calls = [
            call
            for chunk in answer
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
        name = next(call.function.name for call in calls if call.function.name)
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        assert answer.choices[0].finish_reason == "tool_calls"
        function = answer.choices[0].message.tool_calls[0].function
        name, arguments = function.name, function.arguments
    assert (name, arguments) == ("weather", '{"city": "text"}')


def test_a_stream_can_be_read_raw(sdk: Sdk, alias: str) -> None:
    with sdk.chat.completions.with_streaming_response.create(
        model=alias, messages=MESSAGES, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"] == response.headers["x-aisix-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_the_raw_answer_carries_the_ids(sdk: Sdk, alias: str) -> None:
    name = str(uuid.uuid4())
    raw = sdk.chat.completions.with_raw_response.create(
        model=alias, messages=MESSAGES, extra_headers={"x-aisix-request-id": name}
    )
    assert raw.request_id == raw.headers["x-aisix-request-id"] == name
    assert raw.headers["apim-request-id"]
    assert raw.headers["x-ms-region"] == "East US 2"
    assert raw.parse().choices[0].message.content == SAID


@pytest.mark.parametrize("stream", [False, True])
def test_azure_extensions_are_removed_unless_asked_for(sdk: Sdk, alias: str, stream: bool) -> None:
    def fields(**headers: str) -> str:
        answer: Any = sdk.chat.completions.create(
            model=alias, messages=MESSAGES, stream=stream, extra_headers=headers
        )
        return "".join(part.model_dump_json() for part in (answer if stream else [answer]))

    assert "filter_results" not in fields()
    kept = fields(**{"x-aisix-azure-extensions": "keep"})
    assert "prompt_filter_results" in kept
    assert "content_filter_results" in kept


def test_odd_streams_are_read_as_one(sdk: Sdk, bench: Stand) -> None:
    for script in ("asyncfilter", "late", "split1-crlf", "burst-comments", "finishusage", "nodone"):
        odd = bench.alias(f"gpt4o-{script}")
        text = text_of(sdk.chat.completions.create(model=odd, messages=MESSAGES, stream=True))
        assert text == SAID, script


# --- errors -------------------------------------------------------------------------------------

ERRORS: list[tuple[str, type[openai.APIStatusError], int, str]] = [
    ("err-parameter", openai.BadRequestError, 400, "unsupported_parameter"),
    ("err-content_filter", openai.BadRequestError, 400, "content_filter"),
    ("err-context", openai.BadRequestError, 400, "context_length_exceeded"),
    ("err401", openai.AuthenticationError, 401, ""),
    ("err403", openai.PermissionDeniedError, 403, ""),
    ("err404", openai.NotFoundError, 404, ""),
    ("err429", openai.RateLimitError, 429, ""),
    ("err500", openai.InternalServerError, 502, ""),
    ("err503", openai.InternalServerError, 502, ""),
    ("drop", openai.InternalServerError, 502, "transport_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "kind", "status", "code"), ERRORS, ids=[error[0] for error in ERRORS]
)
def test_errors_of_azure_become_the_right_exception(
    sdk: Sdk,
    bench: Stand,
    script: str,
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
    stream: bool,
) -> None:
    broken = bench.alias(f"gpt4o-{script}")
    with pytest.raises(kind) as caught:
        sdk.chat.completions.create(model=broken, messages=MESSAGES, stream=stream)
    error = caught.value
    assert type(error) is kind
    assert error.status_code == status
    assert error.code
    assert code in ("", error.code)
    assert error.request_id
    assert bench.gateway.access_line(error.request_id)["model"] == broken
    assert "127.0.0.1" not in str(error)
    assert f"gpt4o-{script}" not in str(error).replace(broken, "")


def test_a_bad_caller_key_is_an_authentication_error(bench: Stand, alias: str) -> None:
    for kind in ("OpenAI", "AzureOpenAI"):
        with (
            sdk_of(kind, bench, "sk-unknown") as sdk,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            sdk.chat.completions.create(model=alias, messages=MESSAGES)
        assert caught.value.code == "invalid_api_key"


def test_an_unknown_model_is_not_found(sdk: Sdk) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="gpt-nowhere", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_model_that_the_key_may_not_use_is_forbidden(bench: Stand, alias: str) -> None:
    key = f"sk-{uuid.uuid4().hex}"
    bench.gateway.create_caller_key(key, allowed_models=["other"])
    with sdk_of("OpenAI", bench, key) as sdk, pytest.raises(openai.PermissionDeniedError) as caught:
        sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert caught.value.code == "permission_denied"


def test_a_limit_is_a_rate_limit_error_with_a_hint(bench: Stand, alias: str) -> None:
    key = f"sk-{uuid.uuid4().hex}"
    bench.gateway.create_caller_key(key, rate_limit={"rpm": 1})
    with sdk_of("AzureOpenAI", bench, key) as sdk:
        sdk.chat.completions.create(model=alias, messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_the_sdk_retries_a_throttled_call_by_itself(bench: Stand) -> None:
    throttled = bench.alias(f"gpt4o-err429-retryms10-first1-{uuid.uuid4().hex[:6]}")
    with OpenAI(base_url=f"{bench.gateway.proxy}/v1", api_key=CALLER_KEY, max_retries=1) as patient:
        answer = patient.chat.completions.create(model=throttled, messages=MESSAGES)
    assert answer.choices[0].message.content == SAID


@pytest.mark.parametrize("script", ["cut3", "reset3", "half3", "end3", "fail3-err-capacity"])
def test_a_broken_stream_raises_after_what_arrived(sdk: Sdk, bench: Stand, script: str) -> None:
    broken = bench.alias(f"gpt4o-{script}-d20")  # events arrive one by one
    pieces = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in sdk.chat.completions.create(model=broken, messages=MESSAGES, stream=True):
            pieces.append(chunk)
    assert caught.value.code
    assert not isinstance(caught.value, openai.APIConnectionError)
    if isinstance(caught.value, openai.APIStatusError):
        assert pieces == [], "an error status is right only while nothing was sent"
    else:
        assert text_of(pieces) == "Hello"


def test_the_output_filter_is_a_finish_reason(sdk: Sdk, bench: Stand) -> None:
    answer = sdk.chat.completions.create(model=bench.alias("gpt4o-filtered"), messages=MESSAGES)
    assert answer.choices[0].finish_reason == "content_filter"


def test_an_sdk_pointed_at_the_admin_port_is_told_so_in_words(bench: Stand) -> None:
    answer = send(
        "POST",
        f"{bench.gateway.admin}/v1/chat/completions",
        {"model": "m"},
        headers={"Authorization": f"Bearer {ADMIN_KEY}"},
    )
    assert answer.status == 404
    assert "no such route" in answer.json["error_msg"]


# --- async --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsyncKind:
    name: str
    make: Callable[[str], Any]


ASYNC = [
    AsyncKind(
        "AsyncOpenAI",
        lambda proxy: AsyncOpenAI(base_url=f"{proxy}/v1", api_key=CALLER_KEY, max_retries=0),
    ),
    AsyncKind(
        "AsyncAzureOpenAI",
        lambda proxy: AsyncAzureOpenAI(
            azure_endpoint=proxy, api_key=CALLER_KEY, api_version="2024-10-21", max_retries=0
        ),
    ),
]


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.name)
@pytest.mark.gen_test
async def test_the_async_client_gets_all_endpoints(
    bench: Stand, alias: str, kind: AsyncKind
) -> None:
    async with kind.make(bench.gateway.proxy) as sdk:
        whole = await sdk.chat.completions.create(model=alias, messages=MESSAGES)
        assert whole.choices[0].message.content == SAID
        stream = await sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True)
        assert text_of([chunk async for chunk in stream]) == SAID
        text = await sdk.completions.create(model=alias, prompt="ping")
        assert text.choices[0].text == SAID
        vectors = await sdk.embeddings.create(model=alias, input="one", dimensions=4)
        assert len(vectors.data[0].embedding) == 4
        assert alias in [model.id async for model in sdk.models.list()]
        assert (await sdk.models.retrieve(alias)).id == alias


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.name)
@pytest.mark.gen_test
async def test_the_async_client_raises_what_the_blocking_one_does(
    bench: Stand, kind: AsyncKind
) -> None:
    async with kind.make(bench.gateway.proxy) as sdk:
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model=bench.alias("a-err429"), messages=MESSAGES)
        stream = await sdk.chat.completions.create(
            model=bench.alias("a-cut3"), messages=MESSAGES, stream=True
        )
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]
    # the SDK leaves its inner generators to the loop
    await asyncio.get_running_loop().shutdown_asyncgens()


@pytest.mark.gen_test
async def test_many_calls_at_once_each_get_their_own_answer(bench: Stand, alias: str) -> None:
    async with ASYNC[0].make(bench.gateway.proxy) as sdk:
        names = [uuid.uuid4().hex for _ in range(40)]
        answers = await asyncio.gather(
            *(
                sdk.chat.completions.create(
                    model=alias, messages=[{"role": "user", "content": name}]
                )
                for name in names
            )
        )
    said = [answer.choices[0].message.content for answer in answers]
    assert said == [f"Hello from Azure OpenAI! You said: {name}" for name in names]


@pytest.mark.gen_test
async def test_closing_an_async_stream_early_ends_the_call_to_azure(bench: Stand) -> None:
    endless = bench.alias("gpt4o-n500-d20")
    request_id = str(uuid.uuid4())
    async with ASYNC[0].make(bench.gateway.proxy) as sdk:
        stream = await sdk.chat.completions.create(
            model=endless,
            messages=MESSAGES,
            stream=True,
            extra_headers={"x-aisix-request-id": request_id},
        )
        async for _chunk in stream:
            break
        await stream.close()
        line = bench.gateway.access_line(request_id)
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert (line["status"], line["outcome"]) == (499, "client_cancelled")
    records = bench.azure.requests(deployment="gpt4o-n500-d20", outcome="client_closed", wait=1)
    assert records[0]["events_sent"] < 500
