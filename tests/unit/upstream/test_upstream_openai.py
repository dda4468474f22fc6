"""Calls to OpenAI and compatible servers: address, headers and body, and what operators write."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.endpoints import ENDPOINTS, Action, BodyForm, EndpointSpec, Naming
from aisix.core.exchange import Errand, Payload
from aisix.core.ports import Adapter, Deadlines
from aisix.core.resources import ClientSecret, Deployment, ResourceKey
from aisix.core.shaping import Shaping
from aisix.core.uplink import Uplink
from aisix.errors import CredentialUnusable, FieldError, UpstreamMisconfigured
from aisix.upstream.openai import OpenAI

KEY = ResourceKey(key="sk-hunter2")
APP = ClientSecret(
    tenant_id="t", client_id="c", client_secret="s", authority="https://a.test", scope="x/.default"
)
MODEL = "meta-llama/Llama-3-8B:latest"
RELAYED = [spec for spec in ENDPOINTS if spec.action is Action.RELAY]
CHAT = RELAYED[0]
OPENAI = "https://api.openai.com/v1"

openai: Adapter = OpenAI()


def make_deployment(**changes):
    fields: dict[str, Any] = {
        "name": MODEL,
        "provider": "vllm",
        "adapter": "openai",
        "api_base": "http://127.0.0.1:8000/v1",
        "api_version": "",
        "provider_key_id": "pk",
        "provider_key_name": "vllm-one",
        "credential": KEY,
    }
    return Deployment(**(fields | changes))


def build(document, *, spec=CHAT, stream=False, inject=True, errand=None, forward=(), **changes):
    return openai.build_call(
        spec,
        make_deployment(**changes),
        payload=Payload(document=document, requested="alias", stream=stream, errand=errand),
        inject_stream_options=inject,
        token=None,
        forward=forward,
        deadlines=Deadlines(connect_s=1.0),
    )


def header(call, name):
    pairs = [*call.target.headers, *call.headers]
    values = [value for known, value in pairs if known.lower() == name]
    assert len(values) <= 1, f"{name} is sent more than once"
    return values[0] if values else None


# ── where it is ──


@pytest.mark.parametrize(
    ("written", "base"),
    [
        (None, OPENAI),
        ("", OPENAI),
        ("  ", OPENAI),
        ("https://api.openai.com", OPENAI),
        ("https://api.openai.com/", OPENAI),
        ("http://API.OpenAI.com:80", OPENAI),
        ("https://api.openai.com/v1/", OPENAI),
        ("https://api.openai.com/chat/completions", OPENAI),
        ("https://api.openai.com/v1/models/gpt-4o", OPENAI),
        ("https://eu.api.openai.com", "https://eu.api.openai.com/v1"),
        ("https://api.openai.com:8443", "https://api.openai.com:8443"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://vllm:8000//v1//chat/completions/", "http://vllm:8000/v1"),
        ("http://vllm:8000/v1/responses/resp_1/cancel", "http://vllm:8000/v1"),
        ("http://vllm:8000/v1/files/file-1/content", "http://vllm:8000/v1"),
        ("http://vllm:8000/v1/models/meta-llama/Llama-3-8B", "http://vllm:8000/v1"),
        ("http://vllm:8000/v1/models/chat/completions", "http://vllm:8000/v1"),
        ("https://gw.test/files/v1", "https://gw.test/files/v1"),
        ("https://gw.test/v1/account/openai", "https://gw.test/v1/account/openai"),
        ("https://gw.test/api/models", "https://gw.test/api"),
        ("https://[::1]:8443/v1/models", "https://[::1]:8443/v1"),
        ("https://acme.openai.azure.com", "https://acme.openai.azure.com/openai/v1"),
        ("https://acme.openai.azure.com/openai/v1/", "https://acme.openai.azure.com/openai/v1"),
        (
            "https://acme.services.ai.azure.com/api/projects/first",
            "https://acme.services.ai.azure.com/openai/v1",
        ),
    ],
)
def test_an_address_is_brought_to_one_form(written, base):
    assert openai.parse_api_base(written) == base
    assert openai.parse_api_base(base) == base


@pytest.mark.parametrize("spec", ENDPOINTS, ids=lambda spec: spec.operation)
@pytest.mark.parametrize("base", ["https://api.openai.com/v1", "https://gw.test/west/v1"])
def test_the_path_of_every_operation_may_be_pasted_along(spec, base):
    path = spec.path.replace("{response_id}", "resp_1").replace("{model}", "gpt-4o")
    assert openai.parse_api_base(base + path) == base
    assert openai.parse_api_base(base + path + "/") == base


segments = st.sampled_from(["v1", "models", "chat", "completions", "files", "west", "openai"])


@given(st.lists(segments, max_size=6))
def test_what_is_canonical_stays_so(parts):
    base = openai.parse_api_base("/".join(["https://gw.test", *parts]))
    assert openai.parse_api_base(base) == base


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("api.openai.com/v1", "needs a scheme: write it as https://api.openai.com/v1"),
        ("ftp://api.openai.com", "must begin with https://"),
        ("https://user:hunter2@gw.test/v1", "must not contain user information"),
        ("https://gw.test/v1#top", "must not have a fragment"),
        ("https://gw.test/v1/models?key=hunter2", 'query string; write "https://gw.test/v1"$'),
        (
            "https://acme.openai.azure.com/openai/deployments/x/chat/completions"
            "?api-version=2024-10-21",
            "an api-version is for the adapter azure-openai",
        ),
        ("https://gw.test/../v1", r"must not have \. or \.\."),
        ("http://169.254.169.254/v1", r"set upstream\.allow_link_local"),
        ("http://[fe80::1]:8000", r"set upstream\.allow_link_local"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_with_the_fix(written, said):
    with pytest.raises(FieldError, match=said) as refused:
        openai.parse_api_base(written)
    assert "hunter2" not in str(refused.value)


def test_link_local_addresses_are_taken_when_they_are_allowed():
    allowed = OpenAI(allow_link_local=True)
    assert allowed.parse_api_base("http://169.254.1.1/v1") == "http://169.254.1.1/v1"


# ── what else operators write ──


def test_there_is_no_api_version():
    assert openai.parse_api_version(None) == ""
    for version in ("v1", "2024-10-21", ""):
        with pytest.raises(FieldError, match=r"api_version is Azure's.*leave it out"):
            openai.parse_api_version(version)


def test_a_key_is_taken_alone():
    credential = openai.parse_secret(" sk-hunter2\n")
    assert credential == KEY
    openai.check_credential(credential, api_base=OPENAI, now=0.0)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("", "secret is empty"),
        (" ", "secret is empty"),
        ('{"client_secret":"hunter2"}', "takes a key only; write the key alone"),
        ("{hunter2", "takes a key only"),
        ("Bearer hunter2", "no key: it holds a space"),
        ("hunter2\r\nx: y", "no key"),
        ("hünter2", "no key"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(secret, said):
    with pytest.raises(FieldError, match=said) as refused:
        openai.parse_secret(secret)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", [MODEL, "gpt-4o", "ft:gpt-4o:acme::7p4", "a b", "é", "x" * 256])
def test_a_model_may_have_any_name(name):
    openai.check_deployment_name(name)
    assert json.loads(build({}, name=name).body)["model"] == name


@pytest.mark.parametrize("name", ["", "a\r\nb", "\x00", "a\x85", "a\u2028", "\ud800", "x" * 257])
def test_a_name_that_cannot_be_is_refused_when_written_and_at_every_call(name):
    with pytest.raises(FieldError, match="the model name"):
        openai.check_deployment_name(name)
    with pytest.raises(UpstreamMisconfigured, match="invalid upstream configuration"):
        build({}, name=name)


# ── calls ──

ORDINARY = [spec for spec in RELAYED if spec.naming is Naming.BODY]
ABOUT_OBJECTS = [spec for spec in RELAYED if spec.naming is not Naming.BODY]


@pytest.mark.parametrize("spec", ORDINARY, ids=lambda spec: spec.operation)
def test_every_operation_is_below_the_base_with_the_model_in_the_body(spec):
    call = build({"model": "alias"}, spec=spec)
    assert call.target.url == f"http://127.0.0.1:8000/v1{spec.path}"
    assert call.target.method == "POST"
    assert call.deadlines.connect_s == 1.0
    assert header(call, "authorization") == "Bearer sk-hunter2"
    assert header(call, "api-key") is None
    if spec.body is BodyForm.JSON:
        assert json.loads(call.body)["model"] == MODEL
        assert header(call, "content-type") == "application/json"


@pytest.mark.parametrize("spec", ABOUT_OBJECTS, ids=lambda spec: spec.operation)
def test_a_call_about_an_object_names_it_and_what_the_caller_asked(spec):
    resource = "/file-1" if spec.subtree else "resp_1"
    errand = Errand("DELETE", resource, "limit=2&api-version=1999-01-01&model=x&after=")
    call = build({}, spec=spec, errand=errand)
    tail = spec.path.replace("{response_id}", "resp_1") + ("/file-1" if spec.subtree else "")
    assert call.target.url == f"http://127.0.0.1:8000/v1{tail}?limit=2&after="
    assert (call.target.method, call.body) == ("DELETE", b"")
    assert header(call, "authorization") == "Bearer sk-hunter2"


class Form:
    """A form that passes, its part `model` exchanged."""

    content_type = "multipart/form-data; boundary=b"
    length: int | None = None
    replayable = False

    async def open(self, deployment_name):
        yield deployment_name.encode()

    def let_go(self) -> None:
        pass

    def close(self):
        pass


@pytest.mark.gen_test
async def test_a_form_is_opened_for_the_model():
    spec = next(spec for spec in RELAYED if spec.body is BodyForm.FORM)
    call = openai.build_call(
        spec,
        make_deployment(),
        payload=Payload(document={}, requested="alias", source=Form()),
        inject_stream_options=False,
        token=None,
        forward=(),
        deadlines=Deadlines(),
    )
    assert not isinstance(call.body, bytes)
    assert [piece async for piece in call.body] == [MODEL.encode()]
    assert header(call, "content-type") == Form.content_type


def test_a_stream_asks_for_usage_until_the_server_does_not_know_how():
    asked = json.loads(build({"stream": True}, stream=True).body)
    assert asked["stream_options"] == {"include_usage": True}
    without = json.loads(build({"stream": True}, stream=True, inject=False).body)
    assert without == {"stream": True, "model": MODEL}
    old = b'{"detail":[{"loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}'
    assert openai.refused_stream_options(422, old)


def test_forwarded_headers_never_replace_ours():
    forward = [("openai-beta", "x"), ("Authorization", "Bearer caller"), ("api-key", "caller")]
    call = build({}, forward=forward)
    assert header(call, "openai-beta") == "x"
    assert "caller" not in repr([*call.target.headers, *call.headers])


def test_an_operator_s_headers_are_sent_with_every_call():
    shaping = Shaping(default_headers=(("openai-project", "proj_1"),))
    assert header(build({}, shaping=shaping), "openai-project") == "proj_1"


@pytest.mark.parametrize("credential", [None, APP])
def test_without_a_key_no_call_is_made(credential):
    with pytest.raises(CredentialUnusable):
        build({}, credential=credential)


def test_no_answer_is_about_a_token():
    assert openai.refused_token(401, b'{"error":{"code":"401"}}') is False


def test_calls_share_their_target_until_the_key_is_another():
    first, second = build({"a": 1}), build({"b": 2})
    assert first.target is second.target
    assert build({}, credential=ResourceKey("sk-new")).target is not first.target
    assert "hunter2" not in repr(first.target)


@pytest.mark.parametrize("name", ["", MODEL])
def test_a_probe_asks_for_the_list_of_models(name):
    call = openai.build_probe(make_deployment(name=name), token=None, deadlines=Deadlines())
    assert (call.target.method, call.target.url) == ("GET", "http://127.0.0.1:8000/v1/models")
    assert header(call, "authorization") == "Bearer sk-hunter2"
    assert call.body == b""


def test_an_operation_that_is_to_come_needs_nothing_new():
    spec = EndpointSpec(operation="rerank", method="POST", path="/rerank")
    assert build({}, spec=spec).target.url == "http://127.0.0.1:8000/v1/rerank"


REALTIME = next(spec for spec in ENDPOINTS if spec.action is Action.SESSION)


@pytest.mark.parametrize(
    ("api_base", "query", "url"),
    [
        (OPENAI, (), "wss://api.openai.com/v1/realtime?model=meta-llama%2FLlama-3-8B%3Alatest"),
        (
            "http://127.0.0.1:8000/v1",
            (("intent", "transcription"),),
            "ws://127.0.0.1:8000/v1/realtime?model=meta-llama%2FLlama-3-8B%3Alatest"
            "&intent=transcription",
        ),
    ],
)
def test_a_session_has_its_model_in_the_query(api_base, query, url):
    call = openai.build_call(
        REALTIME,
        make_deployment(api_base=api_base),
        payload=Payload({}, requested="alias", stream=True, source=Uplink(), query=query),
        inject_stream_options=True,
        token=None,
        forward=[("Sec-WebSocket-Key", "nonce")],
        deadlines=Deadlines(),
    )
    assert call.target.is_tunnel
    assert call.target.url == url
    assert header(call, "authorization") == "Bearer sk-hunter2"
    assert header(call, "sec-websocket-key") == "nonce"


# ── errors in OpenAI's form ──


def error(**fields):
    return json.dumps({"error": {"param": None, **fields}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "code", "message", "retried"),
    [
        (
            401,
            error(
                code="invalid_api_key",
                type="invalid_request_error",
                message="Incorrect API key provided: sk-hunte****************ter2.",
            ),
            None,
            "upstream authentication failed",
            False,
        ),
        (
            404,
            error(code="model_not_found", message=f"The model `{MODEL}` does not exist"),
            "model_not_found",
            "upstream deployment or model not found",
            False,
        ),
        (
            429,
            error(code="rate_limit_exceeded", type="tokens", message="Try again in 2s."),
            "rate_limit_exceeded",
            "upstream rate limited",
            None,
        ),
        (
            429,
            error(code="insufficient_quota", type="insufficient_quota", message="Check billing."),
            "insufficient_quota",
            "upstream rate limited",
            False,
        ),
        (
            400,
            error(code="unknown_parameter", message="Unknown parameter: 'x'.", type="invalid"),
            "unknown_parameter",
            "Unknown parameter: 'x'.",
            False,
        ),
        (
            500,
            error(code=None, message="The server had an error"),
            None,
            "upstream returned 500",
            None,
        ),
    ],
)
def test_an_error_is_explained_by_the_rules_for_azure_s(status, body, code, message, retried):
    headers = {"content-type": "application/json", "x-request-id": "req_1"}
    rejected = openai.explain(status, headers, body, deployment=make_deployment())
    assert (rejected.code, rejected.message) == (code, message)
    assert rejected.should_retry is retried
    assert rejected.status == (status if status < 500 else 502)
    assert "sk-hunte" not in (rejected.detail or "")


def test_an_error_names_neither_host_nor_model():
    said = f"The model {MODEL} at 127.0.0.1:8000 (http://127.0.0.1:8000/v1) takes no 'x'."
    deployment = make_deployment()
    rejected = openai.explain(400, {}, error(message=said), deployment=deployment)
    assert "127.0.0.1" not in rejected.message
    assert MODEL not in rejected.message
