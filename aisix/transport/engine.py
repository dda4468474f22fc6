"""What the transfers of one transport share on one loop: driver, handles, deadlines. I/O.

An engine is made for the loop that uses it and lives while it is used: when nothing has happened
for as long as a connection may be idle, it closes itself with all it keeps. So a quiet transport
holds no socket, no handle and no credential.

Deadlines of all transfers share one alarm. When it rings, every transfer is asked; the next ring is
the earliest answer, but not within `_SWEEP_GAP_S`: so many deadlines close together cost few
sweeps, and a deadline is at most that much late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aisix.transport.alarm import NEVER, Alarm
from aisix.transport.driver import Driver
from aisix.transport.handles import Handle, HandlePool
from aisix.transport.request import Wire

_SWEEP_GAP_S = 0.005


class Running(Protocol):
    """A transfer, as the engine sees it."""

    @property
    def peak_body_bytes(self) -> int:
        """The most that waited for the reader."""

    def look(self, now: float) -> float:
        """End it when a deadline has passed; the moment of its next one."""

    def end(self, error: BaseException | None) -> None:
        """End it, if it still runs."""


class Engine:
    """The parts, and the sweep. `now` is monotonic seconds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        wire: Wire,
        now: Callable[[], float],
        max_connections_kept: int,
    ) -> None:
        self.loop = loop
        self.now = now
        self.alarm = Alarm(loop, now=now, ring=self._sweep)
        self.driver = Driver(
            loop, now=now, finished=_finished, max_connections_kept=max_connections_kept
        )
        self.pool = HandlePool(wire, now=now, max_idle_s=wire.max_idle_s)
        self.transfers: set[Running] = set()
        self.peak_body_bytes = 0
        """The most that waited in a transfer that has been left."""
        self.closed = False
        self._max_idle_s = wire.max_idle_s or NEVER
        self._quiet_since = now()

    def left(self, transfer: Running) -> None:
        """The context of `transfer` was left, and the transfer has ended."""
        self.transfers.discard(transfer)
        self.peak_body_bytes = max(self.peak_body_bytes, transfer.peak_body_bytes)
        if not self.transfers and not self.closed:
            self._quiet_since = self.now()
            self.alarm.want(self._quiet_since + self._max_idle_s)

    def put_back(self, handle: Handle) -> None:
        """Keep the handle of a whole answer."""
        self.pool.give(handle, self.now())
        self.alarm.want(self.pool.due)

    def close(self) -> None:
        """Close handles and connections. Every transfer must have ended. Idempotent."""
        self.closed = True
        self.alarm.cancel()
        self.pool.clear()
        self.driver.close()

    def _sweep(self) -> None:
        now = self.now()
        if not self.transfers and now >= self._quiet_since + self._max_idle_s:
            self.close()
            return
        self.pool.expire(now)
        wanted = min([transfer.look(now) for transfer in tuple(self.transfers)], default=NEVER)
        wanted = min(wanted, self.pool.due)
        if not self.transfers:
            wanted = min(wanted, self._quiet_since + self._max_idle_s)
        if wanted < NEVER:
            self.alarm.want(max(wanted, now + _SWEEP_GAP_S))


def _finished(handle: Handle, code: int, text: str) -> None:
    receiver = handle.receiver
    if receiver is not None:
        receiver.on_end(code, text)
