"""What a probe of Azure found out, in an operator's words: what is wrong, and what to do. Pure.

A probe asks a resource for its models, or a deployment for a chat without messages, which Azure
refuses before it does any work: only a request whose address, credential, version and deployment
are right gets so far. Here the answer becomes a `Finding`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from aisix.core.ports import Finding
from aisix.core.resources import Deployment, ResourceKey
from aisix.upstream.address import V1
from aisix.upstream.findings import Answer, Words, read_answer

_ABOUT_VERSION = re.compile(r"\bapi[ -]?versions?\b", re.IGNORECASE)
_ABOUT_TENANT = re.compile(r"\btenant\b", re.IGNORECASE)
_TRAFFIC_DENIED = re.compile(r"virtual network|firewall|public access|private endpoint", re.I)
_BLOCKED = re.compile(r"temporarily blocked|suspended", re.IGNORECASE)

_ROLE = (
    "assign the role Cognitive Services OpenAI User on the resource to the identity; a new "
    "assignment takes some minutes"
)
_WORDS_OF_NO_AZURE = (
    "the answer is not one of Azure OpenAI",
    "check api_base: it must be the resource's endpoint; a proxy on the way may answer instead",
)


def judge_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
) -> Finding:
    """What the answer to the probe of `deployment` means; without a name it is the resource's."""
    answer = read_answer(status, headers, body, deployment=deployment)
    return answer.finding(_judge(answer))


def _judge(answer: Answer) -> Words:
    status = answer.status
    if 300 <= status < 400:
        return (
            "address",
            f"the upstream answered {status}: it sends callers elsewhere, and no redirect is "
            "followed",
            "write the address that it leads to as api_base, if that is Azure OpenAI",
        )
    if status in _BY_STATUS:
        return _BY_STATUS[status](answer)
    if answer.is_good:
        return ("", _all_is_right(answer), "")
    if status >= 500:
        return (
            "upstream",
            f"Azure answered {status}: it fails, whatever is asked of it",
            "try again in a while; if it stays so, Azure's support asks for upstream_request_id",
        )
    if not answer.refusal.readable:
        return ("address", *_WORDS_OF_NO_AZURE)
    return (
        "upstream",
        f"Azure answered {status}, which tells nothing about the settings",
        "read upstream_message",
    )


def _all_is_right(answer: Answer) -> str:
    if answer.of_model:
        return "address, credential, api_version and deployment are right"
    return "address, credential and api_version are right"


def _bad_request(answer: Answer) -> Words:
    refusal = answer.refusal
    if not refusal.readable:
        return ("address", *_WORDS_OF_NO_AZURE)
    if _ABOUT_TENANT.search(refusal.code or ""):
        return (
            "authentication",
            "the token is of another tenant than the resource",
            "use an identity of the resource's own tenant; check tenant_id",
        )
    if _ABOUT_VERSION.search(refusal.message) or "ApiVersion" in (refusal.code or ""):
        return ("version", *_other_version(answer, "Azure does not take this api_version here"))
    if not answer.of_model:
        return (
            "upstream",
            "Azure refuses to list the resource's models",
            "read upstream_message; verify a model instead",
        )
    if refusal.code == "OperationNotSupported":
        return (
            "",
            f"{_all_is_right(answer)}; it is no chat model, so only other operations will work",
            "",
        )
    return ("", f"{_all_is_right(answer)}: Azure refused only the empty request", "")


def _unauthorized(answer: Answer) -> Words:
    credential = answer.deployment.credential
    if answer.refusal.code == "PermissionDenied":
        return ("authentication", "the identity lacks a role on the resource", _ROLE)
    if credential is None or isinstance(credential, ResourceKey):
        return (
            "authentication",
            "Azure refuses the resource key",
            "copy KEY 1 or KEY 2 from the page Keys and Endpoint of this very resource; api_base "
            "must be its endpoint",
        )
    asked = f" (it is {credential.scope})" if credential.scope else ""
    return (
        "authentication",
        "Azure refuses the access token",
        f"the scope must be of the resource's cloud{asked}, and the identity of its tenant",
    )


def _forbidden(answer: Answer) -> Words:
    refusal = answer.refusal
    if refusal.code == "AuthenticationTypeDisabled":
        return (
            "access",
            "the resource takes no keys: key based authentication is disabled",
            "use an Entra ID credential, or enable local authentication on the resource",
        )
    if _TRAFFIC_DENIED.search(refusal.message):
        return (
            "access",
            "the resource's network rules do not let this gateway in",
            "allow the gateway's address or network on the page Networking of the resource, or "
            "reach it by its private endpoint",
        )
    if _BLOCKED.search(refusal.message):
        return (
            "access",
            "the resource has been blocked by Azure",
            "read upstream_message, and the mails to the subscription's owner",
        )
    if not refusal.readable:
        return ("access", "something on the way refuses the call", _WORDS_OF_NO_AZURE[1])
    return ("access", "Azure knows the credential and refuses access", _ROLE)


def _not_found(answer: Answer) -> Words:
    refusal, deployment = answer.refusal, answer.deployment
    if not refusal.readable:
        return ("address", *_WORDS_OF_NO_AZURE)
    if refusal.code == "DeploymentNotFound":
        return (
            "deployment",
            f'the resource has no deployment "{deployment.name}"',
            "write the name of the deployment as model_name, not that of the underlying model; a "
            "new deployment takes up to 5 minutes",
        )
    return ("version", *_other_version(answer, "Azure does not know this path"))


def _other_version(answer: Answer, message: str) -> tuple[str, str]:
    version = answer.deployment.api_version
    other = "a dated one" if version == V1 else 'a newer date, or "v1"'
    fix = f'api_version is "{version}"; write one that the resource has, such as {other}'
    return (message, f"{fix}, and check that api_base is the resource's endpoint")


def _throttled(answer: Answer) -> Words:
    return (
        "limits",
        "Azure lets the call in and throttles it: its quota is used up, or it has no capacity",
        "wait, or raise the deployment's tokens per minute; address and credential are right",
    )


_BY_STATUS: Mapping[int, Callable[[Answer], Words]] = {
    400: _bad_request,
    401: _unauthorized,
    403: _forbidden,
    404: _not_found,
    429: _throttled,
}
