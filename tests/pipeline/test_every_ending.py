"""Every row of ENDPOINTS, streamed and not, through every terminal path.

Whatever the ending: one settlement, one access line, no slot held, every transfer closed, and the
caller gets what docs/errors.md promises. `Harness.audit` checks the first four.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, OPTED_USAGE, OTHER, Action, BodyForm, EndpointSpec
from aisix.core.resources import Deployment, LimitPolicy
from aisix.errors import (
    CredentialRefused,
    NotFound,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.transport.memory import MemoryAnswer
from tests.support.builders import make_deployment, make_openai_deployment
from tests.support.pipeline import ENTRA, ArrivingBody, Harness
from tests.support.rows import (
    DONE,
    RESPONSE_ID,
    SERVED,
    TEXTUAL,
    USAGE,
    delta,
    event,
    good_answer,
    good_body,
    last_event,
    refused,
    shown_document,
    streamed,
)

RELAYED = [spec for spec in ENDPOINTS if spec.action is Action.RELAY]

OWN = [s for s in ENDPOINTS if s.action in (Action.LIST_MODELS, Action.GET_MODEL)]


def modes(rows: Iterable[EndpointSpec]) -> list[Any]:
    """Each of `rows` whole, and streamed if it may."""
    return [
        pytest.param(spec, stream, id=f"{spec.operation}-{'stream' if stream else 'whole'}")
        for spec in rows
        for stream in ((False, True) if spec.may_stream else (False,))
    ]


def singles(rows: Iterable[EndpointSpec]) -> list[Any]:
    """Each of `rows`."""
    return [pytest.param(spec, id=spec.operation) for spec in rows]


STREAMING = [spec for spec in RELAYED if spec.may_stream]
every_mode = pytest.mark.parametrize(("spec", "stream"), modes(RELAYED))
every_json_mode = pytest.mark.parametrize(
    ("spec", "stream"), modes(s for s in RELAYED if s.body is BodyForm.JSON)
)
every_document_mode = pytest.mark.parametrize(
    ("spec", "stream"), modes(s for s in RELAYED if s.body is not BodyForm.STREAM)
)
every_body_mode = pytest.mark.parametrize(
    ("spec", "stream"), modes(s for s in RELAYED if s.body is not BodyForm.NONE)
)
every_stream = pytest.mark.parametrize("spec", singles(STREAMING))
every_counted_text_stream = pytest.mark.parametrize(
    "spec", singles(s for s in STREAMING if s.usage in TEXTUAL and s.counts)
)
either_adapter = pytest.mark.parametrize(
    "deployment", [make_deployment(), make_openai_deployment()], ids=lambda d: d.adapter
)
every_row = pytest.mark.parametrize("spec", singles(ENDPOINTS))


def error_of(body: bytes) -> dict[str, Any]:
    """The one error of a JSON answer."""
    document = json.loads(body)
    assert list(document) == ["error"]
    assert {"message", "type", "param", "code"} <= set(document["error"])
    return document["error"]


def late_error(body: bytes) -> dict[str, Any]:
    """The error event that ends a stream; no end mark follows."""
    assert b"[DONE]" not in body
    _head, _, tail = body.rpartition(b"event: error\ndata: ")
    assert tail.endswith(b"\n\n")
    return error_of(tail)


# ── refused before anything was sent ──


@every_row
@pytest.mark.gen_test
async def test_without_a_credential(spec: EndpointSpec):
    harness = Harness()
    exchange, reply = await harness.run(spec, headers={"authorization": ""})
    assert (reply.status, error_of(reply.body)["code"]) == (401, "invalid_api_key")
    assert harness.recorder.auth == [(False, "missing_credentials")]
    await harness.audit()
    assert exchange.outcome == "client_error"
    assert await harness.spent() == (0, 0)


@pytest.mark.gen_test
async def test_on_no_route():
    harness = Harness()
    _, reply = await harness.run(OTHER, refusal=NotFound("no such route"))
    assert (reply.status, error_of(reply.body)["code"]) == (404, "not_found")
    await harness.audit()


@every_json_mode
@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": ["x"]}, 400, "invalid_request_error"),
        ({"stream": "yes"}, 400, "invalid_request_error"),
        ({"padding": "x" * 20_000}, 413, "request_too_large"),
    ],
)
async def test_with_a_bad_body(
    spec: EndpointSpec, stream: bool, change: dict[str, Any], status: int, code: str
):
    harness = Harness()
    _, reply = await harness.run(spec, body={**good_body(spec, stream=stream), **change})
    assert (reply.status, error_of(reply.body)["code"]) == (status, code)
    assert harness.transport.opened == 0
    await harness.audit()
    assert await harness.spent() == (0, 0)


@every_body_mode
@pytest.mark.gen_test
async def test_with_a_compressed_body(spec: EndpointSpec, stream: bool):
    harness = Harness()
    _, reply = await harness.run(spec, stream=stream, headers={"content-encoding": "gzip"})
    assert reply.status == 415
    await harness.audit()


@every_mode
@pytest.mark.gen_test
async def test_outside_the_allow_list(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.publish(allowed_models=())
    _, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["type"]) == (403, "permission_denied")
    await harness.audit()


@every_mode
@pytest.mark.gen_test
async def test_over_an_own_limit(spec: EndpointSpec, stream: bool):
    harness = Harness(key_limits=LimitPolicy(rpm=0))
    exchange, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["code"]) == (429, "rate_limit_exceeded")
    assert reply.headers["x-ratelimit-limit-requests"] == "0"
    assert exchange.outcome == "rate_limited"
    assert harness.transport.opened == 0
    assert await harness.spent("model") == (0, 0), "a refusal consumes nothing of other limits"


# ── answered ──


@every_mode
@either_adapter
@pytest.mark.gen_test
async def test_answered(spec: EndpointSpec, stream: bool, deployment: Deployment):
    harness = Harness(deployment=deployment)
    harness.transport.script(good_answer(spec, stream=stream))
    exchange, reply = await harness.run(spec, stream=stream)
    assert reply.status == 200
    assert reply.headers["apim-request-id"] == "apim-1"
    assert reply.headers["x-ratelimit-limit-requests"] == "1000"
    await harness.audit()
    assert exchange.outcome == "success"
    assert exchange.usage is not None
    tokens = USAGE["total_tokens"] if spec.counts else 0
    assert exchange.usage.total_tokens == tokens
    assert not exchange.usage.estimated
    assert exchange.served_model == SERVED
    assert await harness.spent() == (1, tokens)
    if not stream:
        shown = shown_document(spec, alias=harness.alias, key=harness.key)
        assert json.loads(reply.body) == shown
    elif spec.usage in OPTED_USAGE:
        assert reply.body.endswith(DONE)
        assert b"usage" not in reply.body, "the usage chunk was not asked for"
    else:
        assert SERVED.encode() not in reply.body
        assert RESPONSE_ID.encode() not in reply.body


@pytest.mark.gen_test
@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec.operation)
async def test_answered_by_the_gateway_itself(spec: EndpointSpec):
    harness = Harness()
    exchange, reply = await harness.run(spec)
    assert reply.status == 200
    assert b"gpt-4o-azure" in reply.body
    await harness.audit()
    assert exchange.usage is None
    assert await harness.spent() == (0, 0)


# ── Azure answered with an error ──


@every_mode
@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("upstream", "status", "code", "outcome"),
    [
        (refused(400, {"code": "bad", "message": "m", "param": "p"}), 400, "bad", "client_error"),
        (
            refused(400, {"code": "content_filter", "message": "m", "param": "prompt"}),
            400,
            "content_filter",
            "client_error",
        ),
        (refused(401, {"code": "401", "message": "m"}), 401, "401", "client_error"),
        (
            refused(404, {"code": "DeploymentNotFound", "message": "m"}),
            404,
            "model_not_found",
            "client_error",
        ),
        (refused(500, {"code": None, "message": "secret host"}), 502, None, "upstream_error"),
        (MemoryAnswer(status=503, pieces=[b"<html>busy</html>"]), 502, None, "upstream_error"),
    ],
    ids=["400", "filter", "401", "404", "500", "html"],
)
async def test_refused_by_azure(
    spec: EndpointSpec,
    stream: bool,
    upstream: MemoryAnswer,
    status: int,
    code: str | None,
    outcome: str,
):
    harness = Harness()
    harness.transport.script(upstream)
    exchange, reply = await harness.run(spec, stream=stream)
    error = error_of(reply.body)
    assert (reply.status, error["type"]) == (status, "upstream_error")
    if code is not None:
        assert error["code"] == code
    assert "secret host" not in error["message"]
    await harness.audit()
    assert exchange.outcome == outcome
    assert await harness.spent() == (1, 0), "Azure saw the request; its tokens go back"
    assert harness.recorder.attempts[0]["ok"] is False


@every_mode
@either_adapter
@pytest.mark.gen_test
async def test_throttled_by_azure(spec: EndpointSpec, stream: bool, deployment: Deployment):
    harness = Harness(deployment=deployment)
    harness.transport.script(refused(429, {"code": "429", "message": "m"}, **{"retry-after": "7"}))
    exchange, reply = await harness.run(spec, stream=stream)
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert exchange.outcome == "rate_limited"
    await harness.audit()


# ── Azure gave no answer ──

NO_ANSWER = [
    pytest.param(MemoryAnswer(connecting=[UpstreamUnreachable("x")]), 502, 0, id="unreachable"),
    pytest.param(
        MemoryAnswer(connecting=[UpstreamTimeout("x", phase="connect")]), 504, 0, id="connect"
    ),
    pytest.param(
        MemoryAnswer(before=[UpstreamTimeout("x", phase="first_byte")]), 504, 1, id="first-byte"
    ),
    pytest.param(MemoryAnswer(before=[UpstreamTimeout("x", phase="total")]), 504, 1, id="total"),
]


@every_mode
@pytest.mark.gen_test
@pytest.mark.parametrize(("upstream", "status", "requests"), NO_ANSWER)
async def test_without_an_answer(
    spec: EndpointSpec, stream: bool, upstream: MemoryAnswer, status: int, requests: int
):
    harness = Harness()
    harness.transport.script(upstream)
    exchange, reply = await harness.run(spec, stream=stream)
    assert reply.status == status
    error_of(reply.body)
    await harness.audit()
    assert exchange.outcome == "upstream_error"
    assert await harness.spent() == (requests, 0)


@every_mode
@pytest.mark.gen_test
async def test_without_a_token(spec: EndpointSpec, stream: bool):
    harness = Harness(deployment=make_deployment(credential=ENTRA))
    harness.tokens.error = CredentialRefused("upstream authentication failed: AADSTS7000215")
    _, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["type"]) == (500, "config_error")
    await harness.audit()
    assert await harness.spent() == (0, 0)


# ── the answer breaks ──


@every_document_mode
@pytest.mark.gen_test
async def test_a_whole_answer_that_is_cut(spec: EndpointSpec, stream: bool):
    harness = Harness()
    cut = UpstreamBroken("cut", kind="cut")
    harness.transport.script(
        MemoryAnswer(headers={"content-type": "application/json"}, pieces=[b'{"id":', cut])
    )
    _, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["type"]) == (502, "stream_aborted")
    await harness.audit()
    assert await harness.spent() == (1, 0)


@every_document_mode
@pytest.mark.gen_test
async def test_a_whole_answer_that_is_no_json(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.transport.script(
        MemoryAnswer(headers={"content-type": "application/json"}, pieces=[b"<html>"])
    )
    _, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["type"]) == (502, "upstream_decode_error")
    await harness.audit()


@every_counted_text_stream
@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (UpstreamBroken("cut", kind="cut"), "stream_aborted"),
        (UpstreamTimeout("idle", phase="idle"), "timeout"),
    ],
    ids=["cut", "idle"],
)
async def test_a_stream_that_breaks_late(spec: EndpointSpec, failure: Exception, code: str):
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello wor"), failure]))
    exchange, reply = await harness.run(spec, stream=True)
    assert reply.status == 200
    assert late_error(reply.body)["code"] == code
    assert reply.finished
    await harness.audit()
    assert exchange.outcome == "upstream_error"
    assert exchange.usage is not None
    assert exchange.usage.estimated
    assert exchange.usage.completion_tokens == 3
    assert await harness.spent() == (1, exchange.usage.total_tokens)


@every_stream
@pytest.mark.gen_test
async def test_a_stream_that_ends_too_early(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello")]))
    _, reply = await harness.run(spec, stream=True)
    assert late_error(reply.body)["code"] == "stream_aborted"
    await harness.audit()


@every_stream
@pytest.mark.gen_test
async def test_a_stream_without_an_end_mark_that_is_complete(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello"), last_event(spec)]))
    exchange, reply = await harness.run(spec, stream=True)
    assert reply.body.endswith(DONE) is (spec.usage in OPTED_USAGE)
    assert exchange.outcome == "success"
    await harness.audit()


@every_stream
@pytest.mark.gen_test
async def test_a_stream_that_breaks_before_its_first_event(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([UpstreamBroken("cut", kind="cut")]))
    _, reply = await harness.run(spec, stream=True)
    assert (reply.status, error_of(reply.body)["type"]) == (502, "stream_aborted")
    await harness.audit()
    assert await harness.spent() == (1, 0)


@every_stream
@pytest.mark.gen_test
async def test_an_error_inside_a_200_before_anything_was_sent(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([event({"error": {"code": "429", "message": "slow down"}})]))
    _, reply = await harness.run(spec, stream=True)
    assert reply.status == 429
    assert error_of(reply.body)["message"] != "slow down"
    await harness.audit()
    assert await harness.spent() == (1, 0)


@every_stream
@pytest.mark.gen_test
async def test_an_error_inside_a_200_after_text(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(
        streamed([delta(spec, "hello"), event({"error": {"code": "server_error"}})])
    )
    _, reply = await harness.run(spec, stream=True)
    assert late_error(reply.body)["type"] == "upstream_in_band_error"
    await harness.audit()


# ── the caller leaves, or the process ends ──


@every_body_mode
@pytest.mark.gen_test
async def test_the_caller_leaves_while_its_body_arrives(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.transport.script(MemoryAnswer())
    body = ArrivingBody()
    run = harness.start(spec, stream=stream, body=body)
    await body.reading.wait()
    body.gone.set()
    run.reply.departed = True
    await run.ended()
    exchange = await harness.audit()
    assert (exchange.status, exchange.outcome) == (499, "client_cancelled")
    on_its_way = spec.body is BodyForm.STREAM  # it passes while it arrives
    assert await harness.spent() == (int(on_its_way), 0)


@every_mode
@pytest.mark.gen_test
async def test_the_caller_leaves_before_the_first_byte(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    run = harness.start(spec, stream=stream)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    await asyncio.sleep(0)
    run.reply.leave()
    await asyncio.sleep(0)
    assert harness.transport.closed == 1, "the upstream is cancelled within one loop turn"
    await run.ended()
    exchange = await harness.audit()
    assert (exchange.status, exchange.outcome, run.reply.status) == (499, "client_cancelled", 0)
    assert exchange.usage is not None
    assert (exchange.usage.completion_tokens, exchange.usage.estimated) == (0, True)
    assert await harness.spent() == (1, exchange.prompt_estimate_tokens)


@every_counted_text_stream
@pytest.mark.gen_test
async def test_the_caller_leaves_after_the_first_byte(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello wor"), asyncio.Event()]))
    run = harness.start(spec, stream=True)
    await run.reply.wrote.wait()
    await asyncio.sleep(0)
    run.reply.leave()
    await asyncio.sleep(0)
    assert harness.transport.closed_early == 1
    await run.ended()
    exchange = await harness.audit()
    assert (exchange.status, exchange.outcome) == (499, "client_cancelled")
    assert exchange.usage is not None
    assert exchange.usage.completion_tokens == 3
    assert await harness.spent() == (1, exchange.usage.total_tokens)


@every_mode
@pytest.mark.gen_test
async def test_the_caller_is_gone_when_the_answer_is_ready(spec: EndpointSpec, stream: bool):
    harness = Harness()
    gate = asyncio.Event()
    harness.transport.script(MemoryAnswer(before=[gate]))
    run = harness.start(spec, stream=stream)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    run.reply.departed = True
    gate.set()
    await run.ended()
    exchange = await harness.audit()
    assert exchange.status in (499, 502)


@every_mode
@pytest.mark.gen_test
async def test_the_process_ends_before_the_answer(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    run = harness.start(spec, stream=stream)
    await harness.transport.until(lambda: harness.transport.opened == 1)
    run.task.cancel()
    await run.ended()
    assert (run.reply.status, error_of(run.reply.body)["type"]) == (503, "overloaded")
    await harness.audit()


@every_stream
@pytest.mark.gen_test
async def test_the_process_ends_inside_a_stream(spec: EndpointSpec):
    harness = Harness()
    harness.transport.script(streamed([delta(spec, "hello"), asyncio.Event()]))
    run = harness.start(spec, stream=True)
    await run.reply.wrote.wait()
    await asyncio.sleep(0)
    run.task.cancel()
    await run.ended()
    assert late_error(run.reply.body)["type"] == "overloaded"
    await harness.audit()


@every_mode
@pytest.mark.gen_test
@pytest.mark.logs("aisix.pipeline")
async def test_a_bug_is_hidden_and_settled(spec: EndpointSpec, stream: bool):
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[ZeroDivisionError("a secret detail")]))
    _, reply = await harness.run(spec, stream=stream)
    assert (reply.status, error_of(reply.body)["type"]) == (500, "internal_error")
    assert b"secret" not in reply.body
    await harness.audit()
