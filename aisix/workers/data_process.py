"""A worker: the data half in a process of its own. It knows no store and no azure-identity.

It accepts connections when the control process has sent it the first snapshot. When that process
dies it serves on; when a bug ends the link's task, the worker ends too and its successor begins
afresh.
"""

from __future__ import annotations

import asyncio
import logging

from aisix.app import Publisher, SystemClock, build_data
from aisix.core.snapshot import Snapshot, SnapshotHolder
from aisix.lifecycle import drain
from aisix.limits.shared import SharedBuckets
from aisix.routing.health import Health
from aisix.telemetry import logs
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.web.base import ProcessState
from aisix.workers.heritage import Heritage, begin, first_of
from aisix.workers.lifeline import Lifeline
from aisix.workers.tokens import LinkedTokens
from aisix.workers.uplink import Uplink

_log = logging.getLogger("aisix.workers")


async def serve_worker(heritage: Heritage, worker: int, lifeline: Lifeline) -> int:
    """Serve until told to stop. Exit status: 0 drained, 1 cut short."""
    config = heritage.config
    listener = heritage.become_worker(worker)
    shutdown = begin(config, lifeline, worker=worker)
    clock = SystemClock()
    state = ProcessState()
    snapshots = SnapshotHolder()
    uplink = Uplink(worker=worker, meeting=heritage.meeting)
    tokens = LinkedTokens(uplink, clock)
    health = Health(clock, on_change=uplink.note)
    recorder = PrometheusRecorder(clock=clock, health=health, region=heritage.regions[worker])
    logs.on_dropped(recorder.log_lines_lost)
    data = build_data(
        config,
        clock=clock,
        state=state,
        snapshots=snapshots,
        publisher=Publisher(snapshots, health, recorder),
        health=health,
        recorder=recorder,
        tokens=tokens,
        buckets=SharedBuckets(heritage.limits, worker=worker, clock=clock),
    )

    async def apply(snapshot: Snapshot) -> None:
        await data.publisher.publish(snapshot)
        if not state.ready and not state.draining:
            state.ready = True
            listener.open(data.front)
            _log.debug("worker.ready", extra={"resource_revision": snapshot.revision})

    loop = asyncio.get_running_loop()
    following = loop.create_task(uplink.run(apply, health))
    stopping = loop.create_task(shutdown.requested.wait())
    drained = False
    try:
        await first_of(following, stopping)
        drained = await drain(config, state, listeners=[listener], shutdown=shutdown)
    finally:
        for task in (following, stopping):
            task.cancel()
        await asyncio.gather(following, stopping, return_exceptions=True)
        await listener.close()
        await tokens.close()
        await data.close()
        lifeline.unwatch()
    return 0 if drained else 1
