"""A request as it arrives: head, and the body as a source that nobody has read yet. Pure.

The body is a source, not bytes, so that large uploads can pass through without being held.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from aisix.core.endpoints import EndpointSpec
from aisix.errors import GatewayError


class HeaderView(Protocol):
    """Read access to request headers; names in lower case, repeated ones joined by commas."""

    def get(self, name: str, /) -> str | None:
        """The value of `name`, or None. `name` is in lower case."""

    def items(self) -> Iterable[tuple[str, str]]:
        """All names with their values."""


class RequestBody(Protocol):
    """A request body as a source: read whole, or chunk by chunk, never both."""

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge above `limit` bytes (0 = none)."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, with backpressure to the caller. It may be left half read, and
        then read on: no generator, which would have to be closed."""


@dataclass(slots=True)
class InboundRequest:
    """A parsed request head and its body source. `path_name` is the alias found in the path, if
    any, `resource` the response id or the rest of the path below a row's own, `query` the undecoded
    text behind the question mark, which may hold a key.

    `refusal` is set when the request cannot be served at all (no such route, too large): the
    pipeline raises it, so that it is logged and counted like everything else.
    """

    request_id: str
    spec: EndpointSpec
    method: str
    path: str
    headers: HeaderView
    body: RequestBody
    client_address: str = ""
    path_name: str | None = None
    resource: str = ""
    query: str = ""
    refusal: GatewayError | None = None
