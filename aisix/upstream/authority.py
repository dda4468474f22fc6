"""Asks an authority for Entra ID tokens, by client secret: the only module that uses
azure-identity. I/O by a port.

azure-identity speaks to the token authority, through a transport of ours built on
core.ports.Transport: so the calls obey the gateway's TLS settings, aiohttp is not needed, and an
`http://` authority works although the library demands https (the scheme is restored on the way
out). When to fetch is decided in `tokens`; azure-identity's own cache and retries are not used,
because it can neither be forced to fetch nor share a fetch. Invariant: no secret, token or text of
the authority is in a message for callers; its text goes to the log, without the secret.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, urlencode, urlsplit

from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AsyncHttpResponse, AsyncHttpTransport
from azure.core.rest import HttpRequest
from azure.identity.aio import ClientSecretCredential

from aisix.core.ports import Deadlines, Transport, UpstreamCall, UpstreamTarget
from aisix.core.resources import ClientSecret
from aisix.errors import UpstreamFailed
from aisix.upstream.scrub import Scrubber, one_line
from aisix.upstream.tokens import FetchFailed, Grant

_MAX_ANSWER_BYTES = 256 * 1024
_MAX_DETAIL_CHARS = 1024
_AADSTS = re.compile(r"AADSTS\d{3,8}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_FAILED = "upstream authentication failed"


class _Unreadable(Exception):
    """An answer that azure-identity took for a token and that is none."""


class Authority:
    """Fetches one token from the authority a credential names.

    `deadline_s` is for one whole fetch, connection included.
    """

    def __init__(self, transport: Transport, deadline_s: float) -> None:
        self._transport = transport
        self._deadline_s = deadline_s

    async def fetch(self, credential: ClientSecret) -> Grant:
        """One call, one answer. Raises FetchFailed."""
        wire = _Wire(self._transport, credential.authority, self._deadline_s)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await _ask(credential, wire)
        except TimeoutError:
            raise _unreachable(f"no answer within {self._deadline_s:g} s") from None
        except UpstreamFailed as error:
            raise _unreachable(f"{error.message}: {error.detail or ''}") from error
        except Exception as error:  # the library raises whatever its reading of an answer meets
            raise _judge(error, wire, credential) from None


async def _ask(credential: ClientSecret, wire: _Wire) -> Grant:
    # A new credential object for each fetch costs 0.1 ms and is the one public way to be sure
    # that azure-identity asks instead of answering from its cache (1.27).
    origin = urlsplit(credential.authority)
    async with ClientSecretCredential(
        credential.tenant_id,
        credential.client_id,
        credential.client_secret,
        authority=f"https://{origin.netloc}",
        transport=wire,
        retry_total=0,
    ) as entra:
        granted = await entra.get_token_info(credential.scope)
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


def _unreachable(detail: str) -> FetchFailed:
    return FetchFailed(
        f"{_FAILED}: the token authority cannot be reached",
        refused=False,
        detail=one_line(f"token authority: {detail}", _MAX_DETAIL_CHARS),
    )


def _judge(error: Exception, wire: _Wire, credential: ClientSecret) -> FetchFailed:
    """A 4xx is the credential's or its settings' fault, everything else the authority's."""
    status = wire.status
    # of other errors only the kind: a parser's text may hold part of an answer with a token
    telling = isinstance(error, ClientAuthenticationError | _Unreadable)
    said = str(getattr(error, "message", error)) if telling else type(error).__name__
    detail = _detail(f"token authority: status {status}: {said}", credential)
    if status is not None and 400 <= status < 500 and status not in {408, 429}:
        number = _AADSTS.search(str(error))
        reason = f"({number[0]})" if number else f"(the token authority answered {status})"
        return FetchFailed(f"{_FAILED} {reason}", refused=True, detail=detail)
    if status is None:
        return FetchFailed(
            f"{_FAILED}: no token request could be made", refused=False, detail=detail
        )
    answered = "an unreadable answer" if status == 200 else str(status)
    return FetchFailed(
        f"{_FAILED}: the token authority answered {answered}",
        refused=False,
        detail=detail,
        retry_after_s=wire.retry_after_s,
    )


def _detail(text: str, credential: ClientSecret) -> str:
    secret = credential.client_secret
    for form in {secret, quote_plus(secret), quote(secret)}:
        text = text.replace(form, "***")
    return Scrubber.for_log(one_line(text, _MAX_DETAIL_CHARS))


class _Wire(AsyncHttpTransport[HttpRequest, AsyncHttpResponse]):
    """azure-core's transport over ours, for one fetch. Remembers the status that came back."""

    def __init__(self, transport: Transport, authority: str, deadline_s: float) -> None:
        self._transport = transport
        self._authority = authority
        self._deadline_s = deadline_s
        self.status: int | None = None
        self.retry_after_s: float | None = None

    async def send(self, request: HttpRequest, **_options: Any) -> AsyncHttpResponse:
        """One call. Our own errors pass through azure-core as they are."""
        headers = [(name, value) for name, value in request.headers.items()]
        headers.append(("Accept-Encoding", "identity"))
        call = UpstreamCall(
            UpstreamTarget(request.method, self._authority + urlsplit(request.url).path),
            headers,
            body=urlencode(request.body).encode(),
            deadlines=Deadlines(
                connect_s=min(5.0, self._deadline_s),
                first_byte_s=self._deadline_s,
                idle_s=self._deadline_s,
                total_s=self._deadline_s,
            ),
        )
        async with self._transport.open(call) as answer:
            self.status = answer.status
            self.retry_after_s = _seconds(answer.headers.get("retry-after"))
            body = await answer.read_all(_MAX_ANSWER_BYTES)
        return _Answer(request, answer.status, dict(answer.headers), body)

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
        self, request: HttpRequest, status: int, headers: MutableMapping[str, str], body: bytes
    ) -> None:
        # typed for azure-core's older request class; at run time it takes both (1.41)
        super().__init__(request, None)  # type: ignore[arg-type]
        self.status_code = status
        self.headers = headers
        self.content_type = headers.get("content-type", "application/json")
        self.reason = ""
        self._read = body

    def body(self) -> bytes:
        """All of it."""
        return self._read


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
