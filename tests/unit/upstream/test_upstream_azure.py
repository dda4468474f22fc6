"""Calls to Azure OpenAI: address, headers and body, for both surfaces and both schemes."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.endpoints import ENDPOINTS, Action, BodyForm, EndpointSpec, Naming
from aisix.core.exchange import Errand, Payload
from aisix.core.ports import Adapter, Deadlines
from aisix.core.resources import ClientSecret, Deployment, ResourceKey
from aisix.core.uplink import Uplink
from aisix.errors import BadRequest, CredentialUnusable, FieldError, UpstreamMisconfigured
from aisix.upstream.azure import AzureOpenAI

KEY = ResourceKey(key="hunter2")
APP = ClientSecret(
    tenant_id="t", client_id="c", client_secret="s", authority="https://a.test", scope="x/.default"
)
RELAYED = [spec for spec in ENDPOINTS if spec.action is Action.RELAY]
CHAT = RELAYED[0]

azure: Adapter = AzureOpenAI()


def make_deployment(**changes):
    fields: dict[str, Any] = {
        "name": "gpt4o-prod",
        "provider": "azure",
        "adapter": "azure-openai",
        "api_base": "https://acme-west.openai.azure.com",
        "api_version": "2024-10-21",
        "provider_key_id": "pk",
        "provider_key_name": "azure-prod",
        "credential": KEY,
    }
    return Deployment(**(fields | changes))


def build(document, *, spec=CHAT, stream=False, inject=True, token=None, forward=(), **changes):
    return azure.build_call(
        spec,
        make_deployment(**changes),
        payload=Payload(document=document, requested="alias", stream=stream),
        inject_stream_options=inject,
        token=token,
        forward=forward,
        deadlines=Deadlines(connect_s=1.0),
    )


def every_header(call):
    return [*call.target.headers, *call.headers]


def header(call, name):
    values = [value for known, value in every_header(call) if known.lower() == name]
    assert len(values) <= 1, f"{name} is sent more than once"
    return values[0] if values else None


ORDINARY = [spec for spec in RELAYED if spec.naming is Naming.BODY]
ABOUT_OBJECTS = [spec for spec in RELAYED if spec.naming is not Naming.BODY]


@pytest.mark.parametrize("spec", ORDINARY, ids=lambda spec: spec.operation)
def test_a_dated_version_puts_the_deployment_into_the_path(spec):
    call = build({"model": "alias"}, spec=spec)
    scope = "/deployments/gpt4o-prod" if spec.deployment_scoped else ""
    assert call.target.url == (
        f"https://acme-west.openai.azure.com/openai{scope}{spec.path}?api-version=2024-10-21"
    )
    assert call.target.method == "POST"
    assert call.deadlines.connect_s == 1.0


@pytest.mark.parametrize("spec", ORDINARY, ids=lambda spec: spec.operation)
def test_v1_puts_the_deployment_into_the_body_only(spec):
    call = build({"model": "alias"}, spec=spec, api_version="v1", api_base="http://gw.test/west")
    assert call.target.url == f"http://gw.test/west/openai/v1{spec.path}"
    if spec.body is BodyForm.JSON:
        assert json.loads(call.body)["model"] == "gpt4o-prod"


def about(spec, errand, **changes):
    return azure.build_call(
        spec,
        make_deployment(**changes),
        payload=Payload(document={}, requested="alias", errand=errand),
        inject_stream_options=False,
        token=None,
        forward=(),
        deadlines=Deadlines(),
    )


@pytest.mark.parametrize("spec", ABOUT_OBJECTS, ids=lambda spec: spec.operation)
@pytest.mark.parametrize(
    ("version", "surface", "query"),
    [
        ("2025-03-01-preview", "/openai", "?api-version=2025-03-01-preview&"),
        ("v1", "/openai/v1", "?"),
    ],
)
def test_a_call_about_an_object_names_it_and_what_the_caller_asked(spec, version, surface, query):
    resource = "/file-1" if spec.subtree else "resp_1"
    asked = "limit=2&include%5B%5D=a%20b&api-version=1999-01-01&model=x&deployment=y&after="
    call = about(spec, Errand("DELETE", resource, asked), api_version=version)
    tail = spec.path.replace("{response_id}", "resp_1") + ("/file-1" if spec.subtree else "")
    assert call.target.url == (
        f"https://acme-west.openai.azure.com{surface}{tail}{query}limit=2&include%5B%5D=a+b&after="
    )
    assert (call.target.method, call.body) == ("DELETE", b"")
    assert header(call, "content-type") is None


class Given:
    """A body that passes."""

    content_type = "multipart/form-data; boundary=b"
    length: int | None = 7
    replayable = False

    async def open(self, deployment_name):
        yield deployment_name.encode()

    def let_go(self):
        pass

    def close(self):
        pass


def test_a_body_that_passes_keeps_its_type_and_length():
    spec = next(spec for spec in RELAYED if spec.subtree)
    payload = Payload(document={}, requested="a", source=Given(), errand=Errand("POST", ""))
    call = azure.build_call(
        spec,
        make_deployment(),
        payload=payload,
        inject_stream_options=False,
        token=None,
        forward=(),
        deadlines=Deadlines(),
    )
    assert header(call, "content-type") == Given.content_type
    assert (call.body_length, call.target.streaming) == (7, True)
    assert not isinstance(call.body, bytes)


def test_an_operation_without_deployment_has_none_in_its_path():
    spec = EndpointSpec(operation="responses", method="POST", path="/responses")
    call = build({}, spec=spec, api_version="2025-03-01-preview")
    assert call.target.url.endswith("azure.com/openai/responses?api-version=2025-03-01-preview")


def test_a_resource_key_is_sent_as_api_key_and_nothing_else():
    call = build({}, token="unused")
    assert header(call, "api-key") == "hunter2"
    assert header(call, "authorization") is None


def test_a_token_is_sent_as_bearer_and_nothing_else():
    call = build({}, credential=APP, token="eyJtoken")
    assert header(call, "authorization") == "Bearer eyJtoken"
    assert header(call, "api-key") is None


@pytest.mark.parametrize(("credential", "token"), [(None, "t"), (APP, None), (APP, "")])
def test_without_anything_to_authenticate_with_no_call_is_made(credential, token):
    with pytest.raises(CredentialUnusable):
        build({}, credential=credential, token=token)


@pytest.mark.parametrize(
    ("stream", "accept"), [(True, "text/event-stream"), (False, "application/json")]
)
def test_own_headers_say_what_is_sent_and_wanted(stream, accept):
    call = build({}, stream=stream, forward=[("x-aisix-request-id", "r-1")])
    assert header(call, "accept") == accept
    assert header(call, "content-type") == "application/json"
    assert header(call, "accept-encoding") == "identity"
    assert header(call, "user-agent").startswith("aisix/")
    assert header(call, "x-aisix-request-id") == "r-1"


def test_forwarded_headers_never_replace_or_break_ours():
    forward = [
        ("openai-beta", "x"),
        ("Authorization", "Bearer caller"),
        ("API-KEY", "caller"),
        ("x-api-key", "caller"),
        ("Cookie", "a=b"),
        ("Host", "evil.test"),
        ("Accept-Encoding", "gzip"),
        ("x-split", "a\r\napi-key: caller"),
        ("x-é", "a"),
        ("x-utf", "é"),
    ]
    call = build({}, forward=forward)
    assert header(call, "openai-beta") == "x"
    assert len(every_header(call)) == 6
    assert "caller" not in repr(every_header(call))


def test_a_call_shows_neither_its_url_nor_its_key():
    assert "hunter2" not in repr(build({}))


def test_the_model_is_replaced_in_place_and_the_rest_kept_in_order():
    document = {"x_new": [1, None], "model": "alias", "messages": [{"role": "developer"}], "n": 2}
    kept = copy.deepcopy(document)
    call = build(document)
    assert list(json.loads(call.body).items()) == [
        ("x_new", [1, None]),
        ("model", "gpt4o-prod"),
        ("messages", [{"role": "developer"}]),
        ("n", 2),
    ]
    assert document == kept


def test_a_missing_model_is_added():
    assert json.loads(build({"input": "x"}).body) == {"input": "x", "model": "gpt4o-prod"}


@pytest.mark.parametrize(
    ("sent", "upstream"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        (
            {"stream_options": {"include_obfuscation": False}},
            {"include_obfuscation": False, "include_usage": True},
        ),
    ],
)
def test_a_stream_always_asks_for_usage(sent, upstream):
    document = {"stream": True, **sent}
    kept = copy.deepcopy(document)
    assert json.loads(build(document, stream=True).body)["stream_options"] == upstream
    assert document == kept


def test_an_old_version_gets_no_stream_options_not_even_the_callers():
    document = {"stream": True, "stream_options": {"include_usage": True}}
    body = json.loads(build(document, stream=True, inject=False).body)
    assert body == {"stream": True, "model": "gpt4o-prod"}


@pytest.mark.parametrize("inject", [True, False])
def test_without_a_stream_the_stream_options_are_the_callers_affair(inject):
    body = json.loads(build({"stream_options": {"a": 1}}, inject=inject).body)
    assert body["stream_options"] == {"a": 1}
    assert "stream_options" not in json.loads(build({}, inject=inject).body)


@pytest.mark.parametrize(
    "value",
    [
        "/ \u2028 é 😀 \x00 \x7f",
        "lone \ud800 surrogate",
        123456789012345678901234567890,
        -0.0,
        1.0,
        0.1,
        5e-324,
        None,
        [[[]]],
        {"": {"é\udfff": "<&>"}},
    ],
)
def test_every_json_value_arrives_as_it_was(value):
    body = build({"value": value}).body
    again = json.loads(body)["value"]
    assert again == value
    assert type(again) is type(value)


def test_text_is_sent_as_utf8_without_needless_escapes():
    assert build({"t": "é/"}).body == '{"t":"é/","model":"gpt4o-prod"}'.encode()


def nested(levels):
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [float("inf"), float("nan"), nested(5000)])
def test_what_json_cannot_say_is_the_callers_mistake(value):
    with pytest.raises(BadRequest, match="request payload is invalid"):
        build({"value": value})


@pytest.mark.parametrize("name", ["", "..", "a/b", "a?b", "a\r\nb"])
def test_a_deployment_name_is_checked_at_every_call(name):
    with pytest.raises(UpstreamMisconfigured, match="invalid upstream configuration"):
        build({}, name=name)


def test_what_operators_write_is_checked_through_the_adapter():
    assert azure.name == "azure-openai"
    assert azure.parse_api_base("acme") == "https://acme.openai.azure.com"
    assert azure.parse_api_version(None) == "2024-10-21"
    assert azure.parse_secret("k") == ResourceKey(key="k")
    azure.check_deployment_name("gpt-4.1")
    with pytest.raises(FieldError):
        azure.check_deployment_name("a/b")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.booleans(), st.booleans())
def test_any_document_arrives_with_only_our_changes(document, stream, inject):
    document.pop("stream_options", None)
    body = json.loads(build(document, stream=stream, inject=inject).body)
    expected = {**document, "model": "gpt4o-prod"}
    if stream and inject:
        expected["stream_options"] = {"include_usage": True}
    assert body == expected


def test_calls_to_one_place_with_one_credential_share_their_target():
    first, second = build({"a": 1}, forward=[("x-own", "1")]), build({"b": 2})
    assert first.target is second.target
    assert (first.headers, second.headers) == ([("x-own", "1")], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"credential": ResourceKey(key="rotated")},
        {"credential": APP, "token": "hunter2"},
        {"name": "gpt4o-test"},
        {"api_base": "https://acme-east.openai.azure.com"},
        {"api_version": "v1"},
        {"spec": RELAYED[1]},
        {"stream": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_differs_is_another_target(changes):
    assert build({}).target is not build({}, **changes).target
    assert build({}).target is build({}).target


def test_a_renewed_token_is_another_target_and_is_sent_at_once():
    first, second = (build({}, credential=APP, token=token) for token in ("old", "new"))
    assert first.target is not second.target
    assert header(second, "authorization") == "Bearer new"
    assert not {"old"} & {value for _, value in every_header(second)}


def test_targets_say_whether_they_stream():
    embeddings = next(spec for spec in RELAYED if not spec.may_stream)
    assert build({}, stream=True).target.streaming
    assert not build({}).target.streaming
    assert not build({}, spec=embeddings, stream=True).target.streaming


def test_only_so_many_targets_are_remembered():
    one = AzureOpenAI()

    def target_of(name):
        payload = Payload(document={}, requested="alias")
        call = one.build_call(
            CHAT,
            make_deployment(name=name),
            payload=payload,
            inject_stream_options=False,
            token=None,
            forward=(),
            deadlines=Deadlines(),
        )
        return call.target

    used, unused = target_of("used"), target_of("unused")
    for number in range(1023):
        target_of(f"name-{number}")
        assert target_of("used") is used
    assert target_of("unused") is not unused


def test_a_target_shows_neither_its_url_nor_its_key():
    assert "hunter2" not in repr(build({}).target)
    assert "acme" not in repr(build({}).target)


@pytest.mark.parametrize(
    "written",
    [
        "http://169.254.169.254",
        "https://168.63.129.16:8443/x",
        "http://0xa9fea9fe/",
        "http://[fe80::1]:80",
        "http://[::ffff:169.254.169.254]/openai",
        "http://[fd00:ec2::254]",
    ],
)
def test_an_address_of_a_metadata_service_is_no_api_base_unless_it_is_allowed(written):
    with pytest.raises(FieldError, match=r"set upstream\.allow_link_local"):
        azure.parse_api_base(written)
    assert AzureOpenAI(allow_link_local=True).parse_api_base(written)


@pytest.mark.parametrize("written", ["http://127.0.0.1:8080", "http://10.0.0.4", "http://[::1]:1"])
def test_loopback_and_private_addresses_are_an_api_base(written):
    assert azure.parse_api_base(written) == written


# ── sessions ──

REALTIME = next(spec for spec in ENDPOINTS if spec.action is Action.SESSION)


def session(*, query=(), token=None, forward=(), **changes):
    payload = Payload(
        document={}, requested="alias", stream=True, source=Uplink(), query=tuple(query)
    )
    call = azure.build_call(
        REALTIME,
        make_deployment(**changes),
        payload=payload,
        inject_stream_options=True,
        token=token,
        forward=forward,
        deadlines=Deadlines(),
    )
    assert isinstance(call.body, Uplink)
    assert call.target.is_tunnel
    return call


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        (
            {"api_version": "2025-04-01-preview"},
            "wss://acme-west.openai.azure.com/openai/realtime"
            "?api-version=2025-04-01-preview&deployment=gpt4o-prod",
        ),
        (
            {"api_version": "v1"},
            "wss://acme-west.openai.azure.com/openai/v1/realtime?model=gpt4o-prod",
        ),
        (
            {"api_version": "v1", "api_base": "http://127.0.0.1:8080/http"},
            "ws://127.0.0.1:8080/http/openai/v1/realtime?model=gpt4o-prod",
        ),
        (
            {"api_version": "v1", "query": [("intent", "transcription")]},
            "wss://acme-west.openai.azure.com/openai/v1/realtime"
            "?model=gpt4o-prod&intent=transcription",
        ),
    ],
)
def test_a_session_has_its_deployment_in_the_query(changes, url):
    assert session(**changes).target.url == url


def test_a_session_carries_one_credential_and_no_content_headers():
    names = {name.lower() for name, _ in every_header(session())}
    assert names == {"api-key", "user-agent"}
    call = session(credential=APP, token="t-1")
    assert header(call, "authorization") == "Bearer t-1"
    assert header(call, "api-key") is None


def test_a_session_forwards_the_nonce_but_nothing_that_is_the_connections():
    forward = [
        ("Sec-WebSocket-Key", "nonce"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Version", "8"),
        ("Connection", "Upgrade"),
    ]
    assert session(forward=forward).headers == [("Sec-WebSocket-Key", "nonce")]


def test_sessions_of_one_kind_share_a_target():
    assert session().target is session().target
    assert session(query=[("intent", "transcription")]).target is not session().target


def test_a_session_needs_a_deployment_name_too():
    with pytest.raises(UpstreamMisconfigured):
        session(name="a/b")
