"""Every producer of errors over a real socket: one envelope on the proxy, one on the admin port.

The proxy's producers are its stages, Azure's answers, the transport, the handler and Tornado
itself. What an SDK reads must be the same wherever the error was born.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest

from aisix import errors
from aisix.core.resources import LimitPolicy
from aisix.errors import CredentialRefused, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.memory import MemoryAnswer
from aisix.web.applications import admin_application
from aisix.web.base import SERVER, ProcessState
from tests.support.builders import CHAT, make_deployment
from tests.support.control import ADMIN_KEY, make_control
from tests.support.front import (
    BODY_LIMIT_BYTES,
    FrontAnswer,
    StubPipeline,
    post,
    request,
    serve_application,
    serve_proxy,
)
from tests.support.pipeline import ENTRA, Harness
from tests.support.rows import delta, good_body, refused, streamed

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
NONE_LEFT = LimitPolicy(rpm=0)
REJECTED = "invalid_request_error"


@dataclass(frozen=True)
class Case:
    """What is sent, what Azure does then, and what the caller must read."""

    sent: bytes
    status: int
    type: str
    code: str
    param: str | None = None
    azure: MemoryAnswer | None = None
    harness: dict[str, Any] = field(default_factory=dict)
    """Fields of the Harness."""
    authority: errors.GatewayError | None = None
    """What the token authority answers."""


def chat(**options: Any) -> bytes:
    """A good chat completion request."""
    return post(PATH, good_body(CHAT, stream=options.pop("stream", False)), **options)


def body(content: bytes, **headers: str) -> bytes:
    """A chat completion request with this body."""
    return post(PATH, content, headers={**JSON, **headers})


def azure(status: int, error: Any, **headers: str) -> dict[str, Any]:
    """A good request that Azure refuses."""
    return {"sent": chat(), "azure": refused(status, error, **headers)}


def failing(error: BaseException) -> dict[str, Any]:
    """A good request that does not come through."""
    return {"sent": chat(), "azure": MemoryAnswer(before=[error])}


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

CASES = {
    # routes and methods
    "no route": Case(request("GET", "/nowhere"), 404, REJECTED, "not_found"),
    "no route with a body": Case(post("/nowhere", b"{}"), 404, REJECTED, "not_found"),
    "wrong method": Case(request("GET", PATH), 405, REJECTED, "method_not_allowed"),
    "no handshake": Case(request("GET", "/v1/realtime"), 426, REJECTED, "upgrade_required"),
    "no model for a session": Case(
        request("GET", "/openai/realtime", headers=HANDSHAKE), 400, REJECTED, REJECTED, "model"
    ),
    "unknown method": Case(request("BREW", PATH), 400, REJECTED, REJECTED),
    "unknown method elsewhere": Case(request("BREW", "/"), 400, REJECTED, REJECTED),
    "head too large": Case(
        request("GET", PATH, headers={"x-much": "x" * 70_000}),
        431,
        REJECTED,
        "request_head_too_large",
    ),
    "no host": Case(request("GET", PATH, headers={"Host": None}), 400, REJECTED, REJECTED),
    "probe, wrong method": Case(post("/livez", b""), 405, REJECTED, "method_not_allowed"),
    "probe, unknown method": Case(request("BREW", "/readyz"), 400, REJECTED, REJECTED),
    "path is not UTF-8": Case(request("GET", "/v1/models/%ff"), 400, REJECTED, REJECTED, "model"),
    # size and form
    "declared too large": Case(
        body(b"x" * (BODY_LIMIT_BYTES + 1)), 413, REJECTED, "request_too_large"
    ),
    "turns out too large": Case(
        request("POST", PATH, headers={**JSON, "Transfer-Encoding": "chunked"})
        + b"2711\r\n%b\r\n0\r\n\r\n" % (b"x" * 10_001),
        413,
        REJECTED,
        "request_too_large",
    ),
    "bad JSON": Case(body(b"{"), 400, REJECTED, REJECTED),
    "no JSON at all": Case(body(b""), 400, REJECTED, REJECTED),
    "not an object": Case(body(b"[]"), 400, REJECTED, REJECTED),
    "NaN": Case(body(b'{"model":"m","messages":[{}],"n":NaN}'), 400, REJECTED, REJECTED),
    "no messages": Case(body(b'{"model":"m"}'), 400, REJECTED, REJECTED, "messages"),
    "wrong content type": Case(
        body(b"{}", **{"Content-Type": "text/plain"}), 400, REJECTED, REJECTED
    ),
    "compressed": Case(
        body(b"\x1f\x8b", **{"Content-Encoding": "gzip"}),
        415,
        REJECTED,
        "unsupported_content_encoding",
    ),
    # who and what
    "no key": Case(
        chat(headers={"Authorization": None}), 401, "invalid_api_key", "invalid_api_key"
    ),
    "wrong key": Case(
        chat(headers={"Authorization": "Bearer sk-wrong"}),
        401,
        "invalid_api_key",
        "invalid_api_key",
    ),
    "unknown model": Case(
        post(PATH, {**good_body(CHAT), "model": "gpt-9"}),
        404,
        "model_not_found",
        "model_not_found",
        "model",
    ),
    "unknown model to read": Case(
        request("GET", "/v1/models/gpt-9"), 404, "model_not_found", "model_not_found", "model"
    ),
    "limit of the key": Case(
        chat(),
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded",
        harness={"key_limits": NONE_LEFT},
    ),
    "limit of the model": Case(
        chat(),
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded",
        harness={"alias_limits": NONE_LEFT},
    ),
    # Azure and the way there
    "Azure: bad request": Case(
        **azure(400, {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}),
        status=400,
        type="upstream_error",
        code="c",
        param="n",
    ),
    "Azure: content filter": Case(
        **azure(400, {"message": "filtered", "code": "content_filter", "param": "prompt"}),
        status=400,
        type="upstream_error",
        code="content_filter",
        param="prompt",
    ),
    "Azure: bad key": Case(
        **azure(401, {"code": "401", "message": "secret words"}),
        status=401,
        type="upstream_error",
        code="401",
    ),
    "Azure: throttled": Case(
        **azure(429, {"code": "429", "message": "secret words"}, **{"retry-after": "7"}),
        status=429,
        type="upstream_error",
        code="429",
    ),
    "Azure: broken": Case(
        **azure(500, {"message": "secret words"}),
        status=502,
        type="upstream_error",
        code="upstream_error",
    ),
    "Azure: no JSON": Case(
        chat(),
        502,
        "upstream_error",
        "upstream_error",
        azure=MemoryAnswer(503, {"content-type": "text/html"}, [b"<h1>secret words</h1>"]),
    ),
    "no connection": Case(
        **failing(UpstreamUnreachable("upstream cannot be reached")),
        status=502,
        type="transport_error",
        code="transport_error",
    ),
    "deadline": Case(
        **failing(UpstreamTimeout("upstream timed out", phase="first_byte")),
        status=504,
        type="timeout",
        code="timeout",
    ),
    "stream that fails first": Case(
        chat(stream=True),
        502,
        "stream_aborted",
        "stream_aborted",
        azure=streamed([]),
    ),
    "Entra: refused": Case(
        chat(),
        500,
        "config_error",
        "config_error",
        harness={"deployment": make_deployment(credential=ENTRA)},
        authority=CredentialRefused("upstream authentication failed (AADSTS7000215)"),
    ),
}


def check(answer: FrontAnswer, *, request_id: str = "") -> dict[str, Any]:
    """The one envelope, whole; the error in it."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server"] == SERVER
    assert answer.headers["x-request-id"] == answer.headers["x-aisix-request-id"]
    if request_id:
        assert answer.headers["x-request-id"] == request_id
    else:
        uuid.UUID(answer.headers["x-request-id"])
    assert answer.headers["content-length"] == str(len(answer.body))
    return check_envelope(answer.body)


def check_envelope(document: bytes) -> dict[str, Any]:
    """Four keys, in one order, with the right kinds of values."""
    parsed = json.loads(document)
    assert list(parsed) == ["error"]
    error: dict[str, Any] = parsed["error"]
    assert list(error)[:4] == ["message", "type", "param", "code"]
    assert set(error) <= {"message", "type", "param", "code", "innererror"}
    assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code"))
    assert error["param"] is None or isinstance(error["param"], str)
    assert "secret" not in document.decode()
    assert "gpt4o-prod" not in document.decode(), "the deployment's name is ours"
    return error


async def ask(case: Case) -> FrontAnswer:
    """Send it; the answer."""
    harness = Harness(**case.harness)
    harness.tokens.error = case.authority
    if case.azure is not None:
        harness.transport.script(case.azure)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(case.sent)
        return await caller.answer()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.gen_test
async def test_every_producer_answers_in_the_one_envelope(name: str):
    case = CASES[name]
    answer = await ask(case)
    error = check(answer)
    assert (answer.status, error["type"], error["code"]) == (case.status, case.type, case.code)
    assert error["param"] == case.param


@pytest.mark.gen_test
async def test_errors_carry_the_callers_own_id():
    async with serve_proxy(Harness().pipeline) as front, front.caller() as caller:
        for sent in (request("GET", "/nowhere"), request("PUT", PATH)):
            head, end = sent[:-2], b"\r\n"
            await caller.send(head + b"x-request-id: mine\r\n" + end)
            check(await caller.answer(), request_id="mine")


def test_each_kind_of_error_is_met_or_known_to_be_out_of_reach():
    """A new kind of error needs a case here, or a reason."""
    reached = {(case.status, case.type) for case in CASES.values()}
    elsewhere = {
        "CredentialUnusable": "checked when it is written; met in tests of credentials",
        "CredentialUnavailable": "the twin of UpstreamUnreachable, met in tests of credentials",
        "UpstreamMisconfigured": "checked when it is written; met in tests of the adapter",
        "RequestTimeout": "needs a slow caller; met in tests of limits",
        "Forbidden": "below",
        "Overloaded": "below",
        "InternalError": "below",
        "UpstreamRejected": "has Azure's status; several cases",
        "UpstreamBroken": "its kind is its type; one case, others in tests of the pump",
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    abstract = {errors.GatewayError, errors.RequestRejected, errors.UpstreamFailed}
    for kind in kinds:
        if issubclass(kind, errors.GatewayError) and kind not in abstract:
            assert kind.__name__ in elsewhere or (kind.status, kind.type) in reached, kind


@pytest.mark.gen_test
async def test_a_model_that_the_key_does_not_cover_is_in_the_envelope():
    harness = Harness()
    harness.publish(allowed_models=("other",))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        answer = await caller.answer()
    error = check(answer)
    assert (answer.status, error["type"]) == (403, "permission_denied")


@pytest.mark.gen_test
async def test_a_process_that_ends_answers_in_the_envelope():
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        await harness.transport.until(lambda: harness.transport.opened == 1)
        front.state.abort_all()
        answer = await caller.answer()
    assert (answer.status, check(answer)["type"]) == (503, "overloaded")


@pytest.mark.logs("exchange.crashed")
@pytest.mark.gen_test
async def test_a_crash_of_a_stage_is_in_the_envelope_and_says_nothing():
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[RuntimeError("secret words")]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat())
        answer = await caller.answer()
    error = check(answer)
    assert (answer.status, error["type"], error["code"]) == (500, *["internal_error"] * 2)
    assert error["message"] == "the gateway failed to serve this request"


@pytest.mark.logs("exchange.crashed")
@pytest.mark.gen_test
async def test_a_crash_of_the_pipeline_itself_is_in_the_envelope_and_says_nothing():
    async def crashes(inbound: Any, _reply: Any) -> None:
        await inbound.body.read_all(0)
        raise RuntimeError("secret words")

    async with serve_proxy(StubPipeline(crashes)) as front, front.caller() as caller:
        await caller.send(chat())
        answer = await caller.answer()
    assert (answer.status, check(answer)["type"]) == (500, "internal_error")


@pytest.mark.gen_test
async def test_a_late_error_event_holds_the_envelope_too():
    harness = Harness()
    harness.transport.script(
        streamed([delta(CHAT, "one"), UpstreamTimeout("upstream timed out", phase="idle")])
    )
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(chat(stream=True))
        answer = await caller.answer()
    assert answer.status == 200
    last = answer.body.rstrip().rpartition(b"\n\n")[2]
    first, _, data = last.partition(b"\n")
    assert first == b"event: error"
    assert check_envelope(data.removeprefix(b"data: "))["type"] == "timeout"
    assert b"[DONE]" not in answer.body


# ── the admin port ──────────────────────────────────────────────────────────────────────────────

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
KEYS = "/admin/v1/provider_keys"
ADMIN_CASES = {
    "no route": (request("GET", "/nowhere", headers=ADMIN), 404),
    "no route, no key": (request("GET", "/v1/models"), 404),
    "no key": (request("GET", KEYS), 401),
    "wrong method": (request("PATCH", KEYS, b"{}", headers=ADMIN), 405),
    "unknown method": (request("BREW", KEYS, headers=ADMIN), 405),
    "probe, wrong method": (request("POST", "/livez", b"", headers=ADMIN), 405),
    "bad JSON": (post(KEYS, b"{", headers={**ADMIN, **JSON}), 400),
    "breaks the schema": (post(KEYS, {"a": 1}, headers={**ADMIN, **JSON}), 400),
    "wrong content type": (post(KEYS, b"{}", headers={**ADMIN, "Content-Type": "text/xml"}), 415),
    "compressed": (
        post(KEYS, b"\x1f", headers={**ADMIN, **JSON, "Content-Encoding": "gzip"}),
        415,
    ),
    "too large": (post(KEYS, b" " * (2 << 20) + b"{}", headers={**ADMIN, **JSON}), 413),
    "not found": (request("GET", f"{KEYS}/{uuid.UUID(int=1)}", headers=ADMIN), 404),
    "store is away": (request("GET", KEYS, headers=ADMIN), 500),
}


@pytest.mark.parametrize("name", ADMIN_CASES)
@pytest.mark.logs("aisix.admin")
@pytest.mark.gen_test
async def test_the_admin_port_answers_in_its_own_envelope(name: str):
    sent, status = ADMIN_CASES[name]
    control = make_control()
    await control.service.load()
    if name == "store is away":
        control.store.fail_with = "the disk is full"
    state = ProcessState()
    application = admin_application(control.service, admin_keys=[ADMIN_KEY], state=state)
    async with serve_application(application, state) as front, front.caller() as caller:
        await caller.send(sent)
        answer = await caller.answer()
    await control.service.close()
    assert answer.status == status
    assert list(answer.json()) == ["error_msg"]
    assert answer.json()["error_msg"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server"] == SERVER
    assert answer.headers["x-request-id"] == answer.headers["x-aisix-request-id"]
