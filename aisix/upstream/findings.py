"""What a probe of an upstream came to: its answer, read, or why there is none. Pure.

Here is what every dialect needs to make a `Finding` of it. The upstream's own text goes along, on
one line and without anything that looks like a token or a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from aisix.core.ports import Finding
from aisix.core.resources import Deployment
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
from aisix.upstream.refusals import Refusal, read_refusal
from aisix.upstream.scrub import Scrubber, one_line

_MAX_SAID_CHARS = 1024
_AADSTS = re.compile(r"AADSTS(\d{3,8})")

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
