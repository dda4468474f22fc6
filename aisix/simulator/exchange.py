"""One request as it was read, and one answer before it is written.

`Call` is what the handler of an operation gets; it returns `Json`, `Events`, `Content` or a
`Fault`, and the surface makes an `Answer` of it. Events and pieces are lazy, so an answer of any
size takes no memory. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aisix.simulator.content import JsonObject
from aisix.simulator.faults import Fault
from aisix.simulator.forms import Form
from aisix.simulator.operations import Place
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import Script

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One request, read whole. Header names are lower case; `form` is a multipart body."""

    method: str
    place: Place
    query: Mapping[str, str]
    headers: Mapping[str, str]
    json: Any = None
    form: Form | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a body, events, or pieces of a body (`length` bytes of them, if known).

    `late_error` is the event with which a stream fails when the script says so.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    events: Iterator[bytes] | None = None
    pieces: Iterator[bytes] | None = None
    length: int | None = None
    late_error: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that has passed the gates, and what a handler may want besides."""

    inbound: Inbound
    script: Script
    options: SimulatorOptions
    now: int
    hex_id: Callable[[], str]  # 32 hex digits, new at each call

    @property
    def body(self) -> JsonObject:
        """The JSON body."""
        body: JsonObject = self.inbound.json
        return body

    @property
    def form(self) -> Form:
        """The multipart body."""
        return self.inbound.form or Form()

    @property
    def ids(self) -> tuple[str, ...]:
        """The names in the path."""
        return self.inbound.place.ids

    @property
    def deployment(self) -> str:
        """The deployment's name."""
        return self.inbound.place.deployment


@dataclass(frozen=True, slots=True)
class Json:
    """200 with a JSON body."""

    value: JsonObject
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Events:
    """200 with server-sent events. `late_error` stands in for the usual event of `fail`."""

    events: Iterator[bytes]
    headers: Headers = ()
    late_error: Callable[[JsonObject], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """200 with a body that is not JSON, in pieces; chunked when its length is not given."""

    kind: str
    pieces: Iterator[bytes]
    length: int | None = None
    headers: Headers = ()


Outcome = Json | Events | Content | Fault
Handler = Callable[[Call], Outcome]
