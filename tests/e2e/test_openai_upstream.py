"""The adapter `openai` through a whole gateway: the official SDK as the caller, the simulator's
OpenAI-compatible server as the upstream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.process import CALLER_KEY, SIMULATOR_KEY, GatewayProgram, SimulatorProgram, Stand

MESSAGES: list[Any] = [{"role": "user", "content": "ping"}]
SAID = "Hello from Azure OpenAI! You said: ping"
FAMILY_KEY = "sk-of-the-families"


@dataclass(frozen=True)
class Vllm:
    """A provider key for the compatible server, and models behind it."""

    azure: SimulatorProgram
    gateway: GatewayProgram
    provider_key_id: str

    def alias(self, *script: str) -> tuple[str, str]:
        """A new alias, and the model that it leads to."""
        model = "/".join(["meta-llama", "-".join(["Llama", *script, uuid.uuid4().hex])])
        alias = model.replace("/", ".")
        self.gateway.create_model(alias, model, self.provider_key_id, provider="vllm")
        return alias, model

    def seen(self, model: str) -> list[Any]:
        """The requests for a model."""
        found: list[Any] = self.azure.requests(deployment=model, wait=1)
        return found


@pytest.fixture(scope="module")
def vllm(bench: Stand) -> Vllm:
    key_id = bench.gateway.create_provider_key(
        f"{bench.azure.url}/v1/chat/completions", adapter="openai", provider="vllm"
    )
    return Vllm(bench.azure, bench.gateway, key_id)


@pytest.fixture
def sdk(vllm: Vllm) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{vllm.gateway.proxy}/v1", api_key=CALLER_KEY, max_retries=0) as made:
        yield made


def test_a_chat_is_sent_with_bearer_and_the_model_in_the_body(vllm: Vllm, sdk: OpenAI) -> None:
    alias, model = vllm.alias()
    answer = sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert (answer.model, answer.choices[0].message.content) == (alias, SAID)
    (record,) = vllm.seen(model)
    assert record["path"] == "/v1/chat/completions"
    assert record["headers"]["authorization"] == f"Bearer {SIMULATOR_KEY}"
    assert "api-key" not in record["headers"]
    assert json.loads(record["body"])["model"] == model
    line = vllm.gateway.access_line(str(answer._request_id))
    assert (line["provider"], line["status"]) == ("vllm", 200)
    assert line["provider_request_id"].startswith("req_")


def test_a_stream_is_counted_and_hides_the_usage_that_nobody_asked_for(
    vllm: Vllm, sdk: OpenAI
) -> None:
    alias, model = vllm.alias()
    with sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
    assert {chunk.model for chunk in chunks} == {alias}
    assert not [chunk for chunk in chunks if chunk.usage]
    (record,) = vllm.seen(model)
    assert json.loads(record["body"])["stream_options"] == {"include_usage": True}


def test_an_old_server_is_asked_without_stream_options_and_that_is_remembered(
    vllm: Vllm, sdk: OpenAI
) -> None:
    alias, model = vllm.alias("oldapi")
    for _ in range(2):
        with sdk.chat.completions.create(model=alias, messages=MESSAGES, stream=True) as stream:
            assert [chunk for chunk in stream if chunk.choices]
    asked = ["stream_options" in json.loads(record["body"]) for record in vllm.seen(model)]
    assert asked == [True, False, False]


def test_a_response_is_found_again_where_it_was_made(vllm: Vllm, sdk: OpenAI) -> None:
    alias, _ = vllm.alias()
    made = sdk.responses.create(model=alias, input="ping")
    again = sdk.responses.retrieve(made.id)
    assert (again.id, again.model) == (made.id, alias)
    assert sdk.responses.input_items.list(made.id).data
    further = sdk.responses.create(model=alias, input="and?", previous_response_id=made.id)
    assert further.previous_response_id == made.id
    sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)


def test_embeddings_images_and_audio_are_answered(vllm: Vllm, sdk: OpenAI) -> None:
    alias, model = vllm.alias()
    assert sdk.embeddings.create(model=alias, input="x").data[0].embedding
    assert sdk.images.generate(model=alias, prompt="a cat").data
    assert sdk.audio.speech.create(model=alias, input="x", voice="alloy").content
    said = sdk.audio.transcriptions.create(model=alias, file=("a.wav", b"RIFF" * 64))
    assert said.text
    paths = [record["path"].removeprefix("/v1/") for record in vllm.seen(model)]
    assert paths == ["embeddings", "images/generations", "audio/speech", "audio/transcriptions"]


def test_a_realtime_session_names_the_model_in_the_query(vllm: Vllm) -> None:
    alias, model = vllm.alias()
    proxy = vllm.gateway.proxy
    with (
        OpenAI(
            base_url=f"{proxy}/v1",
            websocket_base_url=proxy.replace("http", "ws", 1) + "/v1",
            api_key=CALLER_KEY,
        ) as sdk,
        sdk.realtime.connect(model=alias) as connection,
    ):
        created = connection.recv()
        assert created.type == "session.created"
        assert getattr(created.session, "model", None) == alias
    (record,) = vllm.seen(model)
    assert (record["path"], record["query"]) == ("/v1/realtime", {"model": model})
    assert record["headers"]["authorization"] == f"Bearer {SIMULATOR_KEY}"


def test_files_pass_to_the_server_of_the_alias(vllm: Vllm) -> None:
    alias, _ = vllm.alias()
    vllm.gateway.create_caller_key(FAMILY_KEY, allowed_resources=["files"])
    with OpenAI(
        base_url=f"{vllm.gateway.proxy}/v1",
        api_key=FAMILY_KEY,
        default_headers={"x-aisix-model": alias},
    ) as sdk:
        file = sdk.files.create(file=("a.txt", b"abc"), purpose="user_data")
        assert sdk.files.content(file.id).content == b"abc"
        assert file.id in [found.id for found in sdk.files.list()]
        assert sdk.files.delete(file.id).deleted


@pytest.mark.parametrize(
    ("script", "kind", "code", "retried"),
    [
        ("err-quota", openai.RateLimitError, "insufficient_quota", "false"),
        ("err400", openai.BadRequestError, "unsupported_parameter", "false"),
        ("err500", openai.InternalServerError, "upstream_error", None),
    ],
)
def test_a_refusal_is_told_as_for_azure(
    vllm: Vllm,
    sdk: OpenAI,
    script: str,
    kind: type[openai.APIStatusError],
    code: str,
    retried: str | None,
) -> None:
    alias, model = vllm.alias(script)
    with pytest.raises(kind) as refused:
        sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert refused.value.code == code
    assert refused.value.response.headers.get("x-should-retry") == retried
    assert model not in refused.value.response.text


def test_a_wrong_key_of_ours_is_not_taken_for_the_caller_s(vllm: Vllm, sdk: OpenAI) -> None:
    secret = "sk-ours-that-is-wrong-0123456789"
    key_id = vllm.gateway.create_provider_key(
        f"{vllm.azure.url}/v1", adapter="openai", provider="vllm", secret=secret
    )
    alias = f"wrong.{uuid.uuid4().hex}"
    vllm.gateway.create_model(alias, "m", key_id, provider="vllm")
    with pytest.raises(openai.AuthenticationError) as refused:
        sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert refused.value.code == "upstream_error"
    assert "upstream authentication failed" in refused.value.message
    request_id = refused.value.response.headers["x-request-id"]
    assert "invalid_api_key" in json.dumps(vllm.gateway.access_line(request_id))
    log = "\n".join(vllm.gateway.lines())
    assert secret not in log
    assert secret[:4] not in log, "not even as the upstream masks it"


def test_a_missing_model_has_the_code_sdk_users_know(vllm: Vllm, sdk: OpenAI) -> None:
    alias = f"missing.{uuid.uuid4().hex}"
    vllm.gateway.create_model(alias, "missing/model", vllm.provider_key_id, provider="vllm")
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model=alias, messages=MESSAGES)
    assert refused.value.code == "model_not_found"


def test_another_gateway_can_be_the_upstream(vllm: Vllm, sdk: OpenAI) -> None:
    behind, model = vllm.alias()
    key_id = vllm.gateway.create_provider_key(
        vllm.gateway.proxy + "/v1", adapter="openai", provider="gateway", secret=CALLER_KEY
    )
    before = f"before.{uuid.uuid4().hex}"
    model_id = vllm.gateway.create_model(before, behind, key_id, provider="gateway")
    answer = sdk.chat.completions.create(model=before, messages=MESSAGES)
    assert (answer.model, answer.choices[0].message.content) == (before, SAID)
    assert len(vllm.seen(model)) == 1
    found = vllm.gateway.manage("POST", f"models/{model_id}/verify")
    assert (found.json["ok"], found.json["message"]) == (True, "address, key and model are right")


def test_what_is_wrong_with_a_key_is_said_when_it_is_written(vllm: Vllm) -> None:
    fields = {"display_name": f"x-{uuid.uuid4().hex}", "adapter": "openai", "secret": "sk-1"}
    good = vllm.gateway.manage("POST", "provider_keys", fields)
    assert good.json["value"]["api_base"] == "https://api.openai.com/v1"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"api_version": "v1"}, "/api_version"),
        ({"secret": '{"managed_identity":true}'}, "/secret"),
        ({"api_base": "http://169.254.169.254/v1"}, "/api_base"),
        ({"adapter": "vertex"}, 'must be one of "azure-openai", "openai"'),
    ]
    for change, said in wrong:
        answer = vllm.gateway.manage("POST", "provider_keys", {**fields, **change})
        assert answer.status == 400
        assert said in answer.json["error_msg"]
