"""The simulator's OpenAI-compatible server, as the official SDK and a raw socket see it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.support.azure import KEY, ask, azure
from tests.support.sdk import COMPATIBLE, sdk_at

PING = [{"role": "user", "content": "ping"}]
BEARER = f"Bearer {KEY}"
CHAT = "/v1/chat/completions"
AZURE_FIELDS = ("prompt_filter_results", "content_filter_results", "content_filter_offsets")

pytestmark = pytest.mark.gen_test


async def refused(
    sim: Any, path: str = CHAT, body: Any = None, *, authorization: str = BEARER, api_key: str = ""
) -> tuple[int, Any]:
    """Status and code of a refusal in OpenAI's envelope."""
    answer = await ask(sim, path, body, authorization=authorization, api_key=api_key)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    assert not [name for name in answer.headers if name.startswith(("x-ms-", "apim-"))]
    return answer.status, answer.json["error"]["code"]


async def test_a_chat_has_nothing_of_azure_in_it():
    async with azure() as sim:
        for stream in (False, True):
            body = {"model": "meta-llama/Llama-3-8B:latest", "messages": PING, "stream": stream}
            answer = await ask(sim, CHAT, body, authorization=BEARER)
            assert answer.status == 200
            assert not [name for name in AZURE_FIELDS if name.encode() in answer.body]
            assert not [name for name in answer.headers if name.startswith(("x-ms-", "apim-"))]
            assert answer.headers["x-ratelimit-limit-requests"] == "1000"
        assert sim.requests[0].deployment == "meta-llama/Llama-3-8B:latest"


async def test_the_sdk_finds_the_operations_of_the_table():
    async with azure() as sim, sdk_at(sim, COMPATIBLE) as sdk:
        assert (await sdk.embeddings.create(model="m", input="x")).data
        response = await sdk.responses.create(model="m", input="x")
        assert (await sdk.responses.retrieve(response.id)).id == response.id
        file = await sdk.files.create(file=("a.txt", b"abc"), purpose="user_data")
        assert (await sdk.files.content(file.id)).content == b"abc"
        elsewhere = await ask(sim, f"/openai/v1/files/{file.id}")
        assert elsewhere.status == 404


async def test_refusals_are_in_openai_s_words():
    body = {"model": "m", "messages": PING}
    async with azure() as sim:
        assert await refused(sim, body=body, authorization="Basic x") == (401, None)
        assert await refused(sim, body=body, authorization="Bearer other") == (
            401,
            "invalid_api_key",
        )
        assert await refused(sim, body=body, authorization="", api_key=KEY) == (401, None)
        missing = {**body, "model": "missing/model"}
        assert await refused(sim, body=missing) == (404, "model_not_found")
        assert await refused(sim, "/v1/elsewhere", body) == (404, "unknown_url")
        exhausted = {**body, "model": "m-err-quota"}
        assert await refused(sim, body=exhausted) == (429, "insufficient_quota")
        assert await refused(sim, body={"messages": PING}) == (400, None)


async def test_an_old_server_refuses_stream_options_as_pydantic_does():
    async with azure() as sim, sdk_at(sim, COMPATIBLE) as sdk:
        with pytest.raises(openai.BadRequestError, match="Extra inputs are not permitted"):
            await sdk.chat.completions.create(
                model="m-oldapi", messages=PING, stream=True, stream_options={"include_usage": True}
            )


async def test_the_list_of_models_is_what_there_is():
    async with azure(deployments=frozenset({"b/c", "a"})) as sim, sdk_at(sim, COMPATIBLE) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["a", "b/c"]
        assert await refused(sim, body={"model": "d", "messages": PING}) == (404, "model_not_found")
    async with azure() as sim, sdk_at(sim, COMPATIBLE) as sdk:
        assert "gpt-4o-2024-08-06" in [model.id async for model in sdk.models.list()]
