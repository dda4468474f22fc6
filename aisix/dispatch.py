"""From a resolved exchange to an answer of Azure: the only loop over attempts.

Each attempt builds its call (sans-I/O, by the deployment's adapter), opens it on the transport and
looks at the head. A good head is handed to the pipeline inside the context, so that leaving it,
however, ends the transfer. An error head is read (bounded), judged by `routing.policy`, repaired
once or raised. Nothing here runs after the commit point: what fails later fails the exchange.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from aisix.core.exchange import Exchange, Phase
from aisix.core.ports import (
    Adapter,
    Clock,
    Deadlines,
    Recorder,
    TokenSource,
    Transport,
    UpstreamAnswer,
    UpstreamCall,
)
from aisix.core.resources import ClientSecret, Deployment
from aisix.errors import (
    CredentialRefused,
    CredentialUnusable,
    FieldError,
    GatewayError,
    InternalError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from aisix.routing.health import Health
from aisix.routing.policy import Repairs, Verdict, health_reason

ERROR_BODY_LIMIT_BYTES = 64 * 1024
"""As much of an error answer as is kept; the rest is not read."""

ERROR_BODY_S = 5.0
"""How long an error answer is read; a caller need not wait for words when the status is known."""

FORWARDED_HEADERS = (
    "openai-beta",
    "x-ms-client-request-id",
    "x-ms-oai-image-generation-deployment",
    "x-ms-enable-preview",
    "aoai-evals",
)
"""The only headers of a caller that go upstream: Azure answers 431 to more than ten of its own."""

_REMEMBERED_TARGETS = 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DefaultDeadlines:
    """Gateway-wide deadlines in seconds, 0 = none; a model may override `total_s` and `idle_s`."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    error_body_s: float = ERROR_BODY_S


class Dispatcher:
    """Opens exchanges on their deployment."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        transport: Transport,
        tokens: TokenSource,
        recorder: Recorder,
        health: Health,
        clock: Clock,
        deadlines: DefaultDeadlines,
    ) -> None:
        self._adapters = adapters
        self._transport = transport
        self._tokens = tokens
        self._recorder = recorder
        self._health = health
        self._clock = clock
        self._deadlines = deadlines
        self._without_stream_options: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    @asynccontextmanager
    async def open(self, exchange: Exchange) -> AsyncIterator[UpstreamAnswer]:
        """The good answer of `exchange`'s deployment; leaving the context ends the transfer.

        Raises UpstreamFailed kinds and UpstreamRejected.
        """
        deployment = _require(exchange.deployment)
        adapter = self._adapter(deployment)
        token = await self._token(exchange, deployment)
        target = (deployment.api_base, deployment.name, deployment.api_version)
        repairs = Repairs(
            token=token is not None,
            stream_options=exchange.streaming and target not in self._without_stream_options,
        )
        exchange.advance(Phase.DISPATCHED)
        while True:
            call = self._call(exchange, adapter, token, inject=repairs.stream_options)
            exchange.attempts += 1
            exchange.timings.dispatched = self._clock.monotonic()
            async with self._attempt(exchange, call) as answer:
                if answer.status < 300:
                    yield answer
                    return
                body = await self._error_body(answer)
                verdict = repairs.judge(
                    token_refused=token is not None and adapter.refused_token(answer.status, body),
                    stream_options_refused=adapter.refused_stream_options(answer.status, body),
                )
                refusal = adapter.explain(
                    answer.status, answer.headers, body, deployment=deployment
                )
                if verdict is Verdict.RETURN:
                    raise refusal
            if verdict is Verdict.RENEW_TOKEN:
                token = await self._renewed(exchange, deployment, token or "", refusal)
            else:
                self._remember(target)

    async def _error_body(self, answer: UpstreamAnswer) -> bytes:
        """The body of an error answer, nothing when it breaks off: the status says enough."""
        try:
            async with asyncio.timeout(self._deadlines.error_body_s):
                return await answer.read_all(ERROR_BODY_LIMIT_BYTES)
        except (TimeoutError, UpstreamFailed):
            return b""

    @asynccontextmanager
    async def _attempt(
        self, exchange: Exchange, call: UpstreamCall
    ) -> AsyncIterator[UpstreamAnswer]:
        """One attempt: its answer, and its place in health and metrics."""
        alias = _require(exchange.alias)
        alias_name = alias.name
        ok = False
        reached = False
        status: int | None = None
        try:
            async with self._transport.open(call) as answer:
                reached = True
                status = exchange.upstream_status = answer.status
                exchange.timings.upstream_first_byte = answer.first_byte_at
                exchange.upstream_request_id = answer.headers.get("apim-request-id")
                ok = status < 300
                yield answer
                if ok:
                    self._health.succeeded(alias_name)
        except (UpstreamFailed, UpstreamRejected) as error:
            ok = False
            reached = reached or getattr(error, "phase", "connect") != "connect"
            reason = health_reason(error)
            if reason is not None:
                self._health.failed(alias_name, reason)
            raise
        finally:
            # as configured: the name that a wildcard made of the caller's text is no label
            self._recorder.attempt_ended(
                alias.deployment, alias_name, ok=ok, status=status, reached=reached
            )

    def _adapter(self, deployment: Deployment) -> Adapter:
        fault = deployment.fault
        if fault is not None:
            if fault.kind == "credential":
                raise CredentialUnusable(
                    f"invalid upstream credentials: {fault.reason}", should_retry=False
                )
            raise UpstreamMisconfigured(
                f"invalid upstream configuration: {fault.reason}", should_retry=False
            )
        adapter = self._adapters[deployment.adapter]
        try:
            adapter.check_deployment_name(deployment.name)
        except FieldError as error:
            raise UpstreamMisconfigured(
                f"invalid upstream configuration: {error}", should_retry=False
            ) from error
        return adapter

    async def _token(self, exchange: Exchange, deployment: Deployment) -> str | None:
        credential = deployment.credential
        if not isinstance(credential, ClientSecret):
            return None
        try:
            return await self._tokens.token(credential)
        except GatewayError as error:
            self._note_credential_failure(exchange, error)
            raise

    async def _renewed(
        self, exchange: Exchange, deployment: Deployment, rejected: str, refusal: UpstreamRejected
    ) -> str:
        """A fresh token; when there is none to be had, Azure's own refusal stands."""
        credential = _require(deployment.credential)
        if not isinstance(credential, ClientSecret):
            raise refusal
        try:
            return await self._tokens.renew(credential, rejected)
        except CredentialRefused as error:
            self._note_credential_failure(exchange, error)
            raise refusal from error
        except GatewayError as error:
            self._note_credential_failure(exchange, error)
            raise

    def _note_credential_failure(self, exchange: Exchange, error: GatewayError) -> None:
        reason = health_reason(error)
        if reason is not None:
            self._health.failed(_require(exchange.alias).name, reason)

    def _call(
        self, exchange: Exchange, adapter: Adapter, token: str | None, *, inject: bool
    ) -> UpstreamCall:
        return adapter.build_call(
            exchange.request.spec,
            _require(exchange.deployment),
            payload=_require(exchange.payload),
            inject_stream_options=inject,
            token=token,
            forward=_forwarded(exchange),
            deadlines=self._deadlines_for(exchange),
        )

    def _deadlines_for(self, exchange: Exchange) -> Deadlines:
        """A stream has no total deadline; a model's own timeout replaces the first-byte deadline
        of a whole answer, whose first byte comes when all of it is ready."""
        alias = _require(exchange.alias)
        default = self._deadlines
        if exchange.streaming:
            return Deadlines(
                connect_s=default.connect_s,
                first_byte_s=default.first_byte_s,
                idle_s=alias.stream_timeout_s or alias.timeout_s or default.idle_s,
            )
        own = alias.timeout_s is not None
        return Deadlines(
            connect_s=default.connect_s,
            first_byte_s=0.0 if own else default.first_byte_s,
            idle_s=default.idle_s,
            total_s=alias.timeout_s if alias.timeout_s is not None else default.total_s,
        )

    def _remember(self, target: tuple[str, str, str]) -> None:
        self._without_stream_options[target] = None
        if len(self._without_stream_options) > _REMEMBERED_TARGETS:
            self._without_stream_options.popitem(last=False)


def _forwarded(exchange: Exchange) -> list[tuple[str, str]]:
    forward = [("x-aisix-request-id", exchange.id)]
    for name in FORWARDED_HEADERS:
        value = exchange.request.headers.get(name)
        if value and value.isascii() and value.isprintable():
            forward.append((name, value))
    return forward


def _require(value: T | None) -> T:
    """Stages run in order, so a value that an earlier stage sets is there."""
    if value is None:
        raise InternalError("a stage ran out of order")
    return value
