"""A request body that passes as it arrives: uploads of any size. I/O by the request's body.

It is counted on its way, so that one over the limit is refused where that shows, and its length is
told when the caller told it: not every upstream takes a body without one. Its beginning is held, so
that a small one can be sent once more when the upstream refuses the gateway's own token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from aisix.core.exchange import Payload
from aisix.core.request import InboundRequest
from aisix.errors import body_too_large
from aisix.routing.spool import Spool

NO_BODY = ("GET", "DELETE")

HELD_BYTES = 64 * 1024
"""Once so much of a body has passed, no more of it is held."""


class Passage:
    """The pieces of a body, counted, and held as far as asked for. `limit_bytes` 0 = no limit."""

    def __init__(self, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> None:
        self.read_bytes = 0
        self._pieces = pieces
        self._limit_bytes = limit_bytes
        self._ended = False
        self._spool = Spool()
        self._passed = False
        self._final = False

    @property
    def replayable(self) -> bool:
        """Whether all that was read of it is held: then it can begin again."""
        return self._spool.size == self.read_bytes

    async def next(self, *, hold: bool) -> bytes:
        """The next piece from the caller; b"" at the end. Raises BodyTooLarge, CallerDeparted."""
        if self._ended:
            return b""
        piece = await anext(self._pieces, b"")
        self._ended = not piece
        self.read_bytes += len(piece)
        if self._limit_bytes and self.read_bytes > self._limit_bytes:
            raise body_too_large(self._limit_bytes)
        if hold:
            await self._spool.write(piece)
        return piece

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """All of it: what is held, then the rest as it arrives."""
        self._passed = False  # here and not when the first is asked for: see `let_go`
        return self._pass()

    async def _pass(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._spool.pieces()) as held:
            async for piece in held:
                yield piece
        while piece := await self.next(hold=self._is_worth_holding()):
            yield piece
        self._passed = True
        if self._final:
            self.close()

    def _is_worth_holding(self) -> bool:
        return not self._final and self.replayable and self.read_bytes < HELD_BYTES

    def let_go(self) -> None:
        """It will not begin anew: what is held is given back as soon as it has passed, which is
        now, or at the end of what has begun."""
        self._final = True
        if self._passed:
            self.close()

    def close(self) -> None:
        """Give back what is held. Idempotent."""
        self._spool.close()


class PassedBody:
    """A body as a BodySource that nobody edits."""

    def __init__(self, passage: Passage, *, content_type: str, length: int | None) -> None:
        self.content_type = content_type
        self.length = length
        self._passage = passage

    @property
    def replayable(self) -> bool:
        """Whether it can be opened once more."""
        return self._passage.replayable

    def open(self, deployment_name: str) -> AsyncIterator[bytes]:
        """The body; the same for every deployment."""
        return self._passage.pieces()

    def let_go(self) -> None:
        """It will not be opened again."""
        self._passage.let_go()

    def close(self) -> None:
        """Give back what is held of it."""
        self._passage.close()


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
