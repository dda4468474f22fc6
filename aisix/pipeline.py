"""The story of one exchange: authenticate, resolve, admit, dispatch, relay, settle.

Every endpoint, streamed or not, runs these lines; what differs between endpoints is a field of its
row in `core.endpoints`. Whatever happens — a refusal, an error of Azure, a departing caller, a
cancelled task, a bug — passes the one `finally`, which settles the hold, the metrics and the
access line exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ujson

from aisix.auth.authenticator import Authenticator
from aisix.core.endpoints import Action
from aisix.core.exchange import Exchange, Phase, Timings, Usage
from aisix.core.ports import AccessLog, Clock, Limiter, Recorder, Reply, UpstreamAnswer
from aisix.core.request import InboundRequest
from aisix.core.snapshot import SnapshotHolder
from aisix.dispatch import Dispatcher
from aisix.errors import (
    CallerDeparted,
    GatewayError,
    InternalError,
    LimitExceeded,
    NotFound,
    Overloaded,
    Unauthenticated,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
    answer_headers,
    envelope,
)
from aisix.relay.pump import Relay, error_event
from aisix.routing import listing
from aisix.routing.addressing import Addressing, check_family
from aisix.routing.intake import BodyLimits, take_in
from aisix.routing.resolver import resolve
from aisix.usage.meter import UsageMeter
from aisix.usage.realtime import SessionMeter

CLIENT_CLOSED_REQUEST = 499
"""Status in logs and metrics for a caller that left; nobody receives it."""

PASSED_ANSWER_HEADERS = ("apim-request-id", "x-ms-region", "content-disposition")

__all__ = ["BodyLimits", "Pipeline"]

_JSON = "application/json"
_log = logging.getLogger("aisix.pipeline")


class Pipeline:
    """Runs exchanges. All collaborators are handed in by the composition root."""

    def __init__(  # noqa: PLR0913 - one argument per stage
        self,
        *,
        snapshots: SnapshotHolder,
        authenticator: Authenticator,
        limiter: Limiter,
        dispatcher: Dispatcher,
        relay: Relay,
        recorder: Recorder,
        access_log: AccessLog,
        clock: Clock,
        body_limits: BodyLimits,
    ) -> None:
        self._snapshots = snapshots
        self._authenticator = authenticator
        self._limiter = limiter
        self._dispatcher = dispatcher
        self._relay = relay
        self._recorder = recorder
        self._access_log = access_log
        self._clock = clock
        self._body_limits = body_limits
        self._addressing = Addressing()

    async def run(self, request: InboundRequest, reply: Reply) -> Exchange:
        """Serve one request to its end. Raises only CancelledError, and only when cancelled."""
        exchange = Exchange(
            request=request,
            snapshot=self._snapshots.current(),
            timings=Timings(arrived=self._clock.monotonic()),
        )
        self._recorder.exchange_started(exchange)
        try:
            await self._serve(exchange, reply)
        except CallerDeparted:
            self._depart(exchange)
        except asyncio.CancelledError:
            if exchange.ended:
                pass  # only the transfer was still to be put away
            elif reply.departed:
                self._depart(exchange)
            elif reply.ended:
                exchange.advance(Phase.DONE)
            else:
                await self._fail(exchange, reply, Overloaded("the gateway is shutting down"))
            raise
        except GatewayError as error:
            await self._fail(exchange, reply, error)
        except Exception as error:
            _log.exception("exchange.crashed", extra={"request_id": exchange.id})
            hidden = InternalError("the gateway failed to serve this request", detail=repr(error))
            await self._fail(exchange, reply, hidden)
        finally:
            self._settle(exchange)
            _forget_frames(exchange.error)
        return exchange

    async def _serve(self, exchange: Exchange, reply: Reply) -> None:
        request = exchange.request
        if request.refusal is not None:
            raise request.refusal
        exchange.caller = self._authenticate(exchange)
        is_session = request.spec.action is Action.SESSION
        if request.spec.action is not Action.RELAY and not is_session:
            await self._answer(exchange, reply, self._own_document(exchange))
            return
        check_family(request.spec, exchange.caller)
        exchange.payload = await take_in(request, self._body_limits)
        self._addressing.find(exchange, exchange.caller, exchange.payload)
        exchange.hold = await self._admit(exchange)
        exchange.advance(Phase.ADMITTED)
        meter = SessionMeter() if is_session else UsageMeter(request.spec)
        try:
            async with self._dispatcher.open(exchange) as answer:
                await self._relay.relay(
                    exchange,
                    answer,
                    reply,
                    headers=self._headers(exchange, answer),
                    meter=meter,
                )
                self._take_usage(exchange, meter)
                exchange.advance(Phase.DONE)
        finally:
            if not exchange.ended:
                self._take_usage(exchange, meter)

    def _authenticate(self, exchange: Exchange) -> Any:
        try:
            caller = self._authenticator.authenticate(exchange.request, exchange.snapshot)
        except Unauthenticated as error:
            self._recorder.auth_decided(allowed=False, reason=error.detail or "unknown_key")
            raise
        self._recorder.auth_decided(allowed=True, reason="none")
        return caller

    async def _admit(self, exchange: Exchange) -> Any:
        try:
            hold = await self._limiter.admit(exchange)
        except LimitExceeded as error:
            self._recorder.limit_decided(error)
            raise
        self._recorder.limit_decided(None)
        return hold

    def _own_document(self, exchange: Exchange) -> dict[str, Any]:
        """What the gateway answers itself, from the snapshot."""
        caller = exchange.caller
        if caller is None or exchange.request.spec.action is Action.REFUSE:
            raise NotFound("no such route")
        if exchange.request.spec.action is Action.LIST_MODELS:
            return listing.listing(exchange.snapshot, caller)
        name = exchange.request.path_name or ""
        exchange.alias, _ = resolve(exchange.snapshot, caller, name)
        return listing.entry(exchange.alias, name)

    async def _answer(self, exchange: Exchange, reply: Reply, document: dict[str, Any]) -> None:
        exchange.advance(Phase.COMMITTED)
        exchange.status = 200
        body = ujson.dumps(document, escape_forward_slashes=False).encode()
        await reply.send(200, {"Content-Type": _JSON}, body)
        exchange.timings.first_out = self._clock.monotonic()
        exchange.advance(Phase.DONE)

    def _headers(self, exchange: Exchange, answer: UpstreamAnswer) -> Mapping[str, str]:
        """Headers of a good answer beside those of its content."""
        headers = {"x-aisix-call-id": exchange.id}
        for name in PASSED_ANSWER_HEADERS:
            value = answer.headers.get(name)
            if value and value.isprintable():
                headers[name] = value
        if exchange.hold is not None:
            headers.update(exchange.hold.headers)
        return headers

    def _take_usage(self, exchange: Exchange, meter: UsageMeter | SessionMeter) -> None:
        """Usage counts once Azure accepted the request. A caller that left before any answer is
        charged its prompt: Azure may have read it (decisions §6, abandoned)."""
        status = exchange.upstream_status
        if status is not None and status < 300:
            exchange.usage = meter.usage(exchange.prompt_estimate_tokens)
            exchange.served_model = meter.served_model
            exchange.finish_reason = meter.finish_reason
            exchange.unfinished = meter.unfinished

    def _depart(self, exchange: Exchange) -> None:
        exchange.departed = True
        exchange.status = CLIENT_CLOSED_REQUEST
        refused = exchange.upstream_status is not None and exchange.upstream_status >= 300
        if exchange.usage is None and exchange.phase is Phase.DISPATCHED and not refused:
            prompt = exchange.prompt_estimate_tokens
            exchange.usage = Usage(prompt_tokens=prompt, total_tokens=prompt, estimated=True)
        exchange.advance(Phase.ABORTED)

    async def _fail(self, exchange: Exchange, reply: Reply, error: GatewayError) -> None:
        """Tell the caller: an error status while nothing was sent, a late error event in a stream,
        a cut connection otherwise; a session has then been closed by its relay."""
        exchange.error = error
        if exchange.usage is not None and not _delivered(exchange.usage):
            exchange.usage = None
        if isinstance(error, UpstreamBroken) and error.kind == "in_band":
            exchange.unfinished = False  # by the upstream's own word
        try:
            if not reply.committed:
                exchange.status = error.status
                headers = {"Content-Type": _JSON, **self._limit_headers(exchange)}
                headers.update(answer_headers(error))
                body = ujson.dumps(envelope(error), escape_forward_slashes=False).encode()
                await reply.send(error.status, headers, body)
                exchange.advance(Phase.DONE)
            elif exchange.streaming and exchange.request.spec.action is Action.RELAY:
                exchange.advance(Phase.ABORTED)
                await reply.write(error_event(envelope(error)))
                await reply.finish()
            else:
                exchange.advance(Phase.ABORTED)
                reply.abort()
        except CallerDeparted:
            exchange.departed = True
            exchange.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:
            exchange.departed = True
            exchange.status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            if not exchange.ended:
                exchange.advance(Phase.ABORTED)

    @staticmethod
    def _limit_headers(exchange: Exchange) -> Mapping[str, str]:
        return exchange.hold.headers if exchange.hold is not None else {}

    def _settle(self, exchange: Exchange) -> None:
        if exchange.settled:
            return
        exchange.settled = True
        exchange.timings.ended = self._clock.monotonic()
        hold = exchange.hold
        if hold is not None:
            if exchange.unfinished:
                hold.keep()
            elif exchange.usage is not None:
                hold.settle(exchange.usage.total_tokens)
            else:
                hold.release(keep_request=_reached_upstream(exchange))
        self._recorder.exchange_ended(exchange)
        self._access_log.write(exchange)
        if exchange.payload is not None:
            exchange.payload.close()  # last: what it holds is no reason to settle less


def _forget_frames(error: BaseException | None) -> None:
    """An error that is kept must not keep the frames it passed: they hold the exchange, which
    holds the error, and such a circle waits for the collector with the whole request."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _delivered(usage: Usage) -> bool:
    """Whether a failed exchange has tokens to answer for; one that gave nothing gives all back."""
    return not usage.estimated or usage.completion_tokens > 0


def _reached_upstream(exchange: Exchange) -> bool:
    """Whether Azure saw the request: then it stays counted, its tokens go back (decisions §9)."""
    if exchange.upstream_status is not None:
        return True
    error = exchange.error
    if isinstance(error, UpstreamTimeout):
        return error.phase != "connect"
    return not isinstance(error, UpstreamUnreachable) and exchange.timings.dispatched > 0.0
