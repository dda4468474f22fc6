"""The control process: store, admin API, Entra tokens and the scrape, for all workers.

It opens its doors when every worker serves by what the store holds, and ends when the last worker
has gone: until then a request under way may need a token. Its death stops no traffic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from aisix.app import SystemClock, build_adapters, build_transport, secrets_of
from aisix.control import ControlHalf, build_control
from aisix.core.ports import StoreUnavailable
from aisix.core.snapshot import Snapshot
from aisix.lifecycle import Shutdown, announce, drain
from aisix.telemetry import logs
from aisix.telemetry.metrics import PrometheusRecorder
from aisix.web.applications import admin_application, metrics_application
from aisix.web.base import ProcessState
from aisix.workers.heritage import Heritage, begin, first_of
from aisix.workers.hub import Hub
from aisix.workers.lifeline import Lifeline

_log = logging.getLogger("aisix.workers")


class _Publisher:
    """SnapshotSink: effective in the workers first, then for what this process keeps by name."""

    def __init__(self, hub: Hub, recorder: PrometheusRecorder) -> None:
        self._hub = hub
        self._recorder = recorder
        self.revision = 0

    async def publish(self, snapshot: Snapshot) -> int:
        logs.register_secrets(secrets_of(snapshot), group="resources")
        lagging = await self._hub.publish(snapshot)
        self._recorder.publish(snapshot)
        self.revision = snapshot.revision
        return lagging


class _Scrape:
    """The metrics of all processes, of their number, and of the memory that they share."""

    def __init__(self, recorder: PrometheusRecorder, hub: Hub, heritage: Heritage) -> None:
        self._recorder = recorder
        self._hub = hub
        self._roster = heritage.roster
        self._limits = heritage.limits

    def __call__(self) -> tuple[str, bytes]:
        self._recorder.workers_changed(live=len(self._hub), restarts=self._roster.restarts)
        self._recorder.limiter_evicted(self._limits.evictions)
        return self._recorder.render()


async def serve_control(heritage: Heritage, lifeline: Lifeline) -> int:
    """Serve until told to stop. Exit status: 0 drained, 1 refused or cut short."""
    config = heritage.config
    heritage.become_control()
    shutdown = begin(config, lifeline)
    clock = SystemClock()
    roster = heritage.roster

    def replace(worker: int) -> None:
        recorder.worker_lagged()
        roster.note_lagged()
        heritage.end_worker(worker)

    hub = Hub(workers=roster.workers, meeting=heritage.meeting, replace=replace)
    *regions, own_region = heritage.regions
    recorder = PrometheusRecorder(clock=clock, health=hub, region=own_region, regions=regions)
    logs.on_dropped(recorder.log_lines_lost)
    for _ in range(roster.lagged):
        recorder.worker_lagged()  # those that a control process before this one has counted
    publisher = _Publisher(hub, recorder)
    try:
        control = await build_control(
            config,
            clock=clock,
            adapters=build_adapters(config),
            health=hub,
            sink=publisher,
            recorder=recorder,
            transport=build_transport(config, clock),
        )
    except StoreUnavailable as error:
        _log.error("gateway.refused", extra={"error": str(error)})
        return 1
    state = ProcessState()
    try:
        await hub.open(control.tokens)
        if await _everyone_follows(heritage, hub, shutdown):
            _open(heritage, control, render=_Scrape(recorder, hub, heritage), state=state)
            _announce(heritage, publisher)
            await shutdown.requested.wait()
        hub.wind_down()
        drained = await drain(config, state, listeners=heritage.doors, shutdown=shutdown)
        await _alone(hub, shutdown)
    finally:
        for listener in heritage.doors:
            await listener.close()
        await hub.close()
        await control.close()
        lifeline.unwatch()
    return 0 if drained else 1


async def _everyone_follows(heritage: Heritage, hub: Hub, shutdown: Shutdown) -> bool:
    """Wait for all workers; False when told to stop first. After a restart of this process only
    so long as a write would."""
    loop = asyncio.get_running_loop()
    wait = hub.replace_late if heritage.roster.was_ready else hub.wait_current
    current = loop.create_task(wait())
    stopping = loop.create_task(shutdown.requested.wait())
    try:
        await first_of(current, stopping)
    finally:
        for task in (current, stopping):
            task.cancel()
    return not shutdown.requested.is_set()


def _open(
    heritage: Heritage,
    control: ControlHalf,
    *,
    render: Callable[[], tuple[str, bytes]],
    state: ProcessState,
) -> None:
    config = heritage.config
    path = config.observability.metrics.prometheus.path
    applications = {
        "admin": partial(
            admin_application, control.service, admin_keys=config.admin.admin_keys, state=state
        ),
        "metrics": partial(metrics_application, render, path=path, state=state),
    }
    state.ready = True
    for listener in heritage.doors:
        listener.open(applications[listener.name]())


def _announce(heritage: Heritage, publisher: _Publisher) -> None:
    roster = heritage.roster
    if roster.was_ready:
        _log.info("control.ready", extra={"resource_revision": publisher.revision})
        return
    doors = {listener.name: listener.url for listener in heritage.doors}
    announce(
        heritage.config,
        {"proxy": heritage.proxy_url, **doors},
        resource_revision=publisher.revision,
        workers=roster.workers,
        pids=roster.pids(),
    )
    roster.note_ready()


async def _alone(hub: Hub, shutdown: Shutdown) -> None:
    """Until the last worker has gone, or a second signal ends all."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(hub.wait_alone()), loop.create_task(shutdown.at_once.wait())]
    try:
        await first_of(*tasks)
    finally:
        for task in tasks:
            task.cancel()
