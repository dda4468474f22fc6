"""Carries a realtime session: the bytes of a WebSocket in both directions, until it ends. I/O,
through ports only.

Nothing is sent to the caller before the upstream agreed; a refusal is an ordinary error. Then the
frames of either side go to the other as they are, and with them pings, fragments and close codes.
Invariants: each direction has one pump that reads nothing while its write waits, so a side that
does not read holds the other back and nobody else; once a Close has passed one way, the other way
has `closing_s` left; frames of the gateway's own stand only between others, and the only ones are
Close frames: when the upstream breaks off (1011), when neither side said anything for long (1001),
and when the process ends (1012).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from aisix.core.exchange import SWITCHING_PROTOCOLS, Exchange
from aisix.core.ports import Clock, Meter, Reply, UpstreamAnswer
from aisix.core.uplink import Uplink
from aisix.core.websocket import (
    REALTIME_PROTOCOL,
    accept_of,
    open_protocols,
)
from aisix.errors import CallerDeparted, UpstreamBroken, UpstreamFailed
from aisix.relay.frames import NO_STATUS, FrameFollower, close_frame
from aisix.relay.keepalive import commit
from aisix.relay.realtime import DownwardEvents, UpwardEvents

GOING_AWAY, ABNORMAL, BROKEN, RESTART = 1001, 1006, 1011, 1012
"""Close codes; 1006 stands for an end without one and is never sent."""


@dataclass(frozen=True, slots=True)
class SessionPatience:
    """How long a session waits, in seconds.

    `idle_s` for anything to pass in either direction, 0 = for ever; `closing_s` for one side to
    answer the other's Close; `flush_s` for the upstream to hang up when there is nothing left to
    say; `parting_s` for a caller's last word when the process ends.
    """

    idle_s: float = 0.0
    closing_s: float = 5.0
    flush_s: float = 1.0
    parting_s: float = 0.5


class Session:
    """One session, from the upstream's agreement to the end."""

    def __init__(
        self,
        exchange: Exchange,
        answer: UpstreamAnswer,
        reply: Reply,
        *,
        uplink: Uplink,
        meter: Meter,
        clock: Clock,
        patience: SessionPatience,
    ) -> None:
        payload, deployment = exchange.payload, exchange.deployment
        alias_name = payload.requested if payload is not None else ""
        self._exchange = exchange
        self._answer = answer
        self._reply = reply
        self._uplink = uplink
        self._clock = clock
        self._patience = patience
        self._events = DownwardEvents(alias_name=alias_name, meter=meter)
        self._down = FrameFollower(self._events.judge, self._events.read)
        events = UpwardEvents(
            alias_name=alias_name, deployment_name=deployment.name if deployment else alias_name
        )
        self._up = FrameFollower(events.judge, events.read)
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._said_close = False
        self._down_task: asyncio.Task[None]
        self._up_task: asyncio.Task[None]
        self._departure: asyncio.Task[None]

    async def run(self, headers: Mapping[str, str]) -> None:
        """Agree with the caller and relay until the end; `headers` go into the head.

        Raises UpstreamBroken when the upstream ended without a word, CallerDeparted when the
        caller did.
        """
        head = {**headers, **_agreed(self._exchange, self._answer)}
        commit(self._exchange, SWITCHING_PROTOCOLS)
        await self._reply.switch(head)
        self._down_task = asyncio.create_task(self._pump_down(), name="aisix.relay.session.down")
        self._up_task = asyncio.create_task(self._pump_up(), name="aisix.relay.session.up")
        self._departure = asyncio.create_task(
            self._reply.wait_departed(), name="aisix.relay.session.departure"
        )
        try:
            await self._talk()
            if not self._reply.departed:
                await self._reply.finish()
        except asyncio.CancelledError:
            await self._say_goodbye(RESTART, "the gateway is restarting", self._patience.parting_s)
            raise
        finally:
            tasks = (self._down_task, self._up_task, self._departure)
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if error is not None:
                    error.__traceback__ = None
            # a failed task, and what it failed with, hold the frames of the failure, which hold us
            del self._down_task, self._up_task, self._departure

    async def _talk(self) -> None:
        """Until both directions have ended, one way or another."""
        down, up = self._down_task, self._up_task
        if not await self._until_one_ends():
            reason = f"nothing was said for {self._patience.idle_s:g} s"
            await self._say_goodbye(GOING_AWAY, reason, self._patience.closing_s)
        elif self._departure.done() or _failed_with(CallerDeparted, down, up):
            await self._after_departure()
        elif down.done():
            await self._after_upstream()
        else:
            up.result()  # it ended by a Close, or by a failure of ours
            await self._after_caller()

    # ── the two directions ──

    async def _pump_down(self) -> None:
        """From the upstream to the caller, to a Close or the end."""
        timings = self._exchange.timings
        while not self._down.closed and (piece := await self._answer.read()):
            data = self._down.feed(piece)
            if data:
                await self._write(data)
            self._moved_at = self._loop.time()
            if not timings.first_out:
                timings.first_out = self._clock.monotonic()
            if self._events.saw_content and not timings.first_token:
                timings.first_token = self._clock.monotonic()

    async def _pump_up(self) -> None:
        """From the caller to the upstream, to a Close. Raises CallerDeparted."""
        async for piece in self._exchange.request.body.chunks():
            data = self._up.feed(piece)
            if data:
                await self._uplink.put(data)
            self._moved_at = self._loop.time()
            if self._up.closed:
                return

    async def _write(self, data: bytes) -> None:
        """To the caller, unless it took its leave and hung up, or we did."""
        if self._said_close:
            return
        try:
            await self._reply.write(data)
        except CallerDeparted:
            if not self._up.closed:
                raise

    # ── the end ──

    async def _until_one_ends(self) -> bool:
        """False when nothing has moved for too long instead."""
        idle_s = self._patience.idle_s
        wait_s = None
        while True:
            if idle_s:
                wait_s = self._moved_at + idle_s - self._loop.time()
                if wait_s <= 0:
                    return False
            if await _first_of(self._down_task, self._up_task, self._departure, within_s=wait_s):
                return True

    async def _after_caller(self) -> None:
        """The caller's Close has passed: the upstream's answer to it is awaited."""
        patience = self._patience
        self._note_end("caller", self._up.close_code)
        await _first_of(self._down_task, self._departure, within_s=patience.closing_s)
        if not self._reply.departed:
            # as an end point does: the code comes back
            await _within(patience.flush_s, self._close(self._up.close_code or NO_STATUS))
        await self._let_upstream_end()

    async def _after_upstream(self) -> None:
        """The upstream's Close has passed, or it ended without one."""
        if self._down.closed:
            self._note_end("upstream", self._down.close_code)
            within_s = self._patience.closing_s
            await _first_of(self._up_task, self._departure, within_s=within_s)
            await self._let_upstream_end()
            return
        if self._up.closed:
            await self._after_caller()
            return
        self._note_end("upstream", ABNORMAL)
        self._uplink.close()
        reason = "the upstream connection broke"
        await self._say_goodbye(BROKEN, reason, self._patience.closing_s)
        raise self._down_task.exception() or UpstreamBroken(
            "upstream connection broke before the session was closed",
            kind="cut",
            detail="the upstream ended the connection without a Close frame",
        )

    async def _after_departure(self) -> None:
        """The caller hung up. What it said before is passed on, as far as the upstream takes it."""
        await _first_of(self._up_task, within_s=self._patience.flush_s)
        if self._up.closed:
            self._note_end("caller", self._up.close_code)
            await self._let_upstream_end()
        elif self._down.closed:
            self._note_end("upstream", self._down.close_code)
        else:
            self._note_end("caller", ABNORMAL)
            raise CallerDeparted

    async def _let_upstream_end(self) -> None:
        """Both have said all: give the upstream a moment to get it and to hang up."""

        async def until_the_end() -> None:
            await _first_of(self._down_task)
            while await self._answer.read():
                pass

        with contextlib.suppress(UpstreamFailed):
            await _within(self._patience.flush_s, until_the_end())

    async def _say_goodbye(self, code: int, reason: str, within_s: float) -> None:
        """A Close of our own to the caller, whose answer goes on to the upstream."""

        async def say() -> None:
            if await self._close(code, reason):
                await _first_of(self._up_task, self._departure)
                if self._up.closed:
                    await self._let_upstream_end()

        self._note_end("gateway", code)
        await _within(within_s, say())

    async def _close(self, code: int, reason: str = "") -> bool:
        """A Close of our own to the caller, where one may stand. Nothing follows it."""
        if self._down.closed or not self._down.between_frames or self._said_close:
            return False
        self._said_close = True
        try:
            await self._reply.write(close_frame(code, reason))
        except CallerDeparted:
            return False
        return True

    def _note_end(self, side: str, code: int | None) -> None:
        if self._exchange.closed_by is None:
            self._exchange.closed_by, self._exchange.close_code = side, code


def _agreed(exchange: Exchange, answer: UpstreamAnswer) -> dict[str, str]:
    """The head fields by which the caller's handshake is answered.

    The upstream has been asked with the caller's own key. Raises UpstreamBroken when it did not
    agree to what it was asked for.
    """
    request = exchange.request
    accept = accept_of(request.headers.get("sec-websocket-key") or "")
    offered = open_protocols(request.headers)
    chosen = answer.headers.get("sec-websocket-protocol")
    fault = None
    if answer.status != SWITCHING_PROTOCOLS:
        fault = f"status {answer.status}"
    elif answer.headers.get("sec-websocket-accept") != accept:
        fault = "a wrong Sec-WebSocket-Accept"
    elif chosen is not None and chosen not in offered:
        fault = "a subprotocol that was not offered"
    elif "sec-websocket-extensions" in answer.headers:
        fault = "an extension that was not offered"
    if fault is not None:
        raise UpstreamBroken(
            "upstream did not agree to a WebSocket", kind="decode", detail=f"answered with {fault}"
        )
    fields = {"Sec-WebSocket-Accept": accept}
    if chosen is None and offered:
        # browsers give up unless one of those that they offered is chosen
        chosen = REALTIME_PROTOCOL if REALTIME_PROTOCOL in offered else offered[0]
    if chosen is not None:
        fields["Sec-WebSocket-Protocol"] = chosen
    return fields


async def _within(seconds: float, doing: Awaitable[Any]) -> None:
    """Wait for `doing`, but not for longer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await doing


def _failed_with(kind: type[BaseException], *tasks: asyncio.Task[None]) -> bool:
    return any(task.done() and isinstance(task.exception(), kind) for task in tasks)


async def _first_of(*tasks: asyncio.Task[None], within_s: float | None = None) -> bool:
    """Wait until one has ended, but not for longer; whether one has."""
    ended, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(ended)
