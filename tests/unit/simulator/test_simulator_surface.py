"""The resource without its wire: paths, credentials and body checks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aisix.simulator.checks import MALFORMED
from aisix.simulator.entra import Authority
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import NORMAL, Script, parse
from aisix.simulator.surface import Answer, Inbound, Surface, locate

KEY = {"api-key": "simulator-key"}
PING = {"messages": [{"role": "user", "content": "ping"}]}
CHAT = "/openai/deployments/dep/chat/completions"
VERSION = {"api-version": "2024-10-21"}


def ask(
    path: str = CHAT,
    body: Any = PING,
    *,
    method: str = "POST",
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    script: Script = NORMAL,
    **options: Any,
) -> Answer:
    chosen = SimulatorOptions(**options)
    surface = Surface(chosen, Authority(chosen.directory))
    place = locate(path)
    if place.v1 and isinstance(body, dict):
        place = locate(path)
        deployment = body.get("model")
        if isinstance(deployment, str):
            place = type(place)(
                kind="azure", operation=place.operation, deployment=deployment, v1=True
            )
    inbound = Inbound(
        method=method,
        place=place,
        query=VERSION if query is None else query,
        headers=KEY if headers is None else headers,
        json=body,
    )
    return surface.answer(inbound, script)


def code(answer: Answer) -> Any:
    body = json.loads(answer.body)
    return body["error"]["code"] if "error" in body else body["statusCode"]


def test_dated_and_v1_paths_answer() -> None:
    assert ask().status == 200
    assert ask("/openai/v1/chat/completions", {**PING, "model": "dep"}, query={}).status == 200
    assert (
        ask(
            "/openai/v1/embeddings",
            {"model": "dep", "input": "a"},
            query={"api-version": "preview"},
        ).status
        == 200
    )


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (CHAT, {}),
        (CHAT, {"api-version": "2019-01-01"}),
        (CHAT, {"api-version": "v1"}),
        ("/openai/v1/chat/completions", {"api-version": "2024-10-21"}),
        ("/openai/deployments/dep/chat/complete", VERSION),
        ("/openai/deployments/dep/models", VERSION),
        ("//openai/deployments/dep/chat/completions", VERSION),
        ("/openai/v1/response", {}),
        ("/openai/chat/completions", VERSION),
        ("/openai/embeddings", VERSION),
        ("/", {}),
    ],
)
def test_unknown_paths_and_versions_are_not_found(path: str, query: dict[str, str]) -> None:
    answer = ask(path, {**PING, "model": "dep"}, query=query)
    assert (answer.status, code(answer)) == (404, "404")


def test_a_wrong_method_is_not_found() -> None:
    assert ask(method="GET").status == 404


@pytest.mark.parametrize("deployment", ["missing", "missing-one", "bad%20name", "a%0d%0ab"])
def test_unknown_deployments_are_named_so(deployment: str) -> None:
    answer = ask(f"/openai/deployments/{deployment}/embeddings", {"input": "a"})
    assert (answer.status, code(answer)) == (404, "DeploymentNotFound")


def test_deployments_can_be_listed() -> None:
    names = frozenset({"dep"})
    assert ask(deployments=names).status == 200
    assert ask("/openai/deployments/x/chat/completions", deployments=names).status == 404


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (401, 401)),
        ({"api-key": "wrong"}, (401, "401")),
        ({"api-key": "wrong", "authorization": "Bearer simulator-key"}, (401, "401")),
        ({"authorization": "Bearer simulator-key"}, (401, 401)),
        ({"authorization": "Basic xyz"}, (401, 401)),
        ({"authorization": "Bearer "}, (401, 401)),
    ],
)
def test_bad_credentials_are_refused(headers: dict[str, str], expected: tuple[int, Any]) -> None:
    answer = ask(headers=headers)
    assert (answer.status, code(answer)) == expected


def test_on_v1_the_key_may_come_as_bearer() -> None:
    headers = {"authorization": "Bearer simulator-key"}
    body = {**PING, "model": "dep"}
    assert ask("/openai/v1/chat/completions", body, query={}, headers=headers).status == 200


def test_both_headers_with_the_key_are_normal() -> None:
    assert ask(headers={**KEY, "authorization": "Bearer simulator-key"}).status == 200


def test_keys_can_be_switched_off() -> None:
    answer = ask(key_auth=False)
    assert (answer.status, code(answer)) == (403, "AuthenticationTypeDisabled")


def test_answers_carry_azures_headers() -> None:
    headers = dict(ask(headers={**KEY, "x-ms-client-request-id": "mine"}).headers)
    assert headers["x-ms-client-request-id"] == "mine"
    assert headers["x-ms-deployment-name"] == "dep"
    assert headers["x-ratelimit-remaining-tokens"].isdecimal()
    assert headers["x-ratelimit-reset-tokens"].isdecimal()
    assert {"apim-request-id", "x-request-id", "x-ms-region"} <= set(headers)


def test_more_than_ten_custom_headers_are_too_many() -> None:
    custom = {f"x-custom-{i}": "1" for i in range(11)}
    assert ask(headers={**KEY, **custom}).status == 431
    known = {f"x-stainless-{i}": "1" for i in range(11)}
    assert ask(headers={**KEY, **known}).status == 200


def test_models_are_listed_on_both_surfaces() -> None:
    for path, query in (("/openai/models", VERSION), ("/openai/v1/models", {})):
        answer = ask(path, MALFORMED, method="GET", query=query)
        assert json.loads(answer.body)["object"] == "list"


BAD_CHATS: list[tuple[Any, str]] = [
    (MALFORMED, "could not parse"),
    ([], "must be an object"),
    ({}, "'messages' is a required property"),
    ({"messages": "hi"}, "is not of type 'array'"),
    ({"messages": []}, "too short"),
    ({"messages": [{}]}, "'role' is a required property"),
    ({"messages": PING["messages"] * 2049}, "too many"),
    ({**PING, "stream": "yes"}, "not of type 'boolean'"),
    ({**PING, "stream_options": {}}, "only allowed when 'stream'"),
    ({**PING, "stream": True, "stream_options": 1}, "not of type 'object'"),
    ({**PING, "temperature": 3}, "greater than the maximum"),
    ({**PING, "n": 0}, "less than the minimum"),
    ({**PING, "n": 1.5}, "not of type 'integer'"),
    ({**PING, "top_p": True}, "not of type 'number'"),
    ({**PING, "tools": {}}, "array of objects"),
    ({**PING, "tools": []}, "1 to 128"),
    ({**PING, "tool_choice": "auto"}, "only allowed when 'tools'"),
]


@pytest.mark.parametrize(("body", "words"), BAD_CHATS)
def test_bad_chat_bodies_are_told_what_is_wrong(body: Any, words: str) -> None:
    answer = ask(body=body)
    assert answer.status == 400
    assert words in json.loads(answer.body)["error"]["message"]


def test_null_messages_are_a_500_as_the_service_has_it() -> None:
    assert ask(body={"messages": None}).status == 500


@pytest.mark.parametrize("stream", [False, None])
def test_null_options_are_no_options(stream: bool | None) -> None:
    assert ask(body={**PING, "stream": stream, "stream_options": None}).status == 200


def test_a_prompt_over_the_context_is_refused_even_when_streaming() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 44}], "stream": True}
    answer = ask(body=body, context_tokens=10)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    assert "10 tokens" in error["message"]
    assert "11 tokens" in error["message"]
    assert ask(body=body, script=parse("ctx5"), context_tokens=99).status == 400


def test_stream_options_are_unknown_to_old_versions_and_old_deployments() -> None:
    body = {**PING, "stream": True, "stream_options": {"include_usage": True}}
    old = ask(body=body, query={"api-version": "2024-06-01"})
    assert "Unrecognized request argument" in json.loads(old.body)["error"]["message"]
    assert ask(body=body, script=parse("oldapi")).status == 400
    assert ask(body=body).events is not None


def test_a_reasoning_model_refuses_what_such_models_refuse() -> None:
    for name in ("max_tokens", "temperature", "logprobs"):
        answer = ask(body={**PING, name: 1}, script=parse("reasoning"))
        assert code(answer) == "unsupported_parameter"
    answer = ask(body={**PING, "max_completion_tokens": 5}, script=parse("reasoning"))
    details = json.loads(answer.body)["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] > 0


@pytest.mark.parametrize("model", [None, 7])
def test_v1_needs_a_model(model: Any) -> None:
    answer = ask("/openai/v1/chat/completions", {**PING, "model": model}, query={})
    assert "model parameter" in json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("completions", {"prompt": "a"}, 200),
        ("completions", {}, 400),
        ("completions", {"prompt": ""}, 400),
        ("completions", {"prompt": {"a": 1}}, 400),
        ("embeddings", {"input": ["a", [1, 2]]}, 200),
        ("embeddings", {"input": [[1], [2]], "encoding_format": "base64"}, 200),
        ("embeddings", {}, 400),
        ("embeddings", {"input": []}, 400),
        ("embeddings", {"input": [None]}, 400),
        ("embeddings", {"input": ["a"] * 2049}, 400),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, 400),
        ("embeddings", {"input": "a", "dimensions": 4000}, 400),
        ("embeddings", {"input": "a", "dimensions": True}, 400),
    ],
)
def test_the_other_operations_check_their_bodies(operation: str, body: Any, status: int) -> None:
    assert ask(f"/openai/deployments/dep/{operation}", body).status == status


def test_a_scripted_error_comes_before_the_body_checks_but_after_the_credentials() -> None:
    script = parse("err418")
    assert ask(body=MALFORMED, script=script).status == 418
    assert ask(headers={}, script=script).status == 401
