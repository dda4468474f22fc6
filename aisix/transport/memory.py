"""A `Transport` without a wire: scripted answers in memory, for tests. No I/O.

An answer is written down in steps:
* bytes: a piece of the body, given to one `read`;
* an `asyncio.Event`: the upstream is silent until somebody sets it;
* an exception instance: raised there, as the wire would raise it, and on every later read.

    transport = MemoryTransport(clock).script(
        MemoryAnswer(
            headers={"content-type": "text/event-stream"},
            pieces=[b"data: {}\\n\\n", gate, b"data: [DONE]\\n\\n"],
        )
    )
    ...
    await transport.until(lambda: transport.closed == 1)
    assert transport.closed_early == 1
    assert transport.calls[0].target.url.endswith("/chat/completions")

Scripted answers are used in order, one per `open`; after them `respond(call)` is asked. The call's
deadlines hold as they do on the wire, in real seconds and only while a step is silent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aisix.core.ports import Clock, UpstreamAnswer, UpstreamCall
from aisix.errors import UpstreamUnreachable
from aisix.transport.body import read_all
from aisix.transport.failures import CLOSING, timed_out

Silence = asyncio.Event | BaseException
Step = bytes | asyncio.Event | BaseException


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """One scripted answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Sequence[Step] = ()
    """The body, step by step, up to its proper end."""
    connecting: Sequence[Silence] = ()
    """What happens before the connection stands."""
    before: Sequence[Silence] = ()
    """What happens between the connection and the head."""


class MemoryTransport:
    """Answers from scripts, and remembers what it was asked.

    `opened` counts calls handed over, `closed` the contexts left again, `closed_early` those of
    them whose answer had neither failed nor been read to its last step: a caller that went away.
    """

    def __init__(
        self, clock: Clock, respond: Callable[[UpstreamCall], MemoryAnswer] | None = None
    ) -> None:
        self._clock = clock
        self._respond = respond
        self._scripts: deque[MemoryAnswer] = deque()
        self._shut = asyncio.Event()
        self._changed = asyncio.Event()
        self.calls: list[UpstreamCall] = []
        self.bodies: list[bytes] = []
        """The request body of each call; one that comes from a source is as far as it was read."""
        self.opened = 0
        self.closed = 0
        self.closed_early = 0

    def script(self, *answers: MemoryAnswer) -> MemoryTransport:
        """Give the next calls these answers, in this order. Returns itself, for chaining."""
        self._scripts.extend(answers)
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`; it is asked again whenever a count above has changed."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    @asynccontextmanager
    async def open(self, call: UpstreamCall) -> AsyncIterator[UpstreamAnswer]:
        """Take the body, play the script up to the head. Raises what the script and the deadlines
        say, and LookupError when nothing is scripted for `call`."""
        if self._shut.is_set():
            raise UpstreamUnreachable(CLOSING)
        position = len(self.calls)
        self.calls.append(call)
        self.bodies.append(call.body if isinstance(call.body, bytes) else b"")
        answer = _MemoryTransfer(call, self._next(call), clock=self._clock, shut=self._shut)
        self.opened += 1
        self._changed.set()
        try:
            await answer.connected()
            if not isinstance(call.body, bytes):
                await self._take(call.body, position)
            await answer.answered()
            yield answer
        finally:
            self.closed += 1
            self.closed_early += answer.unfinished
            self._changed.set()

    async def _take(self, source: AsyncIterator[bytes], position: int) -> None:
        try:
            async for piece in source:
                self.bodies[position] += piece
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def close(self) -> None:
        """End all transfers: whatever waits raises. Idempotent."""
        self._shut.set()

    def _next(self, call: UpstreamCall) -> MemoryAnswer:
        if self._scripts:
            return self._scripts.popleft()
        if self._respond is None:
            raise LookupError(f"no answer is scripted for call {len(self.calls)}: {call!r}")
        return self._respond(call)


class _MemoryTransfer:
    """One script being played."""

    status: int
    headers: Mapping[str, str]
    first_byte_at: float
    last_byte_at: float

    def __init__(
        self, call: UpstreamCall, script: MemoryAnswer, *, clock: Clock, shut: asyncio.Event
    ) -> None:
        self._call = call
        self._script = script
        self._clock = clock
        self._shut = shut
        self._steps = deque(script.pieces)
        self._error: Exception | None = None
        self._started_at = asyncio.get_running_loop().time()
        self._may_end = False
        self.status = 0
        self.headers = {}
        self.first_byte_at = self.last_byte_at = 0.0

    @property
    def unfinished(self) -> bool:
        """Whether the script had more to say to somebody."""
        return self._error is None and not self._may_end and (self.status == 0 or bool(self._steps))

    def let_end(self, within_s: float) -> None:
        """What is left of the script matters to nobody."""
        self._may_end = within_s > 0

    async def connected(self) -> None:
        """Play the steps up to the connection."""
        for step in self._script.connecting:
            await self._play(step, "connect", self._call.deadlines.connect_s)

    async def answered(self) -> None:
        """Play the steps up to the head."""
        for step in self._script.before:
            await self._play(step, "first_byte", self._call.deadlines.first_byte_s)
        self.status = self._script.status
        self.headers = {name.lower(): value for name, value in self._script.headers.items()}
        self.first_byte_at = self.last_byte_at = self._clock.monotonic()

    async def read(self) -> bytes:
        """The next piece; b"" at the end, again and again. Cancelling a read loses no step."""
        while self._steps:
            step = self._steps[0]
            if not isinstance(step, bytes):
                await self._play(step, "idle", self._call.deadlines.idle_s)
            self._steps.popleft()
            if isinstance(step, bytes) and step:
                self.last_byte_at = self._clock.monotonic()
                return step
        return b""

    async def read_all(self, limit: int = 0) -> bytes:
        """The rest of the body, cut off after `limit` bytes when `limit` is not 0."""
        return await read_all(self.read, limit)

    async def _play(self, step: Silence, phase: str, limit_s: float) -> None:
        if self._error is not None:
            raise self._error
        try:
            if isinstance(step, BaseException):
                raise step
            if not step.is_set():
                await self._silence(step, phase, limit_s)
        except Exception as error:
            self._error = error
            raise

    async def _silence(self, event: asyncio.Event, phase: str, limit_s: float) -> None:
        """Wait for `event` within the deadline of this phase and that of the whole call."""
        now = asyncio.get_running_loop().time()
        since = now if phase == "idle" else self._started_at
        total_s = self._call.deadlines.total_s
        limits = [(since + limit_s, phase, limit_s)] if limit_s else []
        if total_s:
            limits.append((self._started_at + total_s, "total", total_s))
        ends_at, phase, limit_s = min(limits, default=(0.0, phase, 0.0))
        waits = {asyncio.create_task(event.wait()), asyncio.create_task(self._shut.wait())}
        try:
            await asyncio.wait(
                waits,
                timeout=max(0.0, ends_at - now) if limits else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in waits:
                task.cancel()
        if event.is_set():
            return
        if self._shut.is_set():
            raise UpstreamUnreachable(CLOSING)
        raise timed_out(phase, limit_s, self._call)
