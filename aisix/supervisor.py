"""The first process of a gateway with several workers: binds, forks, waits, restarts. No traffic.

It has no event loop and no thread, because it forks: after the first time again for each child that
dies. It imports what the workers need once, for all of them, and never azure-identity. Signals are
waited for, not handled; children get them as orders over their lifelines. Whatever kills this
process ends the lifelines, and with them the children.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aisix.config import Config
from aisix.lifecycle import Listener, StartRefused, bind_control, bind_shared
from aisix.limits.shared import SharedTable
from aisix.telemetry import logs
from aisix.telemetry.shared import SeriesRegion
from aisix.workers.data_process import serve_worker
from aisix.workers.heritage import Heritage
from aisix.workers.lifeline import Lifeline
from aisix.workers.link import Meeting
from aisix.workers.roster import Patience, Roster

CONTROL = "control"
LAST_GRACE_S = 3.0
"""How long children may take to end "at once" before they are killed."""

REGION_BYTES = 64 * 1024 * 1024
"""Room for the metrics of one process; memory is taken as series appear."""

_ENDING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (*_ENDING, signal.SIGCHLD)
_log = logging.getLogger("aisix.supervisor")

Run = Callable[[Lifeline], Coroutine[Any, Any, int]]


@dataclass(slots=True, eq=False)
class _Child:
    """A place among the children: what runs there, and who does so at the moment."""

    name: str
    run: Run
    worker: int | None = None
    pid: int = 0
    started_at: float = 0.0
    due_at: float = 0.0
    lifeline: Lifeline | None = None
    patience: Patience = field(default_factory=Patience)


def supervise(config: Config, workers: int) -> int:
    """Run the gateway with so many workers until it is told to stop. Exit status as of
    `aisix.lifecycle.serve`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    logs.configure(
        level=config.observability.log_level,
        service_name=config.observability.service_name,
        threaded=False,
    )
    logs.register_secrets(config.secrets)
    doors: list[Listener] = []
    try:
        proxies = bind_shared("proxy", config.proxy.addr, config.proxy.tls, count=workers)
        doors.extend(proxies)
        bind_control(config, doors)
    except StartRefused as error:
        _log.error("gateway.refused", extra={"error": str(error)})
        for listener in doors:
            listener.stop()
        return 1
    heritage = Heritage(
        config=config,
        proxies=proxies,
        doors=doors[workers:],
        proxy_url=proxies[0].url,
        meeting=Meeting(),
        roster=Roster(workers),
        limits=SharedTable.create(workers=workers),
        regions=[SeriesRegion.create(REGION_BYTES) for _ in range(workers + 1)],
    )
    # what is imported by now is shared by all children as long as nobody writes to it
    gc.collect()
    gc.freeze()
    return Supervisor(heritage, mask).run()


class Supervisor:
    """Keeps one control process and the workers running."""

    def __init__(self, heritage: Heritage, mask: set[int | signal.Signals]) -> None:
        """`mask` is what children block; the watched signals are blocked here."""
        self._heritage = heritage
        self._mask = mask
        self._children = [_Child(CONTROL, self._run_control)]
        for worker in range(heritage.roster.workers):
            self._children.append(_Child(f"worker {worker}", self._worker_runner(worker), worker))
        self._signals = 0
        self._refused = False
        self._clean = True
        self._kill_at = float("inf")

    def run(self) -> int:
        """Until every child has ended for good. Exit status: 0 drained, 1 refused or cut short."""
        while True:
            self._start_due()
            living = [child for child in self._children if child.pid]
            if self._ending and not living:
                break
            self._wait()
            self._reap()
        self._heritage.close()
        if not self._refused:
            _log.info("gateway.stopped", extra={"drained": self._clean})
        return 0 if self._clean else 1

    @property
    def _ending(self) -> bool:
        return bool(self._signals) or self._refused

    # ── starting ──

    def _start_due(self) -> None:
        now = time.monotonic()
        if self._ending:
            return
        for child in self._children:
            if not child.pid and child.due_at <= now:
                self._start(child)

    def _start(self, child: _Child) -> None:
        now = time.monotonic()
        lifeline = Lifeline()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, too little memory: that may pass
            lifeline.drop()
            lifeline.let_go()
            child.due_at = now + child.patience.delay_s(0.0)
            _log.error("process.not_started", extra={"child": child.name, "error": str(error)})
            return
        if not pid:
            self._become(child, lifeline)
        lifeline.drop()
        child.pid, child.lifeline, child.started_at = pid, lifeline, now
        if child.worker is not None:
            self._heritage.roster.enter(child.worker, pid)

    def _become(self, child: _Child, lifeline: Lifeline) -> None:
        """The rest of a child's life. Never returns."""
        status = 1
        try:
            for number in _ENDING:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            lifeline.let_go()
            for sibling in self._children:
                if sibling.lifeline is not None:
                    sibling.lifeline.let_go()
            status = asyncio.run(child.run(lifeline))
        except BaseException:
            _log.exception("process.crashed", extra={"child": child.name})
        finally:
            logs.reset()
            os._exit(status)

    def _worker_runner(self, worker: int) -> Run:
        return lambda lifeline: serve_worker(self._heritage, worker, lifeline)

    async def _run_control(self, lifeline: Lifeline) -> int:
        # brings the store, which no worker may have: so it is imported in the child
        from aisix.workers.control_process import serve_control  # noqa: PLC0415

        return await serve_control(self._heritage, lifeline)

    # ── waiting ──

    def _wait(self) -> None:
        """Until a signal comes or something is due."""
        moments = [self._kill_at]
        if not self._ending:
            moments += [child.due_at for child in self._children if not child.pid]
        next_at = min(moments)
        if next_at == float("inf"):
            told: signal.struct_siginfo | None = signal.sigwaitinfo(_WATCHED)
        else:
            told = signal.sigtimedwait(_WATCHED, max(0.0, next_at - time.monotonic()))
        if told is not None and told.si_signo in _ENDING:
            self._end(signal.Signals(told.si_signo))
        if time.monotonic() >= self._kill_at:
            self._kill_all()

    def _end(self, number: signal.Signals) -> None:
        """Pass it on. The first one makes children drain, a second one end at once."""
        self._signals += 1
        # a socket must stop to listen when its worker closes it: these copies would hold it open
        if self._signals == 1:
            self._heritage.close()
        else:
            self._kill_at = min(self._kill_at, time.monotonic() + LAST_GRACE_S)
        for child in self._children:
            if child.lifeline is not None:
                child.lifeline.order(number)

    def _kill_all(self) -> None:
        self._kill_at = float("inf")
        for child in self._children:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)

    # ── reaping ──

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in self._children:
                if child.pid == pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, status: int) -> None:
        """`status` is an exit status, or the negative number of the signal that killed it."""
        pid, child.pid = child.pid, 0
        if child.lifeline is not None:
            child.lifeline.let_go()
            child.lifeline = None
        if child.worker is not None:
            self._heritage.roster.enter(child.worker, 0)
            self._heritage.limits.reclaim(child.worker)
        if self._ending:
            self._clean = self._clean and status == 0
            return
        if child.name == CONTROL and not self._heritage.roster.was_ready:
            self._refused, self._clean = True, False  # it has said why
            self._kill_all()
            return
        if child.worker is not None:
            self._heritage.roster.note_restart()
        now = time.monotonic()
        delay = child.patience.delay_s(now - child.started_at)
        child.due_at = now + delay
        _log.warning(
            "process.died",
            extra={"child": child.name, "pid": pid, "status": status, "restart_in_s": delay},
        )
