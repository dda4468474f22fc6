"""What the supervisor makes before the first fork, and what a child does with it first.

Sockets, shared memory and the meeting point outlive every child: a successor finds what the dead
one had. Each child closes what is not its own, or a socket would go on listening after its owner
has closed it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from aisix.config import Config
from aisix.lifecycle import Listener, Shutdown
from aisix.limits.shared import SharedTable
from aisix.telemetry import logs
from aisix.telemetry.shared import SeriesRegion
from aisix.workers.lifeline import Lifeline
from aisix.workers.link import Meeting
from aisix.workers.roster import Roster


@dataclass(frozen=True, slots=True)
class Heritage:
    """`proxies` holds one listener for each worker, `doors` those of the control process; `regions`
    holds the metrics of each worker, and last those of the control process."""

    config: Config
    proxies: Sequence[Listener]
    doors: Sequence[Listener]
    proxy_url: str
    meeting: Meeting
    roster: Roster
    limits: SharedTable
    regions: Sequence[SeriesRegion]

    def become_worker(self, worker: int) -> Listener:
        """Close what is not this worker's; its own listener."""
        self._close_all_but([self.proxies[worker]])
        self.meeting.close()
        return self.proxies[worker]

    def become_control(self) -> None:
        """Close what is the workers'."""
        self._close_all_but(self.doors)

    def close(self) -> None:
        """Close every socket; the children's copies live on."""
        self._close_all_but(())
        self.meeting.close()

    def end_worker(self, worker: int) -> None:
        """Kill a worker; the supervisor starts its successor."""
        pid = self.roster.pid(worker)
        if pid:
            os.kill(pid, signal.SIGKILL)

    def _close_all_but(self, kept: Sequence[Listener]) -> None:
        for listener in (*self.proxies, *self.doors):
            if not any(listener is one for one in kept):
                listener.stop()


def begin(config: Config, lifeline: Lifeline, **marks: int) -> Shutdown:
    """What every child does first in its loop: its own log, whose lines carry `marks`, and an ear
    for the supervisor."""
    logs.configure(
        level=config.observability.log_level,
        service_name=config.observability.service_name,
        marks=marks,
    )
    logs.register_secrets(config.secrets)
    shutdown = Shutdown()
    lifeline.watch(shutdown.on_signal, shutdown.on_orphaned)
    return shutdown


async def first_of(*tasks: asyncio.Task[object]) -> None:
    """Until one of them is done. Raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
