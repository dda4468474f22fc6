"""Asks for Entra ID tokens, with every kind of credential: the only module that uses
azure-identity. I/O by a port, the environment, and the federated token file.

azure-identity speaks to the token authority and to the managed identity endpoint, through a
transport of ours built on core.ports.Transport: so the calls obey the gateway's TLS settings,
aiohttp is not needed, and an `http://` authority works although the library demands https (the
scheme is restored on the way out). The kind is always the one that the operator named: nothing is
probed. When to fetch is decided in `tokens`; azure-identity's own cache and retries are not used,
because it can neither be forced to fetch nor share a fetch. Invariant: no secret, token or text of
the authority is in a message for callers; its text goes to the log, without the secret.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, urlencode, urlsplit

from azure.core.credentials_async import AsyncSupportsTokenInfo
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AsyncHttpResponse, AsyncHttpTransport
from azure.core.rest import HttpRequest
from azure.core.utils import CaseInsensitiveDict
from azure.identity.aio import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
)

from aisix.core.ports import Deadlines, Route, Transport, UpstreamCall, UpstreamTarget
from aisix.core.resources import (
    ClientCertificate,
    ClientSecret,
    ManagedIdentity,
    TokenCredential,
    WorkloadIdentity,
)
from aisix.errors import FieldError, UpstreamFailed
from aisix.upstream.scrub import Scrubber, one_line
from aisix.upstream.secret import check_identifiers, parse_authority, scope_of
from aisix.upstream.tokens import FetchFailed, Grant

_MAX_ANSWER_BYTES = 256 * 1024
_MAX_ASSERTION_BYTES = 64 * 1024
_MAX_DETAIL_CHARS = 1024
_AADSTS = re.compile(r"AADSTS\d{3,8}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_FAILED = "upstream authentication failed"
_AUTHORITY = "token authority"
_ENDPOINT = "managed identity endpoint"


class _Unreadable(Exception):
    """An answer that azure-identity took for a token and that is none."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Who is asked for one token: azure-identity's credential, and what it needs of us."""

    entra: AsyncSupportsTokenInfo
    scope: str
    secrets: tuple[str, ...] = ()


class Authority:
    """Fetches one token from the place that a credential names.

    `deadline_s` is for one whole fetch, connection included. `environment` is where a workload
    identity finds what its credential leaves out; managed identities are found by azure-identity,
    in the process's own.
    """

    def __init__(
        self,
        transport: Transport,
        deadline_s: float,
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._transport = transport
        self._deadline_s = deadline_s
        self._environment = environment

    async def fetch(self, credential: TokenCredential) -> Grant:
        """One token, without a second try. Raises FetchFailed."""
        if isinstance(credential, WorkloadIdentity):
            credential = _completed(credential, self._environment)
        wire = _Wire(self._transport, credential, self._deadline_s)
        secrets = list(credential.secrets)
        try:
            async with asyncio.timeout(self._deadline_s):
                # in a thread: it reads the assertion's file, or opens a private key
                source = await asyncio.to_thread(_open, credential, wire)
                secrets += source.secrets
                return await _ask(source, wire)
        except FetchFailed:
            raise
        except TimeoutError:
            raise _unreachable(f"no answer within {self._deadline_s:g} s", wire.who) from None
        except Exception as error:  # the library raises whatever its reading of an answer meets
            if wire.failure is not None:  # which it may have wrapped in an error of its own
                raise _unreachable(_told(wire.failure), wire.who) from wire.failure
            raise _judge(error, wire, secrets) from None


def _told(failure: UpstreamFailed) -> str:
    return f"{failure.message}: {failure.detail or ''}"


# ── azure-identity's credential for each kind ───────────────────────────────────────────────────

# A new object for each fetch costs 0.1 ms (1.27), a certificate's some more, and is the one public
# way to be sure that azure-identity asks instead of answering from its cache.


def _open(credential: TokenCredential, wire: _Wire) -> _Source:
    if isinstance(credential, ManagedIdentity):
        return _Source(_managed(credential, wire), credential.scope)
    options: dict[str, Any] = {"authority": wire.library_authority, **wire.options}
    if isinstance(credential, ClientSecret):
        secret = credential.client_secret
        return _Source(
            ClientSecretCredential(credential.tenant_id, credential.client_id, secret, **options),
            credential.scope,
        )
    if isinstance(credential, ClientCertificate):
        return _Source(_certified(credential, options), credential.scope)
    # not the library's WorkloadIdentityCredential: that reads the file on the event loop
    assertion = _assertion(credential.token_file or "")
    entra = ClientAssertionCredential(
        credential.tenant_id or "", credential.client_id or "", lambda: assertion, **options
    )
    return _Source(entra, credential.scope or "", secrets=(assertion,))


def _certified(credential: ClientCertificate, options: dict[str, Any]) -> CertificateCredential:
    try:
        return CertificateCredential(
            credential.tenant_id,
            credential.client_id,
            certificate_data=credential.certificate.encode(),
            password=credential.password,
            **options,
        )
    except Exception as error:  # cryptography raises various kinds for a key that cannot be opened
        raise _unusable(
            "the client certificate cannot be used; write it again", type(error).__name__
        ) from None


def _managed(credential: ManagedIdentity, wire: _Wire) -> ManagedIdentityCredential:
    name, value = credential.identity_kind, credential.identity
    which: dict[str, Any] = {}
    if name == "client_id":
        which["client_id"] = value
    elif name:
        which["identity_config"] = {_parameter(name): value}
    try:
        return ManagedIdentityCredential(
            **which,
            # in an AKS pod it would become a workload identity, which is another kind here; there
            # is no public way to say so (azure-identity 1.27)
            _exclude_workload_identity_credential=True,
            **wire.options,
        )
    except ValueError as error:  # Cloud Shell takes no user-assigned identity
        raise _unusable("this host cannot give the identity that is named", str(error)) from None


def _parameter(name: str) -> str:
    """How the endpoint of this environment calls it: for a resource id azure-identity (1.27, aio)
    translates for Azure Arc only, and the others would ignore the name and give the
    system-assigned identity."""
    if name != "resource_id":
        return name
    if not os.environ.get("IDENTITY_ENDPOINT"):
        return "msi_res_id"
    return "mi_res_id" if os.environ.get("IDENTITY_HEADER") else name


def _completed(credential: WorkloadIdentity, environment: Mapping[str, str]) -> WorkloadIdentity:
    """With what the environment adds, as it is now. Raises FetchFailed."""
    found = {
        "tenant_id": (credential.tenant_id, "AZURE_TENANT_ID"),
        "client_id": (credential.client_id, "AZURE_CLIENT_ID"),
        "token_file": (credential.token_file, "AZURE_FEDERATED_TOKEN_FILE"),
    }
    values = {
        name: given or environment.get(variable, "").strip()
        for name, (given, variable) in found.items()
    }
    missing = [f"{name} (or {found[name][1]})" for name, value in values.items() if not value]
    if missing:
        raise _unusable(
            f"workload identity lacks {', '.join(missing)}",
            "write the fields into the secret, or run the gateway in a pod labelled "
            'azure.workload.identity/use: "true", whose service account is annotated with the '
            "client id: the webhook then sets these environment variables",
        )
    try:
        check_identifiers(values["tenant_id"], values["client_id"])
        authority, host = parse_authority(
            credential.authority or environment.get("AZURE_AUTHORITY_HOST") or None,
            "AZURE_AUTHORITY_HOST",
        )
    except FieldError as error:
        raise _unusable("the environment of the workload identity is wrong", str(error)) from None
    return WorkloadIdentity(**values, authority=authority, scope=credential.scope or scope_of(host))


def _assertion(path: str) -> str:
    """The federated token as it is on the disk now: Kubernetes changes it. Raises FetchFailed."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_ASSERTION_BYTES).decode("ascii", "replace").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise _unusable(
            "the federated token file cannot be read", f"token_file {path}: {reason}"
        ) from None
    if not _TOKEN.fullmatch(text):
        raise _unusable(
            "the federated token file holds no token",
            f"token_file {path} must hold one service account token and nothing else",
        )
    return text


# ── one question and its answer ─────────────────────────────────────────────────────────────────


async def _ask(source: _Source, wire: _Wire) -> Grant:
    async with source.entra as entra:
        granted = await entra.get_token_info(source.scope)
    if wire.status != 200:
        raise _Unreadable("a token in an answer that is no success")
    now = time.time()  # not our clock: the library counts expiry from this one
    if not _TOKEN.fullmatch(granted.token) or granted.expires_on - now < 1:
        raise _Unreadable("the token is empty, expired or not printable")
    return Grant(
        token=granted.token,
        lifetime_s=granted.expires_on - now,
        refresh_in_s=None if granted.refresh_on is None else granted.refresh_on - now,
    )


def _unusable(reason: str, detail: str) -> FetchFailed:
    """What the operator wrote cannot even be tried."""
    text = f"{_FAILED}: {reason}"
    return FetchFailed(
        text, refused=True, detail=one_line(f"{reason}: {detail}", _MAX_DETAIL_CHARS)
    )


def _unreachable(detail: str, who: str) -> FetchFailed:
    return FetchFailed(
        f"{_FAILED}: the {who} cannot be reached",
        refused=False,
        detail=one_line(f"{who}: {detail}", _MAX_DETAIL_CHARS),
    )


def _judge(error: Exception, wire: _Wire, secrets: Iterable[str]) -> FetchFailed:
    """A 4xx is the credential's or its settings' fault, everything else the authority's."""
    status, who = wire.status, wire.who
    # of other errors only the kind: a parser's text may hold part of an answer with a token
    telling = isinstance(error, ClientAuthenticationError | _Unreadable)
    said = str(getattr(error, "message", error)) if telling else type(error).__name__
    detail = _detail(f"{who}: status {status}: {said}", secrets)
    if status is not None and 400 <= status < 500 and status not in wire.passing:
        number = _AADSTS.search(str(error))
        reason = f" ({number[0]})" if number else f" (the {who} answered {status})"
        if wire.managed and status == 400 and number is None:
            reason = f": the {who} has no such identity"
            detail = f"{detail}; assign the identity to this host, or correct the one that is named"
        return FetchFailed(f"{_FAILED}{reason}", refused=True, detail=detail)
    if status is None:
        return FetchFailed(
            f"{_FAILED}: no token request could be made", refused=False, detail=detail
        )
    answered = "an unreadable answer" if status == 200 else str(status)
    return FetchFailed(
        f"{_FAILED}: the {who} answered {answered}",
        refused=False,
        detail=detail,
        retry_after_s=wire.retry_after_s,
    )


def _detail(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        for form in {secret, quote_plus(secret), quote(secret)}:
            text = text.replace(form, "***")
    return Scrubber.for_log(one_line(text, _MAX_DETAIL_CHARS))


class _Wire(AsyncHttpTransport[HttpRequest, AsyncHttpResponse]):
    """azure-core's transport over ours, for one fetch. Remembers what came back.

    A managed identity's endpoint is the environment's and may be a link-local address, which is
    refused to all others.
    """

    def __init__(
        self, transport: Transport, credential: TokenCredential, deadline_s: float
    ) -> None:
        self._transport = transport
        self._deadline_s = deadline_s
        self.managed = isinstance(credential, ManagedIdentity)
        self.who = _ENDPOINT if self.managed else _AUTHORITY
        # the metadata service says 404 and 410 while it is being updated
        self.passing = {404, 408, 410, 429} if self.managed else {408, 429}
        self._authority = "" if isinstance(credential, ManagedIdentity) else credential.authority
        self.status: int | None = None
        self.retry_after_s: float | None = None
        self.failure: UpstreamFailed | None = None

    @property
    def library_authority(self) -> str:
        """The authority as azure-identity will have it."""
        return f"https://{urlsplit(self._authority or '').netloc}"

    @property
    def options(self) -> dict[str, Any]:
        """What every credential object is made with."""
        return {"transport": self, "retry_total": 0}

    async def send(self, request: HttpRequest, **_options: Any) -> AsyncHttpResponse:
        """One call. Our own errors pass through azure-core as they are, but for one wrapper."""
        headers = [(name, value) for name, value in request.headers.items()]
        headers.append(("Accept-Encoding", "identity"))
        call = UpstreamCall(
            UpstreamTarget(
                request.method, self._url(request), route=Route(link_local=self.managed)
            ),
            headers,
            body=_form(request),
            deadlines=Deadlines(
                connect_s=min(5.0, self._deadline_s),
                first_byte_s=self._deadline_s,
                idle_s=self._deadline_s,
                total_s=self._deadline_s,
            ),
        )
        try:
            async with self._transport.open(call) as answer:
                self.status = answer.status
                self.retry_after_s = _seconds(answer.headers.get("retry-after"))
                body = await answer.read_all(_MAX_ANSWER_BYTES)
        except UpstreamFailed as failure:
            self.failure = failure
            raise
        return _Answer(request, answer.status, dict(answer.headers), body)

    def _url(self, request: HttpRequest) -> str:
        if not self._authority:
            return request.url
        return self._authority + urlsplit(request.url).path

    async def open(self) -> None:
        """Nothing to open: connections belong to the gateway's transport."""

    async def close(self) -> None:
        """Nothing to close."""

    async def __aenter__(self) -> _Wire:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


class _Answer(AsyncHttpResponse):
    """An answer already read, in the form azure-core's policies expect."""

    def __init__(
        self, request: HttpRequest, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        # typed for azure-core's older request class; at run time it takes both (1.41)
        super().__init__(request, None)  # type: ignore[arg-type]
        self.status_code = status
        self.headers = CaseInsensitiveDict(headers)
        self.content_type = headers.get("content-type", "application/json")
        self.reason = ""
        self._read = body

    def body(self) -> bytes:
        """All of it."""
        return self._read


def _form(request: HttpRequest) -> bytes:
    """The body; azure-identity sends forms, or nothing."""
    fields: Any = request.body
    return urlencode(fields).encode() if fields else b""


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
