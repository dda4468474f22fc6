"""Every error answer the simulator can give, as one table, with the headers that come along.

The shapes are those seen from the real service: with and without the `error` wrapper, codes that
are numbers, words or sentences, `innererror` beside `inner_error`, HTML from the front door, empty
bodies, hints that stand only in the text. `CATALOGUE` maps the name after `err-` to a builder;
`BY_STATUS` says which one a bare status means. Pure: the clock comes in with `Occasion`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from aisix.simulator.answers import choice_filter, prompt_filter
from aisix.simulator.script import NORMAL, Script

JSON_TYPE = "application/json"
HTML_TYPE = "text/html"
AUDIO_LIMIT_BYTES = 25 * 1024 * 1024
_HUGE_BYTES = 1024 * 1024
_DEFAULT_RETRY_S = 2
_DAY_S = 86_400

_PUBLIC_AUDIENCE = "https://cognitiveservices.azure.com"
_GOV_AUDIENCE = "https://cognitiveservices.azure.us/ or https://ai.azure.us/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What an error text may mention about the request that met it."""

    now: float = 0.0
    request_id: str = "00000000-0000-0000-0000-000000000000"
    operation: str = "ChatCompletions_Create"
    api_version: str = "2024-10-21"
    deployment: str = "deployment"
    script: Script = NORMAL


@dataclass(frozen=True, slots=True)
class Fault:
    """One error answer."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


Builder = Callable[[Occasion], Fault]


def _json(status: int, value: object, *headers: tuple[str, str]) -> Fault:
    return Fault(status, json.dumps(value).encode(), JSON_TYPE, headers)


def wrapped(
    status: int,
    code: str | int | None,
    message: str,
    /,
    *headers: tuple[str, str],
    **more: Any,
) -> Fault:
    """The usual envelope `{"error":{code,message,…}}`."""
    return _json(status, {"error": {"code": code, "message": message, **more}}, *headers)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Fault:
    """A 400 in the model's own voice: message, type, param, code."""
    return wrapped(400, code, message, param=param, type="invalid_request_error")


def missing(param: str) -> Fault:
    """A 400 of a parameter that is not there, as the newer operations say it."""
    message = f"Missing required parameter: '{param}'."
    return invalid(message, param=param, code="missing_required_parameter")


def unacceptable(param: str, value: object, *allowed: object) -> Fault:
    """A 400 of a value that is not one of those there are."""
    choice = ", ".join(f"'{each}'" for each in allowed)
    message = f"Invalid value: '{value}'. Supported values are: {choice}."
    return invalid(message, param=param, code="invalid_value")


def wrong_type(param: str, expected: str) -> Fault:
    """A 400 of a value of the wrong type."""
    message = f"Invalid type for '{param}': expected {expected}."
    return invalid(message, param=param, code="invalid_type")


def content_too_large(limit_bytes: int, read_bytes: int) -> Fault:
    """413 of a body over a limit."""
    message = f"Maximum content size limit ({limit_bytes}) exceeded ({read_bytes} bytes read)"
    return wrapped(413, None, message, param=None, type="server_error")


def not_found(message: str) -> Fault:
    """404 of something that is not kept here."""
    return wrapped(404, None, message, param=None, type="invalid_request_error")


def _bare(status: int, message: str) -> Fault:
    return _json(status, {"statusCode": status, "message": message})


def _html(status: int, title: str) -> Fault:
    page = (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {title}</h1></center>\r\n"
        "<hr><center>Microsoft-Azure-Application-Gateway/v2</center>\r\n</body>\r\n</html>\r\n"
    )
    return Fault(status, page.encode(), HTML_TYPE)


def _empty(status: int) -> Fault:
    return Fault(status, b"", JSON_TYPE)


# --- 401, 403, 404 ------------------------------------------------------------------------------


def bad_key(code: str = "401") -> Fault:
    """401 for a key that is not one of the resource's."""
    return wrapped(
        401,
        code,
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide "
        "a valid key for an active subscription and use a correct regional API endpoint for your "
        "resource.",
    )


def bad_token(audience: str = _PUBLIC_AUDIENCE) -> Fault:
    """401 for a token that is bad, old or meant for someone else: no `error` wrapper."""
    return _bare(
        401,
        "Unauthorized. Access token is missing, invalid, audience is incorrect "
        f"({audience}), or have expired.",
    )


def no_credentials() -> Fault:
    """401 without any credentials: no `error` wrapper either."""
    return _bare(
        401,
        "Access denied due to a missing application credentials or subscription key. Make sure to "
        "provide a valid key for an active subscription.",
    )


def _rbac(_: Occasion) -> Fault:
    return wrapped(
        401,
        "PermissionDenied",
        "The principal `00000000-0000-0000-0000-000000000001` lacks the required data action "
        "`Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action` to "
        "perform `POST /openai/deployments/{deployment-id}/chat/completions` operation.",
    )


def _tenant(_: Occasion) -> Fault:
    return wrapped(
        400,
        "Tenant provided in token does not match resource token",
        "Token tenant 00000000-0000-0000-0000-000000000002 does not match resource tenant.",
    )


def key_disabled() -> Fault:
    """403 of a resource that takes tokens only."""
    return wrapped(
        403, "AuthenticationTypeDisabled", "Key based authentication is disabled for this resource."
    )


def _firewall(_: Occasion) -> Fault:
    return wrapped(
        403,
        "403",
        "Access denied due to Virtual Network/Firewall rules.",
        ("policy-id", "ThrowExceptionDueToTrafficDenied"),
    )


def deployment_not_found() -> Fault:
    """404 of a deployment that the resource does not have."""
    return wrapped(
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. If you created the deployment within "
        "the last 5 minutes, please wait a moment and try again.",
    )


def resource_not_found() -> Fault:
    """404 for a path, operation or api-version that is not known."""
    return wrapped(404, "404", "Resource not found")


# --- 400 ----------------------------------------------------------------------------------------

_FILTER_MESSAGE = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management "
    "policy. Please modify your prompt and retry. To learn more about our content filtering "
    "policies please read our documentation: https://go.microsoft.com/fwlink/?linkid=2198766"
)


def _content_filter(occasion: Occasion, **inner: Any) -> Fault:
    return wrapped(
        400, "content_filter", _FILTER_MESSAGE, param="prompt", status=400, type=None, **inner
    )


def _content_filter_wire(occasion: Occasion) -> Fault:
    results = prompt_filter(filtered="violence")
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": results}
    return _content_filter(occasion, innererror=inner)


def _content_filter_spec(occasion: Occasion) -> Fault:
    results = prompt_filter(filtered="violence")
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_results": results}
    return _content_filter(occasion, inner_error=inner)


def content_policy() -> Fault:
    """400 of a prompt or picture that the image filter refuses."""
    results = choice_filter(filtered="violence")
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_results": results}
    return wrapped(
        400,
        "content_policy_violation",
        "Your request was rejected as a result of our safety system. Your prompt may contain text "
        "that is not allowed by our safety system.",
        inner_error=inner,
        type="invalid_request_error",
    )


def context_length(limit: int, wanted: int) -> Fault:
    """400 of a prompt that does not fit the model."""
    return invalid(
        f"This model's maximum context length is {limit} tokens. However, your messages resulted "
        f"in {wanted} tokens. Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


def unsupported(param: str, instead: str | None = None) -> Fault:
    """400 of a parameter that this model does not take."""
    advice = f" Use '{instead}' instead." if instead else ""
    message = f"Unsupported parameter: '{param}' is not supported with this model.{advice}"
    return invalid(message, param=param, code="unsupported_parameter")


def unrecognized(argument: str) -> Fault:
    """400 of an argument that this api-version does not know."""
    return invalid(f"Unrecognized request argument supplied: {argument}")


def _callstack(_: Occasion) -> Fault:
    stack = (
        "Traceback (most recent call last):\n"
        '  File "/usr/local/lib/python3.11/site-packages/inference_server/routes.py", line 227, '
        "in chat_completions\n    await self.model.infer(request)\n"
    )
    return wrapped(400, "BadRequest", "The request could not be processed.", callstack=stack)


def _data_sources(_: Occasion) -> Fault:
    message = (
        "An error occurred when calling Azure OpenAI: Server responded with status 429. Error "
        "message: {'error': {'code': '429', 'message': 'Rate limit is exceeded. Try again in "
        "2 seconds.'}}"
    )
    error = {"requestid": "00000000-0000-0000-0000-000000000003", "code": 400, "message": message}
    return _json(400, {"error": error})


# --- as OpenAI and vLLM say it ------------------------------------------------------------------


def no_api_key() -> Fault:
    """401 without a key."""
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
    )
    return wrapped(401, None, message, type="invalid_request_error", param=None)


def invalid_api_key(key: str) -> Fault:
    """401 of a key that is not known; the middle of it is masked."""
    message = (
        f"Incorrect API key provided: {key[:4]}{'*' * 20}{key[-4:]}. You can find your API key at "
        "https://platform.openai.com/account/api-keys."
    )
    return wrapped(401, "invalid_api_key", message, type="invalid_request_error", param=None)


def model_not_found(name: str) -> Fault:
    """404 of a model that is not there."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return wrapped(404, "model_not_found", message, type="invalid_request_error", param=None)


def unknown_url(method: str, path: str) -> Fault:
    """404 of an operation that is not there."""
    message = f"Unknown request URL: {method} {path}. Please check the URL for typos."
    return wrapped(404, "unknown_url", message, type="invalid_request_error", param=None)


def extra_forbidden(field: str, value: object) -> Fault:
    """400 of a field that a server built on pydantic does not know: a list printed as text, and
    numbers as codes."""
    said = {
        "type": "extra_forbidden",
        "loc": ("body", field),
        "msg": "Extra inputs are not permitted",
        "input": value,
    }
    refusal = {"message": str([said]), "type": "BadRequestError", "param": None, "code": 400}
    return _json(400, {"object": "error", **refusal})


def _insufficient_quota(_: Occasion) -> Fault:
    return wrapped(
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        type="insufficient_quota",
        param=None,
    )


# --- 429 ----------------------------------------------------------------------------------------


def _retry(occasion: Occasion, default: int | None) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Seconds for the text, and the hint headers the script asks for."""
    script = occasion.script
    seconds = script.retry
    milliseconds = script.retryms if script.retryms is not None else script.retryxms
    if seconds is None and milliseconds is not None:
        seconds = -(-milliseconds // 1000)
    if seconds is None:
        seconds = script.retrydate
    text_s = seconds if seconds is not None else (default or _DEFAULT_RETRY_S)
    headers: list[tuple[str, str]] = []
    if script.noretry:
        return text_s, ()
    if script.retryxms is not None:
        headers.append(("x-ms-retry-after-ms", str(script.retryxms)))
    if script.retryms is not None:
        headers.append(("retry-after-ms", str(script.retryms)))
    if script.retrydate is not None:
        date = formatdate(occasion.now + script.retrydate, usegmt=True)
        headers.append(("retry-after", date))
    elif script.retry is not None:
        headers.append(("retry-after", str(script.retry)))
    elif milliseconds is None and default is not None:
        headers.append(("retry-after", str(default)))
    return text_s, tuple(headers)


def hints(occasion: Occasion, default_s: int = _DEFAULT_RETRY_S) -> tuple[tuple[str, str], ...]:
    """The headers that say when to come again."""
    return _retry(occasion, default_s)[1]


def _quota(what: str, default: int = _DEFAULT_RETRY_S) -> Builder:
    def build(occasion: Occasion) -> Fault:
        seconds, headers = _retry(occasion, default)
        message = (
            f"Requests to the {occasion.operation} Operation under Azure OpenAI API version "
            f"{occasion.api_version} have exceeded {what} rate limit of your current OpenAI S0 "
            f"pricing tier. Please retry after {seconds} seconds. Please go here: "
            "https://aka.ms/oai/quotaincrease if you would like to further increase the default "
            "rate limit."
        )
        policy = ("policy-id", "DeploymentRatelimit-Token" if what == "token" else "")
        extra = (policy,) if policy[1] else ()
        return wrapped(429, "429", message, *headers, *extra)

    return build


def _busy(status: int, message: str, default: int | None, code: str | None = None) -> Builder:
    """A message with `{s}` where the seconds stand."""

    def build(occasion: Occasion) -> Fault:
        seconds, headers = _retry(occasion, default)
        return wrapped(status, code or str(status), message.format(s=seconds), *headers)

    return build


def _ptu(occasion: Occasion) -> Fault:
    _, headers = _retry(occasion, None)
    hints = headers or (("retry-after-ms", "1500"), ("retry-after", "2"))
    if occasion.script.noretry:
        hints = ()
    used = ("azure-openai-deployment-utilization", "102.5%")
    return wrapped(
        429, "429", "The deployment's provisioned throughput is fully used.", *hints, used
    )


# --- 5xx and others -----------------------------------------------------------------------------


def _server_error(occasion: Occasion) -> Fault:
    return wrapped(
        500,
        None,
        "The server had an error processing your request. Sorry about that! You can retry your "
        "request, or contact us through an Azure support request at: "
        "https://go.microsoft.com/fwlink/?linkid=2213926 if you keep seeing this error. (Please "
        f"include the request ID {occasion.request_id} in your email.)",
        param=None,
        type="server_error",
    )


def _huge(_: Occasion) -> Fault:
    return wrapped(500, "InternalServerError", "x" * _HUGE_BYTES)


def _too_large(_: Occasion) -> Fault:
    return content_too_large(AUDIO_LIMIT_BYTES, AUDIO_LIMIT_BYTES + 1)


def _redirect(_: Occasion) -> Fault:
    location = ("location", "https://login.example.invalid/elsewhere")
    return Fault(302, b"", HTML_TYPE, (location,))


def _always(fault: Callable[[], Fault]) -> Builder:
    return lambda _: fault()


def _plain(status: int, code: str | None, message: str) -> Builder:
    return lambda _: wrapped(status, code, message)


def _quoted(fault: Fault) -> Builder:
    return lambda _: fault


CATALOGUE: dict[str, tuple[str, Builder]] = {
    # name → (what it is, builder)
    "key": ("401 bad key, code 401", _always(bad_key)),
    "key_named": ("401 bad key, code Unauthorized", lambda _: bad_key("Unauthorized")),
    "token": ("401 bad or expired token, no error wrapper", _always(bad_token)),
    "token_gov": ("401 bad token, the Government text", lambda _: bad_token(_GOV_AUDIENCE)),
    "credentials": ("401 no credentials, no error wrapper", _always(no_credentials)),
    "rbac": ("401 PermissionDenied: a role is missing", _rbac),
    "tenant": ("400 the token's tenant is not the resource's", _tenant),
    "key_disabled": ("403 keys are switched off", _always(key_disabled)),
    "firewall": ("403 network rules, with policy-id", _firewall),
    "vnet": (
        "403 virtual network",
        _plain(
            403,
            "AccessDenied",
            "A Virtual Network is configured for this resource. Please use the correct endpoint "
            "for making requests.",
        ),
    ),
    "private": (
        "403 public access off",
        _plain(403, "403", "Public access is disabled. Please configure private endpoint."),
    ),
    "suspended": (
        "403 resource blocked",
        _plain(
            403, "403", "Your resource has been temporarily blocked because of unusual behavior."
        ),
    ),
    "deployment": ("404 DeploymentNotFound", _always(deployment_not_found)),
    "resource": ("404 Resource not found", _always(resource_not_found)),
    "content_filter": ("400 prompt filtered, as on the wire", _content_filter_wire),
    "content_filter_spec": ("400 prompt filtered, as the document spells it", _content_filter_spec),
    "content_filter_bare": ("400 prompt filtered, no inner error", _content_filter),
    "content_policy": ("400 prompt filtered, as images say it", _always(content_policy)),
    "context": ("400 context_length_exceeded", lambda _: context_length(128_000, 130_001)),
    "parameter": (
        "400 unsupported_parameter",
        lambda _: unsupported("max_tokens", "max_completion_tokens"),
    ),
    "unrecognized": ("400 unknown argument", lambda _: unrecognized("stream_options")),
    "callstack": ("400 with a leaked python callstack", _callstack),
    "data_sources": ("400 with a number as code and a 429 inside", _data_sources),
    "timeout": ("408 Timeout", _plain(408, "Timeout", "The operation was timeout.")),
    "conflict": ("409", _plain(409, "Conflict", "The resource is being changed. Try again.")),
    "too_large": ("413 as audio says it", _too_large),
    "tokens_limit": (
        "413 tokens_limit_reached",
        _plain(413, "tokens_limit_reached", "Request body too large. Max size: 8192 tokens."),
    ),
    "unprocessable": ("422", _plain(422, "Unprocessable", "The input could not be processed.")),
    "dependency": ("424", _plain(424, "FailedDependency", "A dependency of the model failed.")),
    "tokens": ("429 token quota", _quota("token")),
    "calls": ("429 call quota", _quota("call")),
    "day": ("429 token quota, retry after a day", _quota("token", _DAY_S)),
    "short": ("429 short form", _busy(429, "Rate limit is exceeded. Try again in {s} seconds.", 2)),
    "capacity": (
        "429 no capacity (not your quota)",
        _busy(
            429,
            "The system is currently experiencing high demand and cannot process your request. "
            "Your request exceeds the maximum usage size allowed during peak load. Please retry "
            "after {s} seconds.",
            20,
        ),
    ),
    "quota": ("429 the account is exhausted, as OpenAI says it", _insufficient_quota),
    "unavailable": (
        "429 temporarily unable",
        _busy(429, "The service is temporarily unable to process your request.", None),
    ),
    "ptu": ("429 provisioned throughput used up", _ptu),
    "headers": (
        "431 too many custom headers",
        _plain(431, "431", "Request header fields too large: at most 10 custom headers."),
    ),
    "server": ("500 server_error", _server_error),
    "huge": ("500 with a body of 1 MiB", _huge),
    "empty500": ("500 without a body", _quoted(_empty(500))),
    "html500": ("500 HTML", _quoted(_html(500, "Internal Server Error"))),
    "bad_gateway": ("502", _plain(502, "BadGateway", "The backend did not answer.")),
    "html502": ("502 HTML from the front door", _quoted(_html(502, "Bad Gateway"))),
    "overloaded": (
        "503",
        _busy(503, "The service is temporarily unavailable.", 5, code="ServiceUnavailable"),
    ),
    "html503": ("503 HTML from the front door", _quoted(_html(503, "Service Unavailable"))),
    "gateway_timeout": ("504", _plain(504, "GatewayTimeout", "The backend took too long.")),
    "html504": ("504 HTML from the front door", _quoted(_html(504, "Gateway Time-out"))),
    "html200": ("200 with an HTML page", _quoted(_html(200, "OK"))),
    "empty200": ("200 without a body", _quoted(_empty(200))),
    "badjson": ("200 with broken JSON", _quoted(Fault(200, b'{"id":"chatcmpl-broken","cho'))),
    "redirect": ("302 elsewhere", _redirect),
}

NAMES = frozenset(CATALOGUE)

BY_STATUS: dict[int, str] = {
    302: "redirect",
    400: "parameter",
    401: "key",
    403: "firewall",
    404: "deployment",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    422: "unprocessable",
    424: "dependency",
    429: "tokens",
    431: "headers",
    500: "server",
    502: "bad_gateway",
    503: "overloaded",
    504: "gateway_timeout",
}


def build(name: str, occasion: Occasion) -> Fault:
    """The fault of a catalogue name or of a status; a status without an entry gets plain words."""
    if name.isdecimal():
        status = int(name)
        known = BY_STATUS.get(status)
        if known is None:
            return wrapped(status, name, f"The simulator was told to answer {status}.")
        name = known
    if name not in CATALOGUE:  # an error of the token endpoint, asked of the other one
        return wrapped(500, name, f"{name} is an error of the token endpoint.")
    fault = CATALOGUE[name][1](occasion)
    if any("retry-after" in header for header, _ in fault.headers):
        return fault
    _, hints = _retry(occasion, None)  # a script may ask for hints on any error
    return dataclasses.replace(fault, headers=(*fault.headers, *hints))


def late_failure(occasion: Occasion) -> dict[str, Any]:
    """What a failure inside a 200 stream says; the script's error, or `server`."""
    fault = build(occasion.script.err or "server", occasion)
    try:
        said: dict[str, Any] = json.loads(fault.body)
    except ValueError:  # an HTML, empty or broken body cannot stand in an event
        return {"error": {"code": str(fault.status), "message": "The stream failed."}}
    return said


def stream_error(occasion: Occasion) -> bytes:
    """The event of such a failure in most streams: `data: {"error":…}`."""
    text = json.dumps(late_failure(occasion), separators=(",", ":"))
    return f"data: {text}\n\n".encode()
