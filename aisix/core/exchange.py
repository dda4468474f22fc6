"""One request and its answer, from arrival to settlement: the value every stage reads and fills.
Pure.

Law: phases move only along TRANSITIONS. Before COMMITTED nothing has reached the caller and the
answer may still become an error status; after it the only honest failure is a late error event or
a cut connection. An exchange ends exactly once, in DONE or ABORTED. Times are monotonic seconds
unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from aisix.core.request import InboundRequest
from aisix.core.resources import Alias, ApiKey, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import GatewayError

SWITCHING_PROTOCOLS = 101
"""The status of a session."""


class Hold(Protocol):
    """What an admitted exchange holds of its limits. Ends exactly once; later calls do nothing."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The `x-ratelimit-*` headers as they stood at admission."""

    def settle(self, total_tokens: int) -> None:
        """The exchange used so many tokens: correct the reservation, free the concurrency slot."""

    def keep(self) -> None:
        """What was reserved is taken for used: the work goes on where nobody will count it."""

    def release(self, *, keep_request: bool) -> None:
        """No tokens were used. `keep_request` leaves the request counted (Azure answered)."""


class Phase(Enum):
    """Where an exchange stands."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is Python code

    NEW = "new"
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    COMMITTED = "committed"
    DONE = "done"
    ABORTED = "aborted"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.ADMITTED, Phase.COMMITTED, Phase.DONE, Phase.ABORTED}),
    Phase.ADMITTED: frozenset({Phase.DISPATCHED, Phase.COMMITTED, Phase.DONE, Phase.ABORTED}),
    Phase.DISPATCHED: frozenset({Phase.COMMITTED, Phase.DONE, Phase.ABORTED}),
    Phase.COMMITTED: frozenset({Phase.DONE, Phase.ABORTED}),
    Phase.DONE: frozenset(),
    Phase.ABORTED: frozenset(),
}


class Usage(NamedTuple):
    """Tokens of one exchange. `estimated` marks figures of our own making. `audio_seconds` is what
    was transcribed, where that is measured by time and not in tokens.

    A tuple, since one is made for every exchange and a frozen dataclass takes five times as long.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    audio_seconds: float = 0.0


class BodySource(Protocol):
    """A request body that goes upstream as it arrives."""

    content_type: str
    """What the upstream is told of it; "" for nothing."""
    length: int | None
    """In bytes, as it will be sent; None when that is not known."""

    @property
    def replayable(self) -> bool:
        """Whether it can be opened once more."""

    def open(self, deployment_name: str) -> AsyncIterator[bytes]:
        """The bytes for a deployment, whose name takes the place of the alias. Raises BadRequest
        and BodyTooLarge where the body shows to be so, CallerDeparted."""

    def let_go(self) -> None:
        """It will not be opened again: what is held for that need not be. Idempotent."""

    def close(self) -> None:
        """Nothing of it is needed any more. Idempotent."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a request asks of an existing object beside its body: the method, the object (an id, or
    the rest of the path from its slash), and the query as the caller spelt it."""

    method: str
    resource: str
    query: str = ""


@dataclass(slots=True)
class Payload:
    """A request body: a checked JSON document, or a source of bytes. Never logged.

    `document` goes upstream after rewriting; `raw` is what it was read from, for who can edit it
    without a rebuild; b"" for a document that was made otherwise. With a `source` the document
    holds what is known of the body by now: the small fields of a form. `errand` is set when the
    request is about existing objects. A session's source has no end, and `query` is what of the
    request's own goes upstream."""

    document: dict[str, Any] = field(repr=False)
    requested: str
    stream: bool = False
    include_usage: bool = False
    raw: bytes = field(repr=False, default=b"")
    source: BodySource | None = field(repr=False, default=None)
    errand: Errand | None = field(repr=False, default=None)
    query: tuple[tuple[str, str], ...] = ()

    def let_go(self) -> None:
        """No call will be built from it any more: a body can be large, and its answer long."""
        self.document = {}
        self.raw = b""
        if self.source is not None:
            self.source.let_go()

    def close(self) -> None:
        """The exchange has ended."""
        if self.source is not None:
            self.source.close()


@dataclass(slots=True)
class Timings:
    """Monotonic marks; 0.0 = not reached. `dispatched` is when the last attempt was given to the
    wire, `first_token` when the first event with content had been read.
    """

    arrived: float
    dispatched: float = 0.0
    upstream_first_byte: float = 0.0
    upstream_last_byte: float = 0.0
    first_token: float = 0.0
    first_out: float = 0.0
    ended: float = 0.0


@dataclass(slots=True)
class Exchange:
    """State of one exchange. Stages fill it in order; settlement reads it once.

    `seal` makes of an upstream's response id the one that this caller gets to see. `unfinished`:
    the upstream goes on working behind its answer (a background response). `closed_by`
    says who ended a session ("caller", "upstream", "gateway"), `close_code` how.
    """

    request: InboundRequest
    snapshot: Snapshot
    timings: Timings
    phase: Phase = Phase.NEW
    caller: ApiKey | None = None
    payload: Payload | None = None
    alias: Alias | None = None
    deployment: Deployment | None = None
    seal: Callable[[str], str] | None = field(repr=False, default=None)
    hold: Hold | None = None
    prompt_estimate_tokens: int = 0
    usage: Usage | None = None
    served_model: str | None = None
    upstream_request_id: str | None = None
    upstream_status: int | None = None
    finish_reason: str | None = None
    unfinished: bool = False
    closed_by: str | None = None
    close_code: int | None = None
    attempts: int = 0
    status: int = 0
    error: GatewayError | None = None
    departed: bool = False
    settled: bool = False

    @property
    def id(self) -> str:
        """The request id, the same in headers, logs and at the upstream."""
        return self.request.request_id

    @property
    def streaming(self) -> bool:
        """Whether the caller asked for a stream, as far as it gets one."""
        return self.payload is not None and self.payload.stream

    @property
    def outcome(self) -> str:
        """The closed set that metrics carry (aisix-behaviour: 429, 2xx/3xx, other 4xx, rest)."""
        if self.departed:
            return "client_cancelled"
        if self.status == 429:
            return "rate_limited"
        if self.error is not None and self.phase is Phase.ABORTED:
            return "upstream_error"
        if 200 <= self.status < 400 or self.status == SWITCHING_PROTOCOLS:
            return "success"
        if 400 <= self.status < 500:
            return "client_error"
        return "upstream_error"

    def advance(self, phase: Phase) -> None:
        """Move to `phase`; RuntimeError when the table forbids it."""
        if phase not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"exchange {self.id}: {self.phase.value} -> {phase.value}")
        self.phase = phase

    @property
    def ended(self) -> bool:
        """Whether the exchange has reached a terminal phase."""
        return not TRANSITIONS[self.phase]


def merge_usage(known: Usage | None, seen: Usage) -> Usage:
    """Per-field maximum over a stream: later chunks may repeat or complete earlier counts."""
    if known is None:
        return seen
    return seen._replace(
        prompt_tokens=max(known.prompt_tokens, seen.prompt_tokens),
        completion_tokens=max(known.completion_tokens, seen.completion_tokens),
        total_tokens=max(known.total_tokens, seen.total_tokens),
        cached_tokens=max(known.cached_tokens, seen.cached_tokens),
        reasoning_tokens=max(known.reasoning_tokens, seen.reasoning_tokens),
        audio_seconds=max(known.audio_seconds, seen.audio_seconds),
    )
