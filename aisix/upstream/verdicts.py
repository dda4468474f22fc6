"""What a probe found out, in an operator's words: what is wrong, and what to do about it. Pure.

A probe asks a resource for its models, or a deployment for a chat without messages, which Azure
refuses before it does any work: only a request whose address, credential, version and deployment
are right gets so far. Here the answer, or the failure to get one, becomes a `Finding`. Azure's own
text goes along, on one line and without anything that looks like a token or a key. A failure to get
an answer, and the reading of one, are the same for every dialect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aisix.core.ports import Finding
from aisix.core.resources import Deployment, ResourceKey
from aisix.errors import (
    CredentialRefused,
    CredentialUnavailable,
    CredentialUnusable,
    UpstreamBroken,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.upstream.address import V1
from aisix.upstream.refusals import Refusal, read_refusal
from aisix.upstream.scrub import Scrubber, one_line

_MAX_SAID_CHARS = 1024
_AADSTS = re.compile(r"AADSTS(\d{3,8})")
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


# ── an answer ───────────────────────────────────────────────────────────────────────────────────

Words = tuple[str, str, str]
"""What is at fault, what was found, what to do."""


class Answer(NamedTuple):
    """What came back, read. `said` is the upstream's own text."""

    status: int
    refusal: Refusal
    deployment: Deployment
    said: str
    is_good: bool
    """A success in JSON; it may be cut off, as the list of models is long."""

    @property
    def of_model(self) -> bool:
        """Whether a deployment was asked, and not the resource alone."""
        return bool(self.deployment.name)

    def finding(self, words: Words) -> Finding:
        """What was found, with what the upstream said."""
        stage, message, fix = words
        return Finding(stage, message, fix, said=self.said)


def judge_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
) -> Finding:
    """What the answer to the probe of `deployment` means; without a name it is the resource's."""
    answer = read_answer(status, headers, body, deployment=deployment)
    return answer.finding(_judge(answer))


def read_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
) -> Answer:
    """What an answer says, on one line and without anything that looks like a token or a key."""
    kind = headers.get("content-type", "")
    refusal = read_refusal(body, kind)
    is_good = status < 300 and "json" in kind and body.lstrip().startswith(b"{")
    said = "" if status < 300 else refusal.message
    if status >= 300 and not refusal.readable:
        said = body[:_MAX_SAID_CHARS].decode("utf-8", "replace")
    said = Scrubber.for_log(one_line(said, _MAX_SAID_CHARS))
    return Answer(status, refusal, deployment, said, is_good)


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


# ── no answer ───────────────────────────────────────────────────────────────────────────────────


def judge_failure(error: UpstreamFailed) -> Finding:
    """Why there is no answer: the way to a token, or the way to the upstream."""
    said = Scrubber.for_log(one_line(error.detail or "", _MAX_SAID_CHARS))
    if isinstance(error, CredentialRefused | CredentialUnavailable):
        return Finding("credential", error.message, _credential_fix(error), said=said)
    if isinstance(error, CredentialUnusable):
        return Finding("credential", error.message, "write the provider key's secret again")
    if isinstance(error, UpstreamMisconfigured):
        return Finding("settings", error.message, "write the named setting again", said=said)
    if isinstance(error, UpstreamTimeout):
        return Finding("network", *_timeout_words(error), said=said)
    if isinstance(error, UpstreamUnreachable) and error.reason in _UNREACHABLE:
        stage, message, fix = _UNREACHABLE[error.reason]
        return Finding(stage, message, fix, said=said)
    if isinstance(error, UpstreamBroken) and error.kind == "decode":
        return Finding(
            "address",
            error.message,
            "check api_base: it must be the upstream's endpoint; a proxy on the way may answer "
            "instead",
            said=said,
        )
    return Finding(
        "network", error.message, "check the network between gateway and api_base", said=said
    )


_UNREACHABLE: Mapping[str, Words] = {
    "dns": (
        "network",
        "the host name of api_base does not resolve",
        "check its spelling: an Azure resource is <name>.openai.azure.com; for a private endpoint, "
        "the gateway needs the private DNS zone",
    ),
    "connect": (
        "network",
        "nobody takes connections at the address of api_base",
        "check host and port of api_base, and firewalls on the way",
    ),
    "unanswered": (
        "network",
        "the connection was closed before an answer came",
        "check that api_base begins with https:// if the upstream speaks TLS, and what stands on "
        "the way",
    ),
    "tls_untrusted": (
        "tls",
        "the upstream's certificate comes from an authority that the gateway does not trust",
        "name the authority's certificate in upstream.tls.ca_file; a proxy that breaks TLS open "
        "has one of its own",
    ),
    "tls_time": (
        "tls",
        "the upstream's certificate has expired, or is not valid yet",
        "renew it, if the upstream is yours; check the gateway's clock",
    ),
    "tls_host": (
        "tls",
        "the upstream's certificate is for another host than api_base names",
        "write the name in the certificate as api_base; behind a private endpoint keep the "
        "resource's own name and let DNS, or upstream.connect_to, lead to the address",
    ),
    "tls_ca_file": (
        "tls",
        "the file of upstream.tls.ca_file cannot be used, so nobody is trusted",
        "check that the file exists, is readable and holds PEM certificates",
    ),
    "tls": (
        "tls",
        "the TLS handshake failed",
        "check that api_base is https where TLS is spoken, and that both sides know TLS 1.2",
    ),
}


def _timeout_words(error: UpstreamTimeout) -> tuple[str, str]:
    if error.phase == "connect":
        return (
            "no connection within the time for it: packets to api_base are lost, or its TLS "
            "handshake hangs",
            "check firewalls and routes on the way; a private endpoint is reached from its "
            "network only",
        )
    return (
        "connected, but no answer came in time",
        "check what stands between the gateway and the upstream; try again",
    )


_CREDENTIAL_FIXES: Mapping[str, str] = {
    "7000215": "write the client secret's value, not its ID, or make a new one",
    "7000222": "the client secret has expired: make a new one and write it",
    "700016": "there is no such app in the tenant: check client_id and tenant_id",
    "90002": "there is no such tenant: check tenant_id, and authority_host for its cloud",
    "500011": "the scope names no resource of this cloud: check scope and authority_host",
    "1002012": "the scope must be one resource followed by /.default",
    "700027": "upload the certificate to the app registration, or write the registered one",
    "700024": "the signature was out of its time: check the gateway's clock",
    "700213": "check issuer, subject and audience of the app's federated credential",
    "70021": "check issuer, subject and audience of the app's federated credential",
}


def _credential_fix(error: CredentialRefused | CredentialUnavailable) -> str:
    number = _AADSTS.search(error.message)
    if number is not None:
        return _CREDENTIAL_FIXES.get(
            number[1], "read upstream_message, and Microsoft's page on this number"
        )
    managed = "managed identity endpoint" in error.message
    if isinstance(error, CredentialRefused):
        if managed:
            return "assign the identity to the host, or correct the name in the secret"
        return "read upstream_message; correct the secret or the environment"
    where = "does the gateway run in Azure, and" if managed else "is authority_host right, and"
    return f"{where} does the network let the gateway there? It is asked again within a minute"
