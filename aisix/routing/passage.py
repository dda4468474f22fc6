"""A request body that passes as it arrives, unread: uploads of any size. I/O by the request's body.

It is counted on its way, so that one over the limit is refused where that shows, and its length is
told when the caller told it: not every upstream takes a body without one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aisix.core.exchange import Payload
from aisix.core.request import InboundRequest
from aisix.errors import BodyTooLarge

NO_BODY = ("GET", "DELETE")


class Passage:
    """The pieces of a body, counted. `limit_bytes` 0 = no limit."""

    def __init__(self, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> None:
        self.read_bytes = 0
        self.ended = False
        self._pieces = pieces
        self._limit_bytes = limit_bytes

    async def next(self) -> bytes:
        """The next piece from the caller; b"" at the end. Raises BodyTooLarge, CallerDeparted."""
        if self.ended:
            return b""
        piece = await anext(self._pieces, b"")
        self.ended = not piece
        self.read_bytes += len(piece)
        if self._limit_bytes and self.read_bytes > self._limit_bytes:
            raise BodyTooLarge(f"request body exceeds {self._limit_bytes}-byte limit")
        return piece


class PassedBody:
    """A body as a BodySource that nobody edits."""

    def __init__(self, passage: Passage, *, content_type: str, length: int | None) -> None:
        self.content_type = content_type
        self.length = length
        self._passage = passage

    @property
    def replayable(self) -> bool:
        """Only as long as nothing of it was sent."""
        return not self._passage.read_bytes and not self._passage.ended

    async def open(self, deployment_name: str) -> AsyncIterator[bytes]:
        """The body; the same for every deployment."""
        while piece := await self._passage.next():
            yield piece

    def close(self) -> None:
        """Nothing is held."""


def pass_body(request: InboundRequest, *, limit_bytes: int) -> Payload:
    """The body of `request`, not read yet; what a GET or DELETE may carry is left."""
    payload = Payload(document={}, requested=request.path_name or "")
    headers = request.headers
    declared = headers.get("content-length")
    if request.method in NO_BODY or declared == "0":
        return payload
    if declared is None and headers.get("transfer-encoding") is None:
        return payload
    content_type = headers.get("content-type") or ""
    payload.source = PassedBody(
        Passage(request.body.chunks(), limit_bytes=limit_bytes),
        content_type=content_type if content_type.isascii() and content_type.isprintable() else "",
        length=int(declared) if declared is not None else None,
    )
    return payload
