"""Azure's error answers, by table: what callers see, what the log keeps, what may be retried."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.resources import Deployment
from aisix.errors import answer_headers, envelope
from aisix.simulator import faults
from aisix.upstream import refusals
from aisix.upstream.azure import AzureOpenAI

NOW = 1_800_000_000.0
JSON = {"content-type": "application/json; charset=utf-8"}
azure = AzureOpenAI(now=lambda: NOW)


def error(**fields):
    return json.dumps({"error": fields}).encode()


def explain(status, body=b"", deployment=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return azure.explain(status, {**JSON, **named}, body, deployment=deployment)


TOKEN_REFUSED = (
    b'{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, audience is '
    b'incorrect (https://cognitiveservices.azure.com), or have expired."}'
)


@pytest.mark.parametrize(
    ("status", "shown", "message", "retried"),
    [
        (400, 400, "upstream returned 400", False),
        (401, 401, "upstream authentication failed", False),
        (402, 402, "upstream returned 402", False),
        (403, 403, "upstream authentication failed", False),
        (404, 404, "upstream deployment or model not found", False),
        (408, 408, "upstream request timeout", None),
        (409, 409, "upstream conflict", False),
        (413, 413, "upstream request entity too large", False),
        (422, 422, "upstream returned 422", False),
        (424, 424, "upstream returned 424", False),
        (429, 429, "upstream rate limited", None),
        (431, 431, "upstream returned 431", False),
        (500, 502, "upstream returned 500", None),
        (503, 502, "upstream returned 503", None),
        (599, 502, "upstream returned 599", None),
        (302, 502, "upstream returned 302", False),
        (204, 502, "upstream returned 204", False),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>secret-host</html>", b"{}", b"[1]", b'{"error":7}'])
def test_an_answer_without_words_gets_ours(status, shown, message, retried, body):
    rejected = explain(status, body)
    assert rejected.status == shown
    assert rejected.upstream_status == status
    assert rejected.message == message
    assert rejected.should_retry is retried
    assert envelope(rejected)["error"] == {
        "message": message,
        "type": "upstream_error",
        "param": None,
        "code": "upstream_error",
    }


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_may_quote_the_request_goes_to_the_caller_and_not_to_the_log(status):
    rejected = explain(status, error(message="you wrote: a prompt", code="Some"))
    assert "you wrote: a prompt" in rejected.message
    assert "prompt" not in rejected.detail
    assert "code Some" in rejected.detail


@pytest.mark.parametrize("status", [401, 403, 404, 408, 409, 429, 500, 503])
def test_azures_text_goes_to_the_log_and_not_to_the_caller(status):
    rejected = explain(status, error(message="text of\r\nAzure", param="p", code="Some"))
    assert "text of" not in json.dumps(envelope(rejected))
    assert rejected.param is None
    assert "text of Azure" in rejected.detail
    assert f"status {status}" in rejected.detail


@pytest.mark.parametrize(
    ("status", "fields", "code", "param"),
    [
        (
            400,
            {
                "message": "This model's maximum context length is 10 tokens.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            },
            "context_length_exceeded",
            "messages",
        ),
        (
            400,
            {
                "message": "Unsupported parameter: 'max_tokens' is not supported.",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            },
            "unsupported_parameter",
            "max_tokens",
        ),
        (
            400,
            {
                "message": "Token tenant does not match resource tenant.",
                "code": "Tenant provided in token does not match resource token",
            },
            "Tenant provided in token does not match resource token",
            None,
        ),
        (400, {"message": "Server responded with status 429.", "code": 400}, None, None),
        (
            413,
            {"message": "Maximum content size limit (26214400) exceeded", "code": None},
            None,
            None,
        ),
        (422, {"message": "no", "param": 7, "code": "x"}, "x", None),
    ],
)
def test_what_is_wrong_with_the_callers_request_is_passed_on(status, fields, code, param):
    rejected = explain(status, error(**fields))
    assert (rejected.status, rejected.message) == (status, fields["message"])
    assert (rejected.code, rejected.param) == (code, param)
    assert rejected.should_retry is False


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message":"no wrapper","code":"x"}', "no wrapper"),
        (b'{"detail":"no wrapper"}', "no wrapper"),
        (b'{"error":"just text"}', "just text"),
        (b'\xef\xbb\xbf {"error":{"message":"after a mark"}}', "after a mark"),
    ],
)
def test_odd_forms_of_an_error_body_are_understood(body, message):
    assert explain(400, body).message == message


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"cut',
        b'{"error":{"message":"' + b"x" * 70_000 + b'"}}',
        b'{"error":' * 2000,
        b'{"error":{"message":"\xff"}}',
        b'{"error":{"message":["x"]}}',
    ],
)
def test_a_body_that_cannot_be_read_is_no_reason_to_fail(body):
    assert explain(400, body).message == "upstream returned 400"


def test_a_body_that_says_it_is_html_is_not_parsed():
    rejected = explain(400, error(message="text"), content_type="text/html")
    assert rejected.message == "upstream returned 400"


def test_a_missing_deployment_gets_the_code_sdk_users_know():
    rejected = explain(404, error(code="DeploymentNotFound", message="The API deployment …"))
    assert rejected.code == "model_not_found"
    assert rejected.message == "upstream deployment or model not found"


CHAT_FILTER = {
    "message": "The response was filtered. https://go.microsoft.com/fwlink/?linkid=2198766",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
        "callstack": "Traceback …",
    },
}
IMAGE_FILTER = {
    "code": "content_policy_violation",
    "inner_error": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_results": {"jailbreak": {"detected": True, "filtered": True}},
    },
    "message": "Your request was rejected as a result of our safety system.",
    "type": "invalid_request_error",
}


@pytest.mark.parametrize(
    ("fields", "code", "results"),
    [
        (CHAT_FILTER, "content_filter", "content_filter_result"),
        (IMAGE_FILTER, "content_policy_violation", "content_filter_results"),
        (CHAT_FILTER | {"code": "invalid_prompt"}, "content_filter", "content_filter_result"),
        (CHAT_FILTER | {"code": None}, "content_filter", "content_filter_result"),
    ],
)
def test_a_content_filter_keeps_its_status_code_and_findings(fields, code, results):
    rejected = explain(400, error(**fields))
    body = envelope(rejected)["error"]
    assert (rejected.status, body["code"], body["type"]) == (400, code, "upstream_error")
    assert body["message"] == fields["message"]
    assert body["param"] == fields.get("param")
    name = "inner_error" if fields is IMAGE_FILTER else "innererror"
    assert body[name]["code"] == "ResponsibleAIPolicyViolation"
    assert body[name][results]
    assert "callstack" not in body[name]
    assert rejected.should_retry is False


def test_a_content_filter_without_findings_has_none():
    rejected = explain(400, error(code="ResponsibleAIPolicyViolation", message="no"))
    assert rejected.code == "content_filter"
    assert "innererror" not in envelope(rejected)["error"]


def test_an_inner_error_of_another_kind_stays_inside():
    rejected = explain(400, error(code="x", message="m", innererror={"code": "Other"}))
    assert rejected.extra == {}


DEPLOYMENT = Deployment(
    name="gpt4o-prod",
    provider="azure",
    adapter="azure-openai",
    api_base="https://acme-west.openai.azure.com",
    api_version="v1",
    provider_key_id="pk",
    provider_key_name="azure-prod",
)


def test_hosts_deployments_and_urls_are_taken_out_of_what_is_passed():
    said = (
        "Deployment gpt4o-prod of acme-west at https://acme-west.openai.azure.com/openai/x?k=1 "
        "(10.0.0.7:443, acme-west.openai.azure.com) failed for messages[0].content of gpt-4o"
    )
    inner = {"code": "ResponsibleAIPolicyViolation", "at": {"acme-west": ["gpt4o-prod", 1, None]}}
    rejected = explain(
        400,
        error(message=said, param="gpt4o-prod", code="content_filter", innererror=inner),
        deployment=DEPLOYMENT,
    )
    shown = json.dumps(envelope(rejected))
    for ours in ("gpt4o-prod", "acme-west", "azure.com", "10.0.0.7", "https://"):
        assert ours not in shown
    assert "messages[0].content of gpt-4o" in rejected.message


@pytest.mark.parametrize(
    ("headers", "message", "wait"),
    [
        ({"retry_after_ms": "1500"}, "", 1.5),
        ({"x_ms_retry_after_ms": "2500", "retry_after": "9"}, "", 2.5),
        ({"retry_after": "7"}, "", 7.0),
        ({"retry_after": "0.5"}, "", 0.5),
        ({"retry_after": "Fri, 15 Jan 2027 08:00:30 GMT"}, "", 30.0),
        (
            {
                "retry_after": "Fri, 15 Jan 2027 09:00:05 GMT",
                "date": "Fri, 15 Jan 2027 09:00:00 GMT",
            },
            "",
            5.0,
        ),
        ({"retry_after": "Fri, 15 Jan 2021 08:00:00 GMT"}, "", 0.0),
        ({}, "Rate limit is exceeded. Try again in 2 seconds.", 2.0),
        ({}, "Please retry after 86400 seconds. Please go here", 86400.0),
        ({}, "Please try again in 500 milliseconds.", 0.5),
        ({}, "Please try again in 20s. Visit https://platform.openai.com", 20.0),
        ({}, "Please try again in 172ms.", 0.172),
        ({}, "Please try again in 6m0s.", 360.0),
        ({}, "Please try again in 1h12m28.8s.", 4348.8),
        ({}, "Please try again in 5 minutes", None),
        ({"retry_after": "soon", "retry_after_ms": "-1"}, "Please retry after 1 second.", 1.0),
        ({"retry_after": "nan", "retry_after_ms": "inf"}, "later", None),
        ({"retry_after": "-5"}, "", None),
        ({}, "", None),
    ],
)
def test_every_form_of_a_retry_hint_is_read(headers, message, wait):
    rejected = explain(429, error(code="429", message=message), **headers)
    assert rejected.retry_after_s == wait
    assert rejected.should_retry is (False if wait is not None and wait > 60 else None)


def test_a_day_long_hint_reaches_callers_clamped_and_without_retry():
    headers = answer_headers(explain(429, error(message="Please retry after 86400 seconds")))
    assert headers["Retry-After"] == "60"
    assert headers["x-should-retry"] == "false"


def test_a_hint_beside_a_hopeless_status_is_not_passed_on():
    assert explain(400, retry_after="5").retry_after_s is None
    assert explain(503, retry_after="5").retry_after_s == 5.0


def test_only_the_headers_that_support_asks_for_are_passed():
    rejected = explain(
        500,
        apim_request_id="a-1",
        x_ms_region="West\r\nEurope",
        x_ms_deployment_name="gpt4o-prod",
        policy_id="DeploymentRatelimit-Token",
    )
    assert rejected.headers == {"apim-request-id": "a-1", "x-ms-region": "West Europe"}
    assert "apim-request-id a-1" in rejected.detail
    assert "policy-id DeploymentRatelimit-Token" in rejected.detail


def test_the_log_line_is_one_short_line_without_tokens():
    said = "line\nbreak eyJhbGciOiJub25lIn0.eyJhIjoxfQ.sig " + "x" * 9000
    detail = explain(500, error(message=said, code="c" * 500)).detail
    assert len(detail) <= 2048
    assert detail.isprintable()
    assert "eyJ" not in detail


@pytest.mark.parametrize(
    ("status", "body", "says_so"),
    [
        (401, TOKEN_REFUSED, True),
        (401, error(code="401", message="Access denied"), True),
        (401, error(code="Unauthorized", message="x"), True),
        (401, error(code="InvalidAuthenticationToken", message="x"), True),
        (401, error(message="x"), True),
        (401, error(code="PermissionDenied", message="The principal lacks …"), False),
        (401, error(code="AuthenticationTypeDisabled", message="x"), False),
        (401, b"", False),
        (401, b"<html>", False),
        (401, b"{}", False),
        (403, TOKEN_REFUSED, False),
        (400, TOKEN_REFUSED, False),
    ],
)
def test_a_refused_token_is_told_from_a_missing_role(status, body, says_so):
    assert azure.refused_token(status, body) is says_so


@pytest.mark.parametrize(
    ("status", "fields", "says_so"),
    [
        (400, {"message": "Unrecognized request argument supplied: stream_options"}, True),
        (400, {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}, True),
        (400, {"message": "nope", "code": "unknown_parameter", "param": "stream_options"}, True),
        (400, {"message": "'stream_options' is not supported with this model."}, True),
        (400, {"message": "Unknown parameter: 'stream_options.include_usage'."}, True),
        (
            400,
            {"message": "Unknown parameter", "param": "stream_options.include_usage"},
            True,
        ),
        (422, {"message": "Extra parameters ['stream_options'] are not allowed"}, True),
        (
            400,
            {
                "message": "Unknown parameter: 'stream_options.include_obfuscation'.",
                "param": "stream_options.include_obfuscation",
            },
            False,
        ),
        (
            400,
            {"message": "The 'stream_options' parameter is only allowed when 'stream' is enabled."},
            False,
        ),
        (400, {"message": "Unrecognized request argument supplied: foo"}, False),
        (400, {"message": "stream_options must be an object", "param": "stream_options"}, False),
        (400, {"message": "unknown: stream_options", "param": "messages"}, False),
        (500, {"message": "Unrecognized request argument supplied: stream_options"}, False),
    ],
)
def test_an_old_api_version_is_recognised_by_its_words(status, fields, says_so):
    assert azure.refused_stream_options(status, error(**fields)) is says_so


EXTRA = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted", "input": {}}


def extra(*path, **more):
    """Pydantic's fault of a field that is not known, as FastAPI lists it."""
    return {**EXTRA, "loc": ["body", *path], **more}


def python_text(*path):
    """The same as vLLM prints it, a tuple for the path."""
    return str([{**EXTRA, "loc": ("body", *path)}])


@pytest.mark.parametrize(
    ("status", "document", "says_so"),
    [
        (422, {"detail": [extra("stream_options")]}, True),
        (422, {"detail": [extra("stream_options", "include_usage")]}, True),
        (422, {"detail": [extra("stream_options", "of_the_caller")]}, False),
        (422, {"detail": [extra("another")]}, False),
        (422, {"detail": [extra("stream_options", msg="Field required")]}, False),
        (422, {"object": "error", "message": {"detail": [extra("stream_options")]}}, True),
        (400, {"object": "error", "message": python_text("stream_options"), "code": 400}, True),
        (400, {"error": {"message": python_text("stream_options"), "code": 400}}, True),
        (400, {"message": python_text("stream_options", "include_usage")}, True),
        (400, {"message": python_text("stream_options", "of_the_caller")}, False),
        (400, {"message": python_text("another")}, False),
        (400, {"message": "Stream options can only be defined when `stream=True`."}, False),
        (401, {"detail": [extra("stream_options")]}, False),
    ],
)
def test_compatible_servers_say_in_other_words_that_they_do_not_know_stream_options(
    status, document, says_so
):
    assert azure.refused_stream_options(status, json.dumps(document).encode()) is says_so


def test_a_list_of_faults_is_told_field_by_field():
    faults_of_two = {
        "detail": [extra("top"), extra("messages", 0, "role", msg="Field required"), 7]
    }
    rejected = explain(422, json.dumps(faults_of_two).encode())
    assert rejected.message == (
        "top: Extra inputs are not permitted; messages.0.role: Field required"
    )
    assert rejected.param == "top"


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_waiting_does_not_fill_an_account(code):
    rejected = explain(429, error(code=code, message="You exceeded it."), retry_after="7")
    assert (rejected.status, rejected.code) == (429, code)
    assert (rejected.should_retry, rejected.retry_after_s) == (False, None)
    assert explain(429, error(code="rate_limit_exceeded"), retry_after="7").should_retry is None


def test_no_caller_takes_our_key_for_its_own():
    rejected = explain(401, error(code="invalid_api_key", message="Incorrect API key provided."))
    assert envelope(rejected)["error"]["code"] == "upstream_error"
    assert "invalid_api_key" in rejected.detail


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"code": "model_not_found", "message": "The model `x` does not exist or you …"}},
        {"error": {"code": 404, "message": "The model `x` does not exist.", "param": "model"}},
        {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError"},
        {"error": {"message": 'model "x" not found, try pulling it first', "type": "api_error"}},
    ],
)
def test_a_missing_model_has_the_code_sdk_users_know_in_whatever_words(document):
    rejected = explain(404, json.dumps(document).encode())
    assert rejected.code == "model_not_found"
    assert rejected.message == "upstream deployment or model not found"


def test_a_missing_path_is_no_missing_model():
    assert explain(404, b'{"detail":"Not Found"}').code is None


def test_an_unreadable_body_says_nothing_about_stream_options():
    assert azure.refused_stream_options(400, b"stream_options unrecognized") is False


@pytest.mark.parametrize("name", sorted(faults.NAMES))
def test_every_error_the_simulator_knows_is_explained_without_our_names(name):
    fault = faults.build(name, faults.Occasion(now=NOW, deployment="gpt4o-prod"))
    headers = {key.lower(): value for key, value in fault.headers}
    rejected = azure.explain(
        fault.status,
        {**headers, "content-type": fault.content_type},
        fault.body,
        deployment=DEPLOYMENT,
    )
    shown = json.dumps(envelope(rejected))
    for ours in ("gpt4o-prod", "acme-west", "azure.com", "Traceback", "callstack"):
        assert ours not in shown
    assert rejected.status == (fault.status if 400 <= fault.status < 500 else 502)
    assert rejected.detail is not None
    assert len(rejected.detail) <= 2048
    assert rejected.type == "upstream_error"
    answer_headers(rejected)


@pytest.mark.parametrize(
    ("name", "refused"), [("token", True), ("token_gov", True), ("rbac", False), ("server", False)]
)
def test_the_simulators_token_errors_are_told_apart(name, refused):
    fault = faults.build(name, faults.Occasion(now=NOW))
    assert azure.refused_token(fault.status, fault.body) is refused


def test_the_simulators_old_api_version_is_recognised():
    fault = faults.build("unrecognized", faults.Occasion(now=NOW))
    assert azure.refused_stream_options(fault.status, fault.body)


header_text = st.text(st.characters(codec="utf-8"))


@given(
    st.integers(100, 700),
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.integers() | st.text() | st.floats(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(
                        ["error", "message", "code", "param", "innererror", "detail", "loc", "msg"]
                    ),
                    inner,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.dictionaries(
        st.sampled_from(
            ["retry-after", "retry-after-ms", "date", "content-type", "apim-request-id"]
        ),
        header_text,
    ),
)
def test_any_answer_can_be_explained(status, body, headers):
    rejected = azure.explain(status, headers, body)
    assert 400 <= rejected.status <= 502
    assert rejected.message
    json.dumps(envelope(rejected))
    answer_headers(rejected)
    azure.refused_token(status, body)
    azure.refused_stream_options(status, body)


@pytest.mark.parametrize("status", [404, 409])
def test_what_azure_says_of_a_caller_s_own_object_is_told(status):
    answer = error(code=None, message="No such File object: file-1", param="id")
    told = refusals.explain(status, JSON, answer, now=0.0, of_object=True)
    assert (told.status, told.param) == (status, "id")
    assert told.message == "No such File object: file-1"
    assert explain(status, answer).message != "No such File object: file-1"
