"""The doors between the halves and stages: protocols, and the values that pass through them. Pure.

Control half (store, admin, tokens, scrape) and data half (snapshot, limiter, transport, pipeline)
meet only here, even in one process, so that they can live in different ones. Stages never import
each other; what one needs of another is a protocol below, wired in `aisix.app`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from aisix.core.endpoints import EndpointSpec
from aisix.core.exchange import Exchange, Hold, Payload, Usage
from aisix.core.resources import Credential, Deployment, TokenCredential
from aisix.core.snapshot import Snapshot
from aisix.errors import GatewayError, UpstreamFailed, UpstreamRejected


class Clock(Protocol):
    """Time, injected: tests move it by hand."""

    def monotonic(self) -> float:
        """Seconds, for intervals."""

    def time(self) -> float:
        """UTC epoch seconds, for records."""


# ── 1 · the way back ────────────────────────────────────────────────────────────────────────────


class Reply(Protocol):
    """The way back to the caller. Writing waits for the flush: that is the backpressure.

    Every method raises CallerDeparted when the caller has gone.
    """

    @property
    def committed(self) -> bool:
        """Whether a status line has been sent."""

    @property
    def ended(self) -> bool:
        """Whether the end of the answer has been written."""

    @property
    def departed(self) -> bool:
        """Whether the caller has closed its connection."""

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer at once, any content type."""

    async def start(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        """The head of an answer that follows in pieces, of `length` bytes if that is known."""

    async def write(self, data: bytes) -> None:
        """More of a started answer; returns when it has been handed to the socket."""

    async def switch(self, headers: Mapping[str, str]) -> None:
        """Agree to another protocol (101): what is written from now on is no HTTP. A departure is
        not an end of its own any more, see `wait_departed`."""

    async def wait_departed(self) -> None:
        """Until the caller has gone."""

    async def finish(self) -> None:
        """The end of a started answer."""

    def abort(self) -> None:
        """Close the connection without a proper end: the caller must see that the answer is cut."""


# ── 4 · may it pass ─────────────────────────────────────────────────────────────────────────────


class Limiter(Protocol):
    """Admission. A coroutine, because buckets may live in another process or host."""

    async def admit(self, exchange: Exchange) -> Hold:
        """Reserve what the exchange may use. Raises LimitExceeded."""


# ── 5 · Azure OpenAI ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds; 0 = none. `first_byte_s` counts from hand-over, `idle_s` is the gap between bytes,
    `total_s` the whole call (never set for a stream)."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """How an upstream is reached, where that differs from the gateway's own settings.

    `ca_cert` is PEM text of who may vouch for it, `verify` whether its certificate is checked;
    None is "as configured". `link_local` lets a call go to a link-local or metadata address.
    """

    ca_cert: str | None = field(default=None, repr=False)
    verify: bool | None = None
    link_local: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class UpstreamTarget:
    """What all calls to one operation of one deployment have in common; compared by identity.

    A transport keeps what it has prepared for a target, so makers hand in the same object again
    and again, and a new one for whatever differs: a changed credential is another target.
    `streaming` says that answers come bit by bit and are to be handed over as they come. With a
    scheme of ws or wss the target is a tunnel: the call asks for a WebSocket, its answer has the
    status 101, and then the call's body and the answer's carry the bytes of both directions as they
    are. A tunnel that is refused has an answer without a body.
    """

    method: str
    url: str = field(repr=False)
    headers: Sequence[tuple[str, str]] = field(repr=False, default=())
    streaming: bool = False
    route: Route = Route()

    @property
    def is_tunnel(self) -> bool:
        """Whether a call to it asks for a WebSocket."""
        return self.url.startswith(("ws://", "wss://"))


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """One HTTP request to a target. `headers` are this call's own, beside the target's; `body` is
    bytes, or a source that can be sent only once, of `body_length` bytes when that is known."""

    target: UpstreamTarget
    headers: Sequence[tuple[str, str]] = field(repr=False, default=())
    body: bytes | AsyncIterator[bytes] = field(repr=False, default=b"")
    deadlines: Deadlines = Deadlines()
    body_length: int | None = None


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived. The body is pulled; not pulling holds the upstream back.

    A short answer to a call that does not stream may be held until it is whole.
    """

    status: int
    headers: Mapping[str, str]
    """Lower-case names; repeated ones joined by ", "."""
    first_byte_at: float
    """Monotonic second at which the first byte of the answer came in."""
    last_byte_at: float
    """Monotonic second of the newest body byte (of the head before any)."""

    async def read(self) -> bytes:
        """The next piece of the body, all that has arrived; b"" at its end.

        Raises UpstreamTimeout (idle, total) and UpstreamBroken (cut).
        """

    async def read_all(self, limit: int = 0) -> bytes:
        """The rest of the body, cut off after `limit` bytes when `limit` is not 0."""

    def let_end(self, within_s: float) -> None:
        """All that matters has been read: leaving the context now gives the upstream so many
        seconds to end the answer by itself, which saves its connection. What comes is dropped."""


def upstream_request_id(headers: Mapping[str, str]) -> str | None:
    """What the upstream's support asks for: Azure's id of a request, else OpenAI's."""
    return headers.get("apim-request-id") or headers.get("x-request-id")


class Transport(Protocol):
    """The wire. Leaving the context, however, ends the transfer at once."""

    def open(self, call: UpstreamCall) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send `call`, wait for the head. Raises UpstreamUnreachable, UpstreamTimeout."""

    async def close(self) -> None:
        """End all transfers and connections. Idempotent."""


class TokenSource(Protocol):
    """Entra ID tokens, from wherever they are fetched."""

    async def token(self, credential: TokenCredential) -> str:
        """A usable access token. Raises CredentialRefused, CredentialUnavailable."""

    async def renew(self, credential: TokenCredential, rejected: str) -> str:
        """A token other than `rejected`, which Azure refused; at most one forced fetch for it."""


@dataclass(frozen=True, slots=True)
class TokenLease:
    """How long a token may be kept by whoever asked for it: seconds from now, 0 = no longer."""

    refresh_in_s: float
    usable_s: float
    expires_in_s: float


class TokenLender(TokenSource, Protocol):
    """A source whose tokens are kept by others too: it says for how long."""

    def lease(self, credential: TokenCredential) -> TokenLease:
        """Of the token handed out last."""


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is known of a credential's token, for people: when it expires (None: there is none), and
    the newest failure to get one since the last success. UTC epoch seconds."""

    expires_at: float | None = None
    failure: tuple[float, str] | None = None


class TokenView(Protocol):
    """The tokens of the gateway, as admin endpoints show them."""

    def state(self, credential: TokenCredential) -> TokenState:
        """Of this credential; an empty one when no token of it was wanted yet."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found. `stage` is what is at fault, "" when nothing is; `message` says it in
    words, `fix` what to do, `said` is the upstream's own text. No secret is in any of them."""

    stage: str
    message: str
    fix: str = ""
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is at fault."""
        return not self.stage


class Adapter(Protocol):
    """One upstream dialect: checks what operators write, builds calls, explains refusals. Pure."""

    name: str

    def parse_api_base(self, api_base: str | None) -> str:
        """Canonical base. Raises FieldError with the reason and the fix."""

    def parse_api_version(self, api_version: str | None) -> str:
        """Checked api-version, the default for None. Raises FieldError."""

    def parse_secret(self, secret: str) -> Credential:
        """The credential that `secret` spells. Raises FieldError, never echoing it."""

    def check_credential(self, credential: Credential, *, api_base: str, now: float) -> None:
        """What else can be known of a credential that is about to be stored for `api_base`, at
        `now` (UTC epoch seconds). Raises FieldError, never echoing a secret."""

    def check_deployment_name(self, name: str) -> None:
        """Raises FieldError when `name` cannot be a deployment."""

    def build_call(
        self,
        spec: EndpointSpec,
        deployment: Deployment,
        *,
        payload: Payload,
        inject_stream_options: bool,
        token: str | None,
        forward: Sequence[tuple[str, str]],
        deadlines: Deadlines,
    ) -> UpstreamCall:
        """The HTTP request for one attempt. `token` is set when the credential is an Entra one."""

    def refused_stream_options(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the api-version does not know `stream_options`."""

    def refused_token(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the Entra token itself is bad (not the role)."""

    def explain(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        deployment: Deployment,
        of_object: bool = False,
    ) -> UpstreamRejected:
        """The error that a caller gets for this answer (decisions §4); it names no deployment.
        `of_object`: the request was about an object of the caller's."""

    def build_probe(
        self, deployment: Deployment, *, token: str | None, deadlines: Deadlines
    ) -> UpstreamCall:
        """A call that costs nothing and shows whether all settings are right; of a deployment
        without a name, those of the resource alone. Raises what `build_call` raises."""

    def judge_answer(
        self, status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
    ) -> Finding:
        """What the answer to a probe means."""

    def judge_failure(self, error: UpstreamFailed) -> Finding:
        """What it means that a probe has no answer."""


# ── 7, 8 · usage, metrics, log ──────────────────────────────────────────────────────────────────


class Meter(Protocol):
    """Reads usage and text out of the answer as it passes."""

    def observe(self, document: Mapping[str, Any], /) -> None:
        """One JSON answer, or the JSON of one stream event."""

    def observe_text(self, size_bytes: int, /) -> None:
        """So many bytes of UTF-8 that the model wrote, in stream events that say no more than the
        ones before them."""

    def usage(self, prompt_estimate_tokens: int) -> Usage:
        """What was reported, else an estimate that says so."""


class Recorder(Protocol):
    """Counts. Every method is synchronous, cheap and never raises."""

    def exchange_started(self, exchange: Exchange) -> None:
        """An exchange began (in-flight gauges)."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """An exchange was settled: the one place requests, tokens and latencies are counted."""

    def attempt_ended(
        self,
        deployment: Deployment,
        alias_name: str,
        *,
        ok: bool,
        status: int | None = None,
        reached: bool = True,
    ) -> None:
        """One attempt is over, well or not. `status` is Azure's, None when no answer began;
        `reached` says whether the request got there at all."""

    def auth_decided(self, *, allowed: bool, reason: str) -> None:
        """A caller credential was judged."""

    def limit_decided(self, error: GatewayError | None) -> None:
        """The limiter admitted (None) or refused."""

    def token_fetched(self, *, ok: bool, reason: str) -> None:
        """The token authority was asked; `reason` is "cold", "refresh" or "rejected"."""

    def render(self) -> tuple[str, bytes]:
        """Content type and body of a scrape."""


class AccessLog(Protocol):
    """One line per exchange."""

    def write(self, exchange: Exchange) -> None:
        """Log a settled exchange."""


# ── control half ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoredResource:
    """One row of the store. `doc` holds no secret; `secret` and `header_values` (of a provider
    key's default headers) are plain in memory, sealed at rest.

    `fault` says why a row's document or secret cannot be read; it is never written.
    """

    kind: str
    id: str
    name: str
    revision: int
    doc: Mapping[str, Any]
    secret: str | None = field(default=None, repr=False)
    created_at: float = 0.0
    fault: str | None = None
    header_values: Mapping[str, str] = field(default_factory=dict, repr=False)


class StoreConflict(Exception):
    """Two resources of a kind would have the same name."""


class StaleRevision(Exception):
    """The row has another revision than the one the writer expected."""


class StoreUnavailable(Exception):
    """The store could not read or write; nothing was changed. The text names the cause."""


class ResourceStore(Protocol):
    """Durable resources. A write has reached the disk when its call returns.

    Every method raises StoreUnavailable when the storage fails.
    """

    async def all(self) -> list[StoredResource]:
        """Every row, oldest first."""

    async def list(self, kind: str) -> list[StoredResource]:
        """Rows of a kind, oldest first."""

    async def get(self, kind: str, id: str) -> StoredResource | None:
        """One row."""

    async def put(self, row: StoredResource, *, expected: int | None) -> None:
        """Insert (`expected` 0), replace (its revision), or either (None); a replaced row keeps
        its creation time. Raises StoreConflict, StaleRevision."""

    async def delete(self, kind: str, id: str, *, expected: int | None) -> bool:
        """Remove; False when there was none. Raises StaleRevision."""

    async def revision(self) -> int:
        """A number that grows with every write."""


class SnapshotSink(Protocol):
    """Where the control half publishes."""

    async def publish(self, snapshot: Snapshot) -> int:
        """Make `snapshot` effective everywhere; how many workers did not say in time that it is."""


class HealthView(Protocol):
    """Upstream health by alias, as admin endpoints show it."""

    def level(self, alias_name: str) -> int:
        """0 healthy, 1 shaky, 2 unhealthy."""

    def last_failure(self, alias_name: str) -> tuple[float, str] | None:
        """UTC time and reason of the newest failure since the last success."""
