"""From a resolved exchange to an answer of Azure: the only loop over attempts.

Each attempt builds its call (sans-I/O, by the deployment's adapter), opens it on the transport and
looks at the head. A good answer is handed to the pipeline inside the context, so that leaving it,
however, ends the transfer. An error head is read (bounded), judged by `routing.policy`, repaired
once or raised. Nothing here runs after the commit point: what fails later fails the exchange.

The contexts are classes, not generators: every exchange passes here, and each generator and each
await of a coroutine more would cost it about a microsecond.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from aisix.core.endpoints import OPTED_USAGE, Action
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
    upstream_request_id,
)
from aisix.core.resources import Alias, Deployment, ResourceKey, TokenCredential
from aisix.core.websocket import open_protocols
from aisix.errors import (
    CredentialRefused,
    CredentialUnusable,
    FieldError,
    GatewayError,
    InternalError,
    UpstreamBroken,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTimeout,
)
from aisix.routing.health import Health
from aisix.routing.policy import Repairs, Verdict, health_reason
from aisix.upstream.shaping import forwarded_headers

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
"""The headers of a caller that go upstream unless its provider key says otherwise."""

_REMEMBERED_TARGETS = 1024
_RESPONSE_ID = re.compile(r"\bresp_[A-Za-z0-9_-]{1,512}")

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
        self._error_body_s = deadlines.error_body_s
        self._for_whole = Deadlines(
            connect_s=deadlines.connect_s,
            first_byte_s=deadlines.first_byte_s,
            idle_s=deadlines.idle_s,
            total_s=deadlines.total_s,
        )
        self._for_stream = replace(self._for_whole, total_s=0.0)
        # silence of one side is no fault of the other: the relay knows whether both are silent
        self._for_session = replace(self._for_stream, idle_s=0.0)
        self._without_stream_options: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def open(self, exchange: Exchange) -> Opening:
        """A context: the good answer of `exchange`'s deployment; leaving it ends the transfer.

        Entering raises UpstreamFailed kinds and UpstreamRejected.
        """
        return Opening(self, exchange)

    async def attempts(self, exchange: Exchange) -> tuple[_Attempt, UpstreamAnswer]:
        """Attempt until one is answered well: that one, open, and its answer."""
        deployment = _require(exchange.deployment)
        adapter = self._adapter(deployment)
        credential = deployment.credential
        token = (
            None
            if credential is None or isinstance(credential, ResourceKey)
            else await self._token(exchange, credential)
        )
        repairs = Repairs(
            token=token is not None,
            stream_options=exchange.streaming
            and exchange.request.spec.usage in OPTED_USAGE
            and self._takes_stream_options(deployment),
        )
        payload = _require(exchange.payload)
        exchange.advance(Phase.DISPATCHED)
        while True:
            call = self._call(exchange, adapter, token, inject=repairs.stream_options)
            if not (repairs.token or repairs.stream_options):
                payload.let_go()
            exchange.attempts += 1
            exchange.timings.dispatched = self._clock.monotonic()
            attempt = _Attempt(exchange, self._health, self._recorder)
            answer = await attempt.begin(self._transport.open(call))
            if answer.status < 300:
                payload.let_go()
                return attempt, answer
            async with attempt:
                body = await self._error_body(answer)
                verdict = repairs.judge(
                    token_refused=token is not None
                    and (
                        adapter.refused_token(answer.status, body)
                        or (answer.status == 401 and _is_session(exchange))  # has no body
                    ),
                    stream_options_refused=adapter.refused_stream_options(answer.status, body),
                )
                refusal = adapter.explain(
                    answer.status,
                    answer.headers,
                    body,
                    deployment=deployment,
                    of_object=payload.errand is not None,
                )
                if exchange.seal is not None:
                    refusal.message = _sealed(refusal.message, exchange.seal)
                if verdict is Verdict.RETURN:
                    raise refusal
            if verdict is Verdict.RENEW_TOKEN:
                token = await self._renewed(exchange, deployment, token or "", refusal)
                if payload.source is not None and not payload.source.replayable:
                    # what was sent of an upload cannot be sent again: the caller's next one can
                    refusal.should_retry = True
                    raise refusal
            else:
                self._remember(_place(deployment))

    async def _error_body(self, answer: UpstreamAnswer) -> bytes:
        """The body of an error answer, nothing when it breaks off: the status says enough."""
        try:
            async with asyncio.timeout(self._error_body_s):
                return await answer.read_all(ERROR_BODY_LIMIT_BYTES)
        except (TimeoutError, UpstreamFailed):
            return b""

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

    async def _token(self, exchange: Exchange, credential: TokenCredential) -> str:
        try:
            return await self._tokens.token(credential)
        except GatewayError as error:
            self._note_credential_failure(exchange, error)
            raise

    async def _renewed(
        self, exchange: Exchange, deployment: Deployment, rejected: str, refusal: UpstreamRejected
    ) -> str:
        """A fresh token; when there is none to be had, Azure's own refusal stands."""
        credential = deployment.credential
        if credential is None or isinstance(credential, ResourceKey):
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
        spec = exchange.request.spec
        flowing = exchange.streaming or spec.flows
        return adapter.build_call(
            spec,
            _require(exchange.deployment),
            payload=_require(exchange.payload),
            inject_stream_options=inject,
            token=token,
            forward=_forwarded(exchange),
            deadlines=self._for_session
            if _is_session(exchange)
            else self._deadlines(_require(exchange.alias), streaming=flowing),
        )

    def _deadlines(self, alias: Alias, *, streaming: bool) -> Deadlines:
        """A stream has no total deadline; a model's own timeout replaces the first-byte deadline
        of a whole answer, whose first byte comes when all of it is ready."""
        if streaming:
            idle_s = alias.stream_timeout_s or alias.timeout_s
            return replace(self._for_stream, idle_s=idle_s) if idle_s else self._for_stream
        if alias.timeout_s is None:
            return self._for_whole
        return replace(self._for_whole, first_byte_s=0.0, total_s=alias.timeout_s)

    def _takes_stream_options(self, deployment: Deployment) -> bool:
        return _place(deployment) not in self._without_stream_options

    def _remember(self, place: tuple[str, str, str]) -> None:
        self._without_stream_options[place] = None
        if len(self._without_stream_options) > _REMEMBERED_TARGETS:
            self._without_stream_options.popitem(last=False)


class Opening:
    """The context that `Dispatcher.open` gives."""

    __slots__ = ("_attempt", "_dispatcher", "_exchange")

    _attempt: _Attempt

    def __init__(self, dispatcher: Dispatcher, exchange: Exchange) -> None:
        self._dispatcher = dispatcher
        self._exchange = exchange

    async def __aenter__(self) -> UpstreamAnswer:
        self._attempt, answer = await self._dispatcher.attempts(self._exchange)
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._attempt.__aexit__(kind, error, trace)


class _Attempt:
    """One call on the transport, and its place in health and metrics. Left exactly once."""

    __slots__ = ("_exchange", "_health", "_recorder", "_status", "_transfer")

    _transfer: AbstractAsyncContextManager[UpstreamAnswer]

    def __init__(self, exchange: Exchange, health: Health, recorder: Recorder) -> None:
        self._exchange = exchange
        self._health = health
        self._recorder = recorder
        self._status: int | None = None

    async def begin(self, transfer: AbstractAsyncContextManager[UpstreamAnswer]) -> UpstreamAnswer:
        """Send the call and wait for the head. When that fails the attempt is over."""
        self._transfer = transfer
        try:
            answer = await transfer.__aenter__()
        except BaseException as error:
            self._settle(error)
            raise
        exchange = self._exchange
        self._status = exchange.upstream_status = answer.status
        exchange.timings.upstream_first_byte = answer.first_byte_at
        exchange.upstream_request_id = upstream_request_id(answer.headers)
        return answer

    async def __aenter__(self) -> None:
        """Of a begun attempt: only to be left again."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._transfer.__aexit__(kind, error, trace)
        finally:
            self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        alias = _require(self._exchange.alias)
        ok = self._status is not None and self._status < 300
        reached = self._status is not None
        if isinstance(error, UpstreamFailed | UpstreamRejected):
            ok = False
            reached = reached or _was_there(error)
            reason = health_reason(error)
            if reason is not None:
                self._health.failed(alias.name, reason)
        elif ok and error is None:
            self._health.succeeded(alias.name)
        # as configured: the name that a wildcard made of the caller's text is no label
        self._recorder.attempt_ended(
            alias.deployment, alias.name, ok=ok, status=self._status, reached=reached
        )


def _was_there(error: UpstreamFailed | UpstreamRejected) -> bool:
    """Whether an error before a head came from the deployment, and not from the way to it."""
    if isinstance(error, UpstreamTimeout):
        return error.phase != "connect"
    return isinstance(error, UpstreamBroken)


def _place(deployment: Deployment) -> tuple[str, str, str]:
    """What decides which fields of a request are known."""
    return (deployment.api_base, deployment.name, deployment.api_version)


def _forwarded(exchange: Exchange) -> list[tuple[str, str]]:
    request = exchange.request
    shaping = _require(exchange.deployment).shaping
    return [
        ("x-aisix-request-id", request.request_id),
        *forwarded_headers(request.headers, FORWARDED_HEADERS, shaping=shaping),
        *(_handshake(exchange) if _is_session(exchange) else ()),
    ]


def _sealed(message: str, seal: Callable[[str], str]) -> str:
    """`message` with the ids of responses as the caller knows them."""
    return _RESPONSE_ID.sub(lambda found: seal(found[0]), message)


def _handshake(exchange: Exchange) -> list[tuple[str, str]]:
    """What of the caller's opening handshake the upstream is asked with: its nonce, so that the
    answer to it is the upstream's own, and its subprotocols but for the key."""
    headers = exchange.request.headers
    fields = [("Sec-WebSocket-Key", headers.get("sec-websocket-key") or "")]
    protocols = ", ".join(open_protocols(headers))
    if protocols.isascii() and protocols.isprintable() and protocols:
        fields.append(("Sec-WebSocket-Protocol", protocols))
    return fields


def _is_session(exchange: Exchange) -> bool:
    return exchange.request.spec.action is Action.SESSION


def _require(value: T | None) -> T:
    """Stages run in order, so a value that an earlier stage sets is there."""
    if value is None:
        raise InternalError("a stage ran out of order")
    return value
