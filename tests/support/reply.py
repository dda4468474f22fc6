"""A Reply that remembers what it was given, and a caller that may be slow or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aisix.errors import CallerDeparted


class RecordingReply:
    """Implements Reply.

    `wrote` is set at every write; clear `readable` to make writes wait, as a caller does that does
    not read. `leave()` is the caller hanging up: the handler cancels the task, as the real one.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.finished = False
        self.aborted = False
        self.departed = False
        self.switched = False
        self.left = asyncio.Event()
        self.wrote = asyncio.Event()
        self.readable = asyncio.Event()
        self.readable.set()
        self.task: asyncio.Task[object] | None = None

    @property
    def committed(self) -> bool:
        """Whether a status line has been sent."""
        return self.status != 0

    @property
    def ended(self) -> bool:
        """Whether the end was written."""
        return self.finished

    @property
    def body(self) -> bytes:
        """All that was written."""
        return b"".join(self.pieces)

    def leave(self) -> None:
        """Hang up."""
        self.departed = True
        self.left.set()
        if self.task is not None and not self.switched:
            self.task.cancel()

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer."""
        await self.start(status, headers)
        await self.write(body)
        await self.finish()

    async def start(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        """The head."""
        if self.departed:
            raise CallerDeparted
        assert not self.committed, "a second head"
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}

    async def switch(self, headers: Mapping[str, str]) -> None:
        """Another protocol."""
        await self.start(101, headers)
        self.switched = True

    async def wait_departed(self) -> None:
        """Until `leave`."""
        await self.left.wait()

    async def write(self, data: bytes) -> None:
        """More of the answer."""
        assert self.committed, "a body without a head"
        assert not self.finished, "a write after the end"
        if self.departed:
            raise CallerDeparted
        self.pieces.append(data)
        self.wrote.set()
        await self.readable.wait()
        if self.departed:
            raise CallerDeparted

    async def finish(self) -> None:
        """The end."""
        assert not self.finished, "a second end"
        if self.departed:
            raise CallerDeparted
        self.finished = True

    def abort(self) -> None:
        """The connection is cut."""
        self.aborted = True
