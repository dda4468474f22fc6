"""What dispatch decides: repairs, deadlines, headers, faults, and one snapshot per exchange."""

from __future__ import annotations

import asyncio
import json

import pytest

from aisix.core.ports import Deadlines
from aisix.core.resources import Deployment, Fault
from aisix.errors import CredentialRefused, CredentialUnavailable
from aisix.transport.memory import MemoryAnswer
from tests.support.builders import CHAT, EMBEDDINGS, make_deployment, make_openai_deployment
from tests.support.pipeline import ENTRA, Harness
from tests.support.rows import good_answer, refused

EXPIRED = MemoryAnswer(
    status=401,
    headers={"content-type": "application/json"},
    pieces=[
        b'{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, audience is '
        b'incorrect (https://cognitiveservices.azure.com), or have expired."}'
    ],
)
RBAC = refused(401, {"code": "PermissionDenied", "message": "The principal lacks the action"})
OLD_VERSION = refused(
    400, {"message": "Unrecognized request argument supplied: stream_options", "code": None}
)


OLD_SERVER = MemoryAnswer(
    status=422,
    headers={"content-type": "application/json"},
    pieces=[
        b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],'
        b'"msg":"Extra inputs are not permitted"}]}'
    ],
)


def sent_headers(harness: Harness, call: int = 0) -> dict[str, str]:
    sent = harness.transport.calls[call]
    return {name.lower(): value for name, value in (*sent.target.headers, *sent.headers)}


@pytest.mark.gen_test
async def test_a_refused_token_is_renewed_once():
    harness = Harness(deployment=make_deployment(credential=ENTRA))
    harness.transport.script(EXPIRED, good_answer(CHAT, stream=False))
    exchange, reply = await harness.run(CHAT)
    assert reply.status == 200
    assert harness.tokens.renewals == ["token-1"]
    assert sent_headers(harness, 0)["authorization"] == "Bearer token-1"
    assert sent_headers(harness, 1)["authorization"] == "Bearer token-2"
    assert exchange.attempts == 2
    await harness.audit()


@pytest.mark.gen_test
async def test_a_token_that_is_refused_twice_is_an_error():
    harness = Harness(deployment=make_deployment(credential=ENTRA))
    harness.transport.script(EXPIRED, EXPIRED)
    _, reply = await harness.run(CHAT)
    assert reply.status == 401
    assert b"upstream authentication failed" in reply.body
    assert len(harness.tokens.renewals) == 1
    await harness.audit()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("error", "status"),
    [(CredentialRefused("no new token"), 401), (CredentialUnavailable("authority down"), 502)],
)
async def test_when_no_fresh_token_is_to_be_had_the_refusal_stands(error, status):
    harness = Harness(deployment=make_deployment(credential=ENTRA))
    harness.tokens.renew_error = error
    harness.transport.script(EXPIRED)
    _, reply = await harness.run(CHAT)
    assert reply.status == status
    await harness.audit()


@pytest.mark.gen_test
async def test_a_missing_role_is_no_reason_to_renew():
    harness = Harness(deployment=make_deployment(credential=ENTRA))
    harness.transport.script(RBAC)
    _, reply = await harness.run(CHAT)
    assert reply.status == 401
    assert harness.tokens.renewals == []
    await harness.audit()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("deployment", "refusal"),
    [(make_deployment(), OLD_VERSION), (make_openai_deployment(), OLD_SERVER)],
    ids=["azure-openai", "openai"],
)
async def test_stream_options_are_left_out_where_they_are_not_known_and_that_is_remembered(
    deployment: Deployment, refusal: MemoryAnswer
):
    harness = Harness(deployment=deployment)
    harness.transport.script(
        refusal, good_answer(CHAT, stream=True), good_answer(CHAT, stream=True)
    )
    _, first = await harness.run(CHAT, stream=True)
    _, second = await harness.run(CHAT, stream=True)
    assert (first.status, second.status) == (200, 200)
    bodies = [json.loads(body) for body in harness.transport.bodies]
    assert [("stream_options" in body) for body in bodies] == [True, False, False]


@pytest.mark.gen_test
async def test_an_exchange_keeps_the_snapshot_it_began_with():
    harness = Harness()
    gate = asyncio.Event()
    answer = good_answer(CHAT, stream=False)
    harness.transport.script(
        MemoryAnswer(headers=answer.headers, pieces=answer.pieces, before=[gate])
    )
    run = harness.start(CHAT)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    harness.publish(disabled=True)
    gate.set()
    await run.ended()
    assert run.reply.status == 200
    _, later = await harness.run(CHAT)
    assert later.status == 401


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("fields", "stream", "expected"),
    [
        ({}, False, Deadlines(5.0, 6.0, 7.0, 8.0)),
        ({}, True, Deadlines(5.0, 6.0, 7.0, 0.0)),
        ({"timeout_s": 2.0}, False, Deadlines(5.0, 0.0, 7.0, 2.0)),
        ({"timeout_s": 2.0}, True, Deadlines(5.0, 6.0, 2.0, 0.0)),
        ({"timeout_s": 2.0, "stream_timeout_s": 3.0}, True, Deadlines(5.0, 6.0, 3.0, 0.0)),
        ({"timeout_s": 0.0}, False, Deadlines(5.0, 0.0, 7.0, 0.0)),
        ({"stream_timeout_s": 0.0}, True, Deadlines(5.0, 6.0, 7.0, 0.0)),
    ],
)
async def test_deadlines(fields, stream, expected):
    """A stream has no total; a model's own values win; 0 in `stream_timeout` falls through."""
    harness = Harness(alias_fields=fields)
    harness.transport.script(good_answer(CHAT, stream=stream))
    await harness.run(CHAT, stream=stream)
    assert harness.transport.calls[0].deadlines == expected


@pytest.mark.gen_test
async def test_only_listed_headers_of_a_caller_go_upstream():
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=False))
    await harness.run(
        CHAT,
        headers={
            "openai-beta": "x=1",
            "x-ms-client-request-id": "mine",
            "cookie": "a=b",
            "x-api-key": "k",
            "api-key": "k",
            "user-agent": "evil",
            "x-forwarded-for": "1.2.3.4",
            "aoai-evals": "pre\nview",
        },
    )
    headers = sent_headers(harness)
    assert headers["openai-beta"] == "x=1"
    assert headers["x-ms-client-request-id"] == "mine"
    assert headers["x-aisix-request-id"] == "req-1"
    assert headers["user-agent"].startswith("aisix/")
    assert not {"cookie", "x-api-key", "authorization", "x-forwarded-for", "aoai-evals"} & set(
        headers
    )
    assert headers["api-key"] == "resource-key-of-the-tests"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("credential", 401, "authentication_error"),
        ("configuration", 400, "invalid_upstream_configuration"),
    ],
)
async def test_a_faulty_deployment_is_refused_with_its_reason(kind, status, code):
    harness = Harness(deployment=make_deployment(fault=Fault(kind, "because")))
    _, reply = await harness.run(CHAT)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (status, code)
    assert "because" in error["message"]
    assert reply.headers["x-should-retry"] == "false"
    await harness.audit()
    assert await harness.spent() == (0, 0)


@pytest.mark.gen_test
async def test_a_wildcard_model_puts_the_captured_text_into_the_deployment():
    harness = Harness(deployment=make_deployment(name="prod-*"), alias_fields={"name": "team-*"})
    harness.transport.script(good_answer(CHAT, stream=False))
    body = {"model": "team-gpt4", "messages": [{"role": "user", "content": "x"}]}
    exchange, reply = await harness.run(CHAT, body=body)
    assert "/deployments/prod-gpt4/" in harness.transport.calls[0].target.url
    assert json.loads(reply.body)["model"] == "team-gpt4"
    assert exchange.alias is not None
    assert exchange.alias.name == "team-*", "metrics see the configured name"
    assert harness.recorder.attempts[0]["deployment"] == "prod-*", "here too"


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ["team-../../x", "team-a b", "team-a?b", "team-ü", "team-%2e"])
async def test_a_wildcard_cannot_leave_the_deployment_path(name):
    harness = Harness(deployment=make_deployment(name="prod-*"), alias_fields={"name": "team-*"})
    body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    _, reply = await harness.run(CHAT, body=body)
    assert reply.status == 400
    assert harness.transport.opened == 0
    await harness.audit()


@pytest.mark.gen_test
async def test_health_follows_the_upstream():
    harness = Harness()
    name = harness.alias.name
    harness.transport.script(*[MemoryAnswer(status=500) for _ in range(8)])
    for _ in range(8):
        await harness.run(CHAT)
    assert harness.health.level(name) == 2
    harness.transport.script(refused(429, {"code": "429", "message": "m"}))
    await harness.run(CHAT)
    assert harness.health.level(name) == 2, "a quota says nothing about health"
    harness.transport.script(good_answer(EMBEDDINGS, stream=False))
    await harness.run(EMBEDDINGS)
    assert harness.health.level(name) == 0


@pytest.mark.gen_test
async def test_usage_is_estimated_and_marked_when_none_arrives():
    harness = Harness()
    document = {"model": "m", "choices": [{"index": 0, "message": {"content": "four word answer"}}]}
    harness.transport.script(
        MemoryAnswer(
            headers={"content-type": "application/json"}, pieces=[json.dumps(document).encode()]
        )
    )
    exchange, reply = await harness.run(CHAT)
    assert exchange.usage is not None
    assert exchange.usage.estimated
    assert exchange.usage.completion_tokens == 4
    assert "usage" not in json.loads(reply.body), "estimates are never written into an answer"
    await harness.audit()


@pytest.mark.gen_test
async def test_extension_fields_stay_when_asked_for():
    harness = Harness()
    document = {
        "model": "m",
        "prompt_filter_results": [],
        "choices": [{"index": 0, "message": {"content": "x"}, "content_filter_results": {}}],
    }
    answer = MemoryAnswer(
        headers={"content-type": "application/json"}, pieces=[json.dumps(document).encode()]
    )
    harness.transport.script(answer, answer)
    _, kept = await harness.run(CHAT, headers={"x-aisix-azure-extensions": "keep"})
    _, stripped = await harness.run(CHAT)
    assert "prompt_filter_results" in json.loads(kept.body)
    assert "filter" not in stripped.body.decode()
