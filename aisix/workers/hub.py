"""The control process's side of the links: publishes to the workers and collects what they see.

Implements SnapshotSink (a publication is over when every worker has said that it is effective, or
after 2 s), HealthView (the worst of what the workers report) and answers their wishes for tokens.
A worker that is late is named, counted to whoever wrote, and replaced: it is killed, and its
successor begins with the newest snapshot. asyncio.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aisix.core.ports import TokenLender
from aisix.core.snapshot import Snapshot
from aisix.errors import CredentialRefused, UpstreamFailed
from aisix.workers.link import (
    Applied,
    HealthReport,
    Link,
    LinkLost,
    Meeting,
    Message,
    Publication,
    TokenGiven,
    TokenRefused,
    TokenWanted,
    encode,
)

ACKNOWLEDGE_S = 2.0
"""How long a write waits for the workers (decisions §9)."""

_log = logging.getLogger("aisix.workers")


@dataclass(slots=True, eq=False)
class _Peer:
    """A linked worker: what it serves by and what it sees."""

    link: Link
    serial: int = 0
    health: dict[str, HealthReport] = field(default_factory=dict)


class Hub:
    """All workers, seen from the control process."""

    def __init__(
        self,
        *,
        workers: int,
        meeting: Meeting,
        replace: Callable[[int], None],
        acknowledge_s: float = ACKNOWLEDGE_S,
    ) -> None:
        """`replace` ends the worker of a number; the supervisor starts its successor."""
        self._workers = workers
        self._meeting = meeting
        self._replace = replace
        self._acknowledge_s = acknowledge_s
        self._peers: dict[int, _Peer] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._tokens: TokenLender | None = None
        self._server: asyncio.Server | None = None
        self._closing = False
        self._serial = 0
        self._frame: bytes | None = None
        self._current = asyncio.Event()
        self._alone = asyncio.Event()
        self._alone.set()

    def __len__(self) -> int:
        """Workers linked."""
        return len(self._peers)

    async def open(self, tokens: TokenLender) -> None:
        """Let the workers in. What was published before is what they get first."""
        self._tokens = tokens
        # a copy: a server closes its socket, and the meeting point is not this hub's alone
        listening = self._meeting.socket.dup()
        self._server = await asyncio.start_unix_server(self._accepted, sock=listening)

    async def wait_current(self, timeout_s: float | None = None) -> list[int]:
        """Until every worker serves by the newest publication; those that do not in time."""
        self._check()
        try:
            async with asyncio.timeout(timeout_s):
                await self._current.wait()
        except TimeoutError:
            return self._behind()
        return []

    async def replace_late(self) -> int:
        """Give the workers the time that a write has; replace those that need more."""
        late = await self.wait_current(self._acknowledge_s)
        for worker in late:
            _log.warning("worker.lagging", extra={"worker": worker})
            self._replace(worker)
        return len(late)

    def wind_down(self) -> None:
        """The workers are on their way out: who has gone is not waited for."""
        self._closing = True
        self._check()

    async def wait_alone(self) -> None:
        """Until no worker is linked."""
        await self._alone.wait()

    async def close(self) -> None:
        """End all links. Idempotent."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._connections, *self._answers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── SnapshotSink ──

    async def publish(self, snapshot: Snapshot) -> int:
        """Send `snapshot` to every worker, wait until it is effective; how many were late."""
        self._serial += 1
        self._frame = encode(Publication.of(self._serial, snapshot))
        self._current.clear()
        for peer in self._peers.values():
            peer.link.send_frame(self._frame)
        self._forget(frozenset(alias.name for alias in snapshot.every_alias()))
        return 0 if self._server is None else await self.replace_late()

    # ── HealthView ──

    def level(self, alias_name: str) -> int:
        """The worst that any worker sees."""
        return max((report.level for report in self._reports(alias_name)), default=0)

    def last_failure(self, alias_name: str) -> tuple[float, str] | None:
        """The newest failure that any worker saw since its last success."""
        failures = [report.failure for report in self._reports(alias_name) if report.failure]
        return max(failures, default=None)

    def _forget(self, known: frozenset[str]) -> None:
        for peer in self._peers.values():
            for name in peer.health.keys() - known:
                del peer.health[name]

    def _reports(self, alias_name: str) -> list[HealthReport]:
        peers = self._peers.values()
        return [peer.health[alias_name] for peer in peers if alias_name in peer.health]

    # ── links ──

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server's callback is one
        self._connections.add(task)
        try:
            link, worker = await self._meeting.greet(reader, writer)
            if not 0 <= worker < self._workers:
                raise LinkLost(f"no worker has the number {worker}")
            await self._serve(worker, _Peer(link))
        except LinkLost as lost:
            _log.debug("link.lost", extra={"reason": str(lost)})
        except asyncio.CancelledError:
            return  # only `close` cancels; asyncio would log a traceback
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, worker: int, peer: _Peer) -> None:
        before = self._peers.get(worker)
        if before is not None:
            before.link.close()  # its process has gone, or it would not have a successor
        self._peers[worker] = peer
        self._alone.clear()
        try:
            if self._frame is not None:
                peer.link.send_frame(self._frame)
            while True:
                self._take(peer, await peer.link.receive())
        finally:
            if self._peers.get(worker) is peer:
                del self._peers[worker]
            if not self._peers:
                self._alone.set()
            self._check()

    def _take(self, peer: _Peer, message: Message) -> None:
        if isinstance(message, Applied):
            peer.serial = message.serial
            self._check()
        elif isinstance(message, HealthReport):
            if message.level or message.failure:
                peer.health[message.alias_name] = message
            else:
                peer.health.pop(message.alias_name, None)
        elif isinstance(message, TokenWanted):
            answer = asyncio.get_running_loop().create_task(self._give(peer, message))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    def _behind(self) -> list[int]:
        wanted = self._peers if self._closing else range(self._workers)
        return [
            worker
            for worker in wanted
            if worker not in self._peers or self._peers[worker].serial != self._serial
        ]

    def _check(self) -> None:
        if self._behind():
            self._current.clear()
        else:
            self._current.set()

    async def _give(self, peer: _Peer, wanted: TokenWanted) -> None:
        """Answer a wish for a token, with the token or with the error that the keeper raised."""
        assert self._tokens is not None  # noqa: S101 - links are let in after it is set
        try:
            if wanted.rejected is None:
                token = await self._tokens.token(wanted.credential)
            else:
                token = await self._tokens.renew(wanted.credential, wanted.rejected)
        except UpstreamFailed as error:
            refusal = TokenRefused(
                number=wanted.number,
                refused=isinstance(error, CredentialRefused),
                message=error.message,
                detail=error.detail,
                retry_after_s=error.retry_after_s,
                should_retry=error.should_retry,
            )
            peer.link.send(refusal)
            return
        lease = self._tokens.lease(wanted.credential)
        peer.link.send(
            TokenGiven(
                number=wanted.number,
                token=token,
                refresh_in_s=lease.refresh_in_s,
                usable_s=lease.usable_s,
                expires_in_s=lease.expires_in_s,
            )
        )
