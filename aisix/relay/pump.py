"""Carries an answer from the upstream to the caller. I/O, through ports only.

Invariants: one writer at a time, and nothing is read from the upstream while a write waits for its
flush: that is the backpressure. What one read brought goes out in one write, at once. A stream is
committed by its first data event worth sending, not before: an error that comes first still
becomes an error status.

Failures after the commit point are raised like those before; the pipeline tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ujson

from aisix.core.endpoints import Action, BodyForm, UsageForm
from aisix.core.exchange import Exchange
from aisix.core.ports import Clock, Meter, Reply, UpstreamAnswer
from aisix.core.retry_hint import retry_hint_s
from aisix.core.uplink import Uplink
from aisix.errors import InternalError, UpstreamBroken
from aisix.relay.answer import rewrite_answer
from aisix.relay.document import parse_object
from aisix.relay.editor import StreamEditor
from aisix.relay.keepalive import StreamReply, commit
from aisix.relay.rewrite import StreamRewriter
from aisix.relay.rewriter import Rewriter
from aisix.relay.session import Session, SessionPatience
from aisix.relay.typed import DIALECTS, TypedRewriter

STREAM_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
EXTENSIONS_HEADER = "x-aisix-azure-extensions"
"""Request header; "keep" leaves Azure's extension fields in the answer."""

MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
"""Largest answer that is held whole: twice what 2,048 embeddings of 3,072 numbers take as text."""

_JSON_ONLY = frozenset(
    {
        UsageForm.CHAT,
        UsageForm.COMPLETION,
        UsageForm.EMBEDDING,
        UsageForm.RESPONSE,
        UsageForm.IMAGE,
    }
)
"""These answer in JSON, whatever a front door calls it."""

NO_CONTENT = 204
_PIECE_HEADERS = ("Content-Type", "Content-Encoding")
_READ_BYTES = 1024 * 1024
"""Of a passing document no more than this is read for its usage."""

_PATIENCE = SessionPatience()
_LET_END_S = 0.1
"""How long, after the end mark, the upstream's own end is awaited: it saves the connection."""


class Relay:
    """Sends answers on in the form the caller asked for."""

    def __init__(
        self, *, clock: Clock, keepalive_s: float, patience: SessionPatience = _PATIENCE
    ) -> None:
        self._clock = clock
        self._keepalive_s = keepalive_s
        self._patience = patience

    async def relay(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        """Send `answer`, a success, on to the caller; `headers` go into the head.

        Raises UpstreamBroken and UpstreamTimeout, before or after the commit point, and
        CallerDeparted.
        """
        exchange.timings.upstream_first_byte = answer.first_byte_at
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if exchange.request.spec.action is Action.SESSION:
                await self._relay_session(exchange, answer, reply, headers=headers, meter=meter)
            elif media_type == "text/event-stream" and _takes_events(exchange):
                if exchange.payload is not None:
                    exchange.payload.stream = True  # of a form, or of speech, this shows it first
                out = StreamReply(
                    exchange,
                    reply,
                    clock=self._clock,
                    keepalive_s=self._keepalive_s,
                    headers={**headers, **STREAM_HEADERS},
                )
                del headers  # the stream may be long, and silent
                await self._relay_stream(exchange, answer, out, meter=meter)
            elif _passes(exchange, answer, media_type):
                await self._relay_pieces(exchange, answer, reply, headers=headers, meter=meter)
            else:
                await self._relay_document(exchange, answer, reply, headers=headers, meter=meter)
        finally:
            exchange.timings.upstream_last_byte = answer.last_byte_at

    async def _relay_stream(
        self, exchange: Exchange, answer: UpstreamAnswer, out: StreamReply, *, meter: Meter
    ) -> None:
        timings = exchange.timings
        rewriter = _rewriter(exchange, meter)
        editor = StreamEditor(rewriter, meter.observe_text)
        ended = False
        piece = b""
        async with out:
            while not rewriter.saw_done and not ended:
                try:
                    piece = await answer.read()
                except UpstreamBroken as error:
                    # a connection cut after the last choice was finished is an end like any
                    if error.kind != "cut" or not rewriter.complete:
                        raise
                ended = not piece
                data, failure = editor.feed(piece)
                piece = b""  # nothing is held while the caller is slow or the upstream silent
                if rewriter.first_content_seen and not timings.first_token:
                    timings.first_token = self._clock.monotonic()
                if failure is not None and not out.committed:
                    raise self._with_hint(failure, answer)
                await out.write(data, worth_a_head=rewriter.delivered > 0 or ended)
                if failure is not None:
                    raise failure
                data = b""
            await out.finish()
            answer.let_end(_LET_END_S)

    async def _relay_session(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        payload, alias = exchange.payload, exchange.alias
        if payload is None or not isinstance(payload.source, Uplink):
            raise InternalError("a stage ran out of order")
        own_s = (alias.stream_timeout_s or alias.timeout_s) if alias is not None else None
        session = Session(
            exchange,
            answer,
            reply,
            uplink=payload.source,
            meter=meter,
            clock=self._clock,
            patience=replace(self._patience, idle_s=own_s) if own_s else self._patience,
        )
        await session.run(headers)

    async def _relay_document(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        raw = await answer.read_all(MAX_DOCUMENT_BYTES + 1)
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise UpstreamBroken(
                "upstream sent an answer that is too large",
                kind="decode",
                detail=f"answer larger than {MAX_DOCUMENT_BYTES} bytes",
            )
        try:
            body = rewrite_answer(
                raw,
                exchange.request.spec,
                alias_name=_asked_name(exchange),
                keep_extensions=_keeps_extensions(exchange),
                observe=meter.observe,
                seal=exchange.seal,
            )
        except UpstreamBroken as failure:
            raise self._with_hint(failure, answer) from failure.__cause__
        del raw  # the caller may take its time
        commit(exchange, answer.status)
        await reply.send(answer.status, {**headers, "Content-Type": "application/json"}, body)
        exchange.timings.first_out = self._clock.monotonic()

    async def _relay_pieces(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        headers: Mapping[str, str],
        meter: Meter,
    ) -> None:
        """Anything else passes as it comes; of a JSON document the usage is read on the way."""
        if exchange.payload is not None:
            exchange.payload.stream = False  # there are no events, whatever was asked for
        piece = await answer.read()
        media_type = answer.headers.get("content-type", "")
        named = {name: answer.headers.get(name.lower(), "") for name in _PIECE_HEADERS}
        headers = {**headers, **{name: value for name, value in named.items() if value}}
        commit(exchange, answer.status)
        await reply.start(answer.status, headers, length=_length(answer))
        counts = exchange.request.method == "POST" and _is_json(media_type.partition(";")[0])
        seen = bytearray() if counts else None
        while piece:
            await reply.write(piece)
            if not exchange.timings.first_out:
                exchange.timings.first_out = self._clock.monotonic()
            if seen is not None:
                seen += piece
                if len(seen) > _READ_BYTES:
                    seen = None
            piece = await answer.read()
        document = parse_object(bytes(seen)) if seen else None
        if document is not None:
            meter.observe(document)
        await reply.finish()

    def _with_hint(self, failure: UpstreamBroken, answer: UpstreamAnswer) -> UpstreamBroken:
        """A rate limit inside a success with what the head of that success said of waiting."""
        if failure.status == 429:
            hint = retry_hint_s(answer.headers, failure.detail or "", self._clock.time())
            failure.retry_after_s = hint
        return failure


def _rewriter(exchange: Exchange, meter: Meter) -> Rewriter:
    payload, spec = exchange.payload, exchange.request.spec
    dialect = DIALECTS.get(spec.usage)
    if dialect is not None:
        return TypedRewriter(
            dialect,
            alias_name=_asked_name(exchange),
            keep_extensions=_keeps_extensions(exchange),
            observe=meter.observe,
            seal=exchange.seal,
        )
    return StreamRewriter(
        spec,
        alias_name=_asked_name(exchange),
        include_usage=payload is not None and payload.include_usage,
        keep_extensions=_keeps_extensions(exchange),
        observe=meter.observe,
    )


def _takes_events(exchange: Exchange) -> bool:
    """Whether events are what the caller asked for, as far as that is known: what a form wishes may
    have gone by unread, and speech has a wish of its own."""
    spec = exchange.request.spec
    unsaid = spec.may_stream and spec.flows and spec.usage is not UsageForm.NONE
    return exchange.streaming or unsaid


def _passes(exchange: Exchange, answer: UpstreamAnswer, media_type: str) -> bool:
    """Whether an answer is handed on as it comes: what is no JSON, what is not ours to read, and
    what says of an object that there is nothing to say."""
    spec, payload = exchange.request.spec, exchange.payload
    if answer.status == NO_CONTENT and payload is not None and payload.errand is not None:
        return True
    return spec.body is BodyForm.STREAM or not (_is_json(media_type) or spec.usage in _JSON_ONLY)


def _length(answer: UpstreamAnswer) -> int | None:
    if "transfer-encoding" in answer.headers:
        return None  # which overrules a length, and libcurl follows it
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else None


def error_event(envelope: Mapping[str, Any]) -> bytes:
    """A late error as an event of its own; no end mark may follow it."""
    text = ujson.dumps(envelope, escape_forward_slashes=False)
    return b"event: error\ndata: " + text.encode() + b"\n\n"


def _is_json(media_type: str) -> bool:
    return media_type in ("", "application/json") or media_type.endswith("+json")


def _asked_name(exchange: Exchange) -> str:
    """The name the caller asked for, which is the only one it gets to see."""
    return exchange.payload.requested if exchange.payload is not None else ""


def _keeps_extensions(exchange: Exchange) -> bool:
    wish = exchange.request.headers.get(EXTENSIONS_HEADER) or ""
    return bool(wish.strip().lower() == "keep")
